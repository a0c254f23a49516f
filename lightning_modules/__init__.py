"""LightningModules: what a training, validation and test step are."""

from lightning_modules.adversarial_classifier import AdversarialClassifier
from lightning_modules.mnist_classifier import MNISTClassifier

__all__ = ["AdversarialClassifier", "MNISTClassifier"]
