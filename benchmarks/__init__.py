"""Benchmarks of speed, time to robustness and agreement with others' attacks. Run as ``python -m benchmarks.NAME``."""
