"""Measurement of a training step's signs, which the host reads later, so that it never waits for the device."""

from typing import Any

import torch
import torch.distributed
from pytorch_lightning import Trainer
from torch import Tensor

from callbacks.host_copy import HostCopy
from rampart.attacks.watched_inputs import InputWatch
from rampart.collapse import sum_alignment, sum_signs


class StepMeasurement:
    """Measure one optimizer step; with accumulated gradients, its last batch."""

    def __init__(self) -> None:
        self._watch, self._running = InputWatch(), False

    def start(self) -> None:
        """Watch the batch that follows."""
        self._running = True
        self._watch.start()

    def finish(self, trainer: Trainer, module: Any) -> HostCopy | None:
        """Return the sums of the step, on their way to the host, once its gradients are complete.

        A collective operation on measured steps.

        Returns:
            The sums of :func:`rampart.collapse.sum_signs` over all processes; None if the step is not measured, or the
            module has no values of it.
        """
        step = module.last_step
        if not self._running or step is None:
            return None
        with torch.no_grad():
            sums = sum_signs(step.logits, step.labels, _gradient_norm(module.network), self._align(module, step))
            if trainer.world_size > 1:
                torch.distributed.all_reduce(sums)
        self.stop()
        return HostCopy(sums)

    def stop(self) -> None:
        """End the watch, also if the step was not finished."""
        self._running = False
        self._watch.stop()

    def _align(self, module: Any, step: Any) -> Tensor | None:
        """Return the alignment of the last adversarial batch; None if the loss has no gradient at one."""
        for adv in reversed(self._watch.inputs):
            if adv.grad is not None and adv.shape == step.images.shape:
                return sum_alignment(step.images, adv, adv.grad, module.attack.norm)
        return None


def _gradient_norm(network: torch.nn.Module) -> Tensor | None:
    grads = [weight.grad for weight in network.parameters() if weight.grad is not None]
    return torch.nn.utils.get_total_norm(grads) if grads else None
