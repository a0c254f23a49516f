"""What a model withstands, with torch alone, and how it is shown."""

from evaluation.curve import fooling_eps
from evaluation.figures import adversarial_figure, robustness_figure
from evaluation.provenance import provenance
from evaluation.worst_case import WorstCase, WorstCaseSearch

__all__ = [
    "WorstCase",
    "WorstCaseSearch",
    "adversarial_figure",
    "fooling_eps",
    "provenance",
    "robustness_figure",
]
