"""Check of a training by a stronger attack on held-out images, at a small share of training's cost."""

import math
from collections.abc import Iterable
from dataclasses import is_dataclass, replace
from typing import Any

import torch
import torch.distributed
from pytorch_lightning import Trainer
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from callbacks.host_copy import HostCopy
from callbacks.run_length import count_steps
from rampart.attacks import PGD
from rampart.attacks.context import attack_context
from rampart.attacks.logits import compute_logits
from rampart.attacks.random import make_shared_generator

STEPS = 10
"""Steps of the stronger attack."""

FEWEST, MOST = 16, 256
"""Number of images of a check."""

FEW_STEPS = 2
"""Largest number of steps of a training attack that is overfitted to within tens of optimizer steps."""

EARLY = 96
"""Number of images of a check that a sign of overfitting asks for, if the training attack has few steps."""

CHECKS = 40
"""Number of checks in a run, if the share of its cost is enough for checks of that size."""


class HeldOutCheck:
    """Count held-out images that are robust to the training attack, and of these the ones that PGD-10 fools.

    Both attack with the eps of the latest training step. The images are the first of the validation set, others at each
    check. A check changes nothing: no random state, no BatchNorm statistics, no loader. It is made when its gradient
    evaluations are ``share`` of those of the training since the last one.

    Args:
        share: Share of training's gradient evaluations, in [0, 1]; 0 for no checks.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._evaluations, self._size, self._number = 0.0, 0, 0
        self._count_now = 0  # images of the current check
        self._images: tuple[Tensor, Tensor] | None = None
        self._read = False

    def load_images(self, trainer: Trainer) -> None:
        """Load the validation set, which Lightning loads before the first validation, or earlier in some resumed runs.

        A resumed run thus makes the checks that an uninterrupted one makes.
        """
        if self.share == 0 or trainer.val_dataloaders is not None or not trainer.enable_validation:
            return
        with isolate_rng():
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
            trainer.training = True

    def add_training(self, trainer: Trainer, module: Any, images: int, steps: int) -> None:
        """Add the cost of optimizer steps, and choose the size of the checks at the first call.

        Args:
            trainer: Trainer of the run.
            module: Module in training.
            images: Number of images of one optimizer step.
            steps: Number of optimizer steps.
        """
        attack_steps = count_attack_steps(module)
        if attack_steps is None:
            return
        per_step = images * (attack_steps + 1)
        self._evaluations += per_step * steps
        if self._size == 0:
            total = count_steps(trainer)
            affordable = self.share * total * per_step / _cost_per_image(attack_steps)
            self._size = min(max(int(affordable / CHECKS), FEWEST), MOST) if math.isfinite(total) else 64

    def is_due(self, trainer: Trainer, module: Any, doubted: bool, now: bool, low: bool) -> bool:
        """Return True if a check is to be made now, and count its cost; the same in all processes.

        Args:
            trainer: Trainer of the run.
            module: Module in training.
            doubted: Make checks twice as often.
            now: Make a check now, because the latest one has found something.
            low: The alignment is at a new low: make a check now if the training attack has few steps.
        """
        attack_steps = count_attack_steps(module)
        if self.share == 0 or self._size == 0 or attack_steps is None or attack_steps >= STEPS:
            return False  # A training attack of many steps is as strong.
        if not hasattr(module, "read_batch") or not trainer.val_dataloaders or not sum(trainer.num_val_batches):
            return False
        few = attack_steps <= FEW_STEPS
        early = now or (low and few)
        self._count_now = max(self._size, EARLY) if early and few else self._size
        cost = self._count_now * _cost_per_image(attack_steps) / self.share
        needed = cost / 2 if doubted else cost
        if not early and self._evaluations < needed:
            return False
        self._evaluations -= needed
        return True

    def run(self, trainer: Trainer, module: Any, eps: float) -> HostCopy:
        """Make a check. A collective operation.

        Returns:
            Three sums over all processes: images, those that are correctly classified under the training attack, and
            of these the ones that the stronger attack fools.
        """
        self._number += 1
        counts = torch.zeros(3, device=module.device)
        images, labels = self._choose(trainer, module)
        if len(images):
            counts += self._count(module, images, labels, eps)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(counts)
        return HostCopy(counts)

    def state(self) -> dict[str, float]:
        """Return the costs, plain values."""
        return {"evaluations": self._evaluations, "size": self._size, "number": self._number}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self._evaluations, self._size = float(state["evaluations"]), int(state["size"])
        self._number = int(state["number"])

    def _count(self, module: Any, images: Tensor, labels: Tensor, eps: float) -> Tensor:
        network, device = module.network, images.device.type
        purpose = "held-out check", module.run_seed, self._number
        generator = make_shared_generator(images.device, module.global_rank, module.trainer.world_size, *purpose)
        attack: Any = module.attack
        if is_dataclass(attack) and getattr(attack, "batchnorm", "eval") != "eval":
            attack = replace(attack, batchnorm="eval")  # type: ignore[type-var]
        correct = []
        with module.execution.evaluation(device):
            for each in (attack, PGD(norm=attack.norm, steps=STEPS)):
                adv = each(network, images, labels, eps, generator=generator)
                with attack_context(network, "eval", device), torch.no_grad():
                    correct.append(compute_logits(network, adv).argmax(1) == labels)
        first, stronger = correct
        return torch.stack([torch.ones_like(first).sum(), first.sum(), (first & ~stronger).sum()]).float()

    def _choose(self, trainer: Trainer, module: Any) -> tuple[Tensor, Tensor]:
        """Return this process's images and labels of the current check."""
        if not self._read:
            self._read = True
            try:
                with isolate_rng():
                    self._images = _read_images(trainer, module)
            except Exception as error:  # The loader may be any code, and a check must not end a run.
                reason = (str(error).splitlines() or [""])[0]
                rank_zero_warn(f"The collapse guard has no held-out images: {type(error).__name__}: {reason}")
        if self._images is None or not len(self._images[0]):
            return torch.empty(0, device=module.device), torch.empty(0, device=module.device)
        count = min(max(self._count_now // trainer.world_size, 1), len(self._images[0]))
        offset = (self._number - 1) * count % len(self._images[0])
        images, labels = (part.roll(-offset, 0)[:count] for part in self._images)
        return images, labels


def count_attack_steps(module: Any) -> int | None:
    """Return the steps of the training attack; None if they are not known, or the objective does not train by it."""
    steps_at = getattr(module.attack, "steps_at", None)
    if steps_at is None or getattr(getattr(module, "objective", None), "certifies", False):
        return None
    return int(steps_at(module.eps)) * int(getattr(module.attack, "restarts", 1))


def _cost_per_image(attack_steps: int) -> int:
    """Return the gradient evaluations of both attacks, and one for the two forward passes."""
    return attack_steps + STEPS + 1


def _read_images(trainer: Trainer, module: Any) -> tuple[Tensor, Tensor]:
    """Return the first images and labels of this process's share of the validation set."""
    found: list[tuple[Tensor, Tensor]] = []
    for batch in _iterate(trainer):
        images, labels, _ = module.read_batch(trainer.strategy.batch_to_device(batch, module.device))
        found.append((images, labels))
        if sum(len(each) for each, _ in found) >= MOST:
            break
    images, labels = (torch.cat(parts)[:MOST].clone() for parts in zip(*found, strict=True))
    return images, labels


def _iterate(trainer: Trainer) -> Iterable[Any]:
    """Return batches of the validation set; of a DataLoader without its workers and sampler."""
    loaders: Any = trainer.val_dataloaders
    loader = next(iter(loaders)) if isinstance(loaders, (list, tuple)) else loaders
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        batches: Iterable[Any] = loader
        return batches
    dataset: Any = loader.dataset
    total = min(len(dataset) // trainer.world_size, MOST) * trainer.world_size
    numbers = range(trainer.global_rank, total, trainer.world_size)
    chosen = [number * len(dataset) // total for number in numbers]  # evenly: a folder's images are sorted by class
    return [(loader.collate_fn or list)([dataset[index] for index in chosen])]
