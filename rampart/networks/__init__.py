"""Networks, with torch alone: images in [0, 1] to logits, normalisation inside."""

from rampart.networks.gated_mnist_cnn import GatedMNISTCNN
from rampart.networks.mnist_cnn import MNISTCNN
from rampart.networks.normalize import Normalize
from rampart.networks.plain import plain_form
from rampart.networks.resnet import ResNet18

__all__ = ["MNISTCNN", "GatedMNISTCNN", "Normalize", "ResNet18", "plain_form"]
