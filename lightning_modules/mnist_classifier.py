"""The classifier of the paper's MNIST experiments."""

from torch import nn
from torch.optim import Adam

from lightning_modules.adversarial_classifier import AdversarialClassifier, OptimizerFactory
from lightning_modules.lr_schedules import Interval, SchedulerFactories
from rampart.attacks import PGD, Attack, Eps, NamedAttack
from rampart.networks import MNISTCNN
from rampart.objectives import Objective


class MNISTClassifier(AdversarialClassifier):
    """:class:`AdversarialClassifier` on the paper's network, tested as the paper tests.

    Args:
        network: The paper's MNIST CNN if None.
        eps: Target radius, 0.4 in the paper.
        attack: The attack of training; PGD with 40 steps if None.
        val_attack: The attack of validation; PGD with 20 steps if None.
        test_attacks: PGD with 200 steps of 0.005 at eps 0.3 and at 0.4 if None, the paper's evaluation.
        objective: What training minimises; the adversarial loss if None.
        optimizer: Adam with its default rate of 1e-3 in the paper.
        lr_scheduler: None in the paper; see :class:`AdversarialClassifier`, also for the next three.
        lr_interval: Whether the schedule advances after each optimizer step or each epoch.
        lr_milestones: Where one of several schedules ends and the next begins.
        lr_monitor: Metric that a ReduceLROnPlateau watches.
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        eps: Eps = 0.4,
        attack: Attack | None = None,
        val_attack: Attack | None = None,
        test_attacks: tuple[NamedAttack, ...] | None = None,
        objective: Objective | None = None,
        optimizer: OptimizerFactory = Adam,
        lr_scheduler: SchedulerFactories = None,
        lr_interval: Interval = "step",
        lr_milestones: tuple[int | float, ...] | None = None,
        lr_monitor: str | None = None,
    ) -> None:
        if test_attacks is None:
            pgd_200 = PGD(steps=200, step_size=0.005)
            test_attacks = (NamedAttack(pgd_200, 0.3), NamedAttack(pgd_200, 0.4))
        super().__init__(
            network=network or MNISTCNN(),
            eps=eps,
            attack=attack,
            val_attack=val_attack,
            test_attacks=test_attacks,
            objective=objective,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_interval=lr_interval,
            lr_milestones=lr_milestones,
            lr_monitor=lr_monitor,
        )
