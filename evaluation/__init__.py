"""What a model withstands, with torch alone, and how it is shown."""

from evaluation.curve import fooling_eps
from evaluation.figures import adversarial_figure, can_be_drawn, robustness_figure, worst_case_figures
from evaluation.html import html_of
from evaluation.masking import Sign, masking_signs
from evaluation.presets import PRESETS, Preset
from evaluation.provenance import fingerprint, provenance
from evaluation.report import disagreements, report_of, table_of, write_per_image
from evaluation.worst_case import WorstCase, WorstCaseSearch

__all__ = [
    "PRESETS",
    "Preset",
    "Sign",
    "WorstCase",
    "WorstCaseSearch",
    "adversarial_figure",
    "can_be_drawn",
    "disagreements",
    "fingerprint",
    "fooling_eps",
    "html_of",
    "masking_signs",
    "provenance",
    "report_of",
    "robustness_figure",
    "table_of",
    "worst_case_figures",
    "write_per_image",
]
