"""LightningModules: AdversarialClassifier, which trains and evaluates a network under attack, and its presets."""

from lightning_modules.adversarial_classifier import AdversarialClassifier
from lightning_modules.cifar_classifier import CIFARClassifier
from lightning_modules.layer_sync import LayerSync
from lightning_modules.mnist_classifier import MNISTClassifier

__all__ = ["AdversarialClassifier", "CIFARClassifier", "LayerSync", "MNISTClassifier"]
