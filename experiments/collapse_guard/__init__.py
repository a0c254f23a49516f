"""Experiment: alarms and recoveries of the collapse guard."""
