"""Callbacks: epsilon ramp, guard, averaged weights, checkpoints, figures, tables, predictions, progress bar."""

from callbacks.adversarial_images import AdversarialImagesCallback
from callbacks.averaged_weights import AveragedWeights
from callbacks.collapse_guard import CollapseGuard
from callbacks.epsilon_ramp import EpsilonRampCallback
from callbacks.monitor_check import MonitorCheckCallback
from callbacks.prediction_writer import PredictionWriterCallback
from callbacks.progress_bar import RampartProgressBar
from callbacks.results_table import ResultsTableCallback
from callbacks.robustness_curve import RobustnessCurveCallback
from callbacks.run_checkpoint import RunCheckpoint

__all__ = [
    "AdversarialImagesCallback",
    "AveragedWeights",
    "CollapseGuard",
    "EpsilonRampCallback",
    "MonitorCheckCallback",
    "PredictionWriterCallback",
    "RampartProgressBar",
    "ResultsTableCallback",
    "RobustnessCurveCallback",
    "RunCheckpoint",
]
