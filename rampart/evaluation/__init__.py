"""Robustness evaluation: worst case over several attacks, reports, figures, and checks for gradient masking."""

from rampart.evaluation.certification import Certifier
from rampart.evaluation.clean_pass import Probe
from rampart.evaluation.contradictions import find_contradictions
from rampart.evaluation.figures import adversarial_figure, can_be_drawn, robustness_figure, worst_case_figures
from rampart.evaluation.gradient_masking import Sign, find_masking_signs
from rampart.evaluation.html_report import render_html
from rampart.evaluation.image_source import Source, in_memory
from rampart.evaluation.presets import Preset, preset_attacks
from rampart.evaluation.progress_listener import ProgressListener
from rampart.evaluation.report import build_report, format_table, write_per_image
from rampart.evaluation.results import BoundStage, Certificates, Example, Stage, WorstCase
from rampart.evaluation.robust_mask import robust_mask
from rampart.evaluation.robustness_curve import fooling_eps
from rampart.evaluation.worst_case import WorstCaseSearch

__all__ = [
    "BoundStage",
    "Certificates",
    "Certifier",
    "Example",
    "Preset",
    "Probe",
    "ProgressListener",
    "Sign",
    "Source",
    "Stage",
    "WorstCase",
    "WorstCaseSearch",
    "adversarial_figure",
    "build_report",
    "can_be_drawn",
    "find_contradictions",
    "find_masking_signs",
    "fooling_eps",
    "format_table",
    "in_memory",
    "preset_attacks",
    "render_html",
    "robust_mask",
    "robustness_figure",
    "worst_case_figures",
    "write_per_image",
]
