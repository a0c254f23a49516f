"""Schedules of eps over a run, as pure functions of progress, with torch alone."""

from rampart.schedules.phases import Phase, eps_schedule

__all__ = ["Phase", "eps_schedule"]
