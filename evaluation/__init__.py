"""Robustness evaluation: attacks, reports and figures, with torch alone."""

from evaluation.batches import Source, in_memory
from evaluation.curve import fooling_eps
from evaluation.figures import adversarial_figure, can_be_drawn, robustness_figure, worst_case_figures
from evaluation.html import html_of
from evaluation.masking import Sign, masking_signs
from evaluation.presets import Preset, preset_attacks
from evaluation.provenance import fingerprint, provenance
from evaluation.report import disagreements, report_of, table_of, write_per_image
from evaluation.results import Example, Stage, WorstCase
from evaluation.survey import Probe
from evaluation.worst_case import Watcher, WorstCaseSearch

__all__ = [
    "Example",
    "Preset",
    "Probe",
    "Sign",
    "Source",
    "Stage",
    "Watcher",
    "WorstCase",
    "WorstCaseSearch",
    "adversarial_figure",
    "can_be_drawn",
    "disagreements",
    "fingerprint",
    "fooling_eps",
    "html_of",
    "in_memory",
    "masking_signs",
    "preset_attacks",
    "provenance",
    "report_of",
    "robustness_figure",
    "table_of",
    "worst_case_figures",
    "write_per_image",
]
