"""Preset of the paper's MNIST experiments."""

from torch import nn

from lightning_modules.adversarial_classifier import AdversarialClassifier
from rampart.attacks import PGD, NamedAttack
from rampart.networks import MNISTCNN


class MNISTClassifier(AdversarialClassifier):
    """:class:`AdversarialClassifier` with the paper's MNIST network, evaluation and target eps as defaults.

    The network is :class:`rampart.networks.MNISTCNN`, eps is 0.4, and the test attacks are PGD with 200 steps of 0.005
    at eps 0.3 and at 0.4.
    """

    default_eps = 0.4

    @classmethod
    def default_network(cls) -> nn.Module:
        """Return the paper's MNIST CNN."""
        return MNISTCNN()

    @classmethod
    def default_test_attacks(cls) -> tuple[NamedAttack, ...]:
        """Return the paper's evaluation: PGD with 200 steps of 0.005 at eps 0.3 and at 0.4."""
        pgd_200 = PGD(steps=200, step_size=0.005)
        return NamedAttack(pgd_200, 0.3), NamedAttack(pgd_200, 0.4)
