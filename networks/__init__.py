"""Networks, with torch alone: images in [0, 1] to logits, normalisation inside."""

from networks.export import export_network
from networks.mnist_cnn import MNISTCNN
from networks.normalize import Normalize
from networks.resnet import ResNet18

__all__ = ["MNISTCNN", "Normalize", "ResNet18", "export_network"]
