"""Signs of a training that collapses, from what a step has computed, and their detection, with torch alone."""

from rampart.collapse.detector import Alarm, CollapseDetector
from rampart.collapse.signs import Signs, read_signs, sum_alignment, sum_signs

__all__ = ["Alarm", "CollapseDetector", "Signs", "read_signs", "sum_alignment", "sum_signs"]
