"""Phases of a run and the eps of each optimizer step, the clock that they read, and the pace of an adaptive ramp."""

from rampart.schedules.adaptive import AdaptiveRamp, EpsLimit, RampPace
from rampart.schedules.clock import Clock
from rampart.schedules.phases import Phase, eps_schedule

__all__ = ["AdaptiveRamp", "Clock", "EpsLimit", "Phase", "RampPace", "eps_schedule"]
