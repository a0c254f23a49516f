"""Networks, with torch alone: images in [0, 1] to logits, normalisation inside."""

from rampart.networks.batchnorm_cnn import CNN5, CNN7
from rampart.networks.gated_mnist_cnn import GatedMNISTCNN
from rampart.networks.mnist_cnn import MNISTCNN
from rampart.networks.normalize import Normalize
from rampart.networks.pixel_gates import PixelGates
from rampart.networks.plain import plain_form
from rampart.networks.preact_resnet import PreActResNet18
from rampart.networks.resnet import ResNet18, ResNet34, ResNet50, ResNet101
from rampart.networks.sync_batch_norm import SyncBatchNorm, restore_layers, sync_layers
from rampart.networks.wide_resnet import WideResNet

__all__ = [
    "CNN5",
    "CNN7",
    "MNISTCNN",
    "GatedMNISTCNN",
    "Normalize",
    "PixelGates",
    "PreActResNet18",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "ResNet101",
    "SyncBatchNorm",
    "WideResNet",
    "plain_form",
    "restore_layers",
    "sync_layers",
]
