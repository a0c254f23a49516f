"""Sections of ``benchmarks.accelerator``: each measures one thing in its own process and keeps each row at once."""
