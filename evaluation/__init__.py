"""What a model withstands, with torch alone, and how it is shown."""

from evaluation.curve import fooling_eps
from evaluation.figures import adversarial_figure, robustness_figure
from evaluation.provenance import provenance

__all__ = ["adversarial_figure", "fooling_eps", "provenance", "robustness_figure"]
