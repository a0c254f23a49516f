"""Preset of the paper's CIFAR-10 experiments."""

from torch import nn

from lightning_modules.adversarial_classifier import AdversarialClassifier
from rampart.attacks import PGD, NamedAttack
from rampart.networks import ResNet18


class CIFARClassifier(AdversarialClassifier):
    """:class:`AdversarialClassifier` with a ResNet-18 for CIFAR-10 and the paper's evaluation as defaults.

    The network is :class:`rampart.networks.ResNet18` with 10 classes, eps is 8/255, and the test attacks are PGD with
    200 steps of 2/255 at eps 8/255, 16/255 and 32/255. The paper's own network is a ResNet-50.
    """

    default_eps = "8/255"

    @classmethod
    def default_network(cls) -> nn.Module:
        """Return a ResNet-18 with 10 classes."""
        return ResNet18()

    @classmethod
    def default_test_attacks(cls) -> tuple[NamedAttack, ...]:
        """Return the paper's evaluation: PGD with 200 steps of 2/255 at eps 8/255, 16/255 and 32/255."""
        pgd_200 = PGD(steps=200, step_size="2/255")
        return tuple(NamedAttack(pgd_200, eps) for eps in ("8/255", "16/255", "32/255"))
