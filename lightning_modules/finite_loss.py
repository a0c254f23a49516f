"""Stop a training that has lost its numbers, before it writes them to a checkpoint."""

import math

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn

from rampart.files.finite import first_nonfinite

INTERVAL = 50
"""Steps between two looks where the trainer has no interval for logging."""


class FiniteLossCheck:
    """Keeps the losses that nobody has looked at yet; on an accelerator each look waits for the device."""

    def __init__(self) -> None:
        self._unseen: list[tuple[str, Tensor]] = []

    def add(self, loss: Tensor, eps: float, trainer: Trainer, network: nn.Module) -> None:
        """Take a step's loss, and look at once on a CPU, else as often as the trainer logs.

        Raises:
            ValueError: If a loss is NaN or infinite.
        """
        where = f"epoch {trainer.current_epoch} (zero-based), step {trainer.global_step}, eps {eps:g}"
        self._unseen.append((where, loss.detach()))
        if loss.device.type == "cpu" or len(self._unseen) >= (getattr(trainer, "log_every_n_steps", 0) or INTERVAL):
            self.check_losses(trainer, network)

    def check_losses(self, trainer: Trainer, network: nn.Module) -> None:
        """Refuse to go on after a loss that is not finite.

        Raises:
            ValueError: If there was one; the message says where, which weights are broken, and what is saved.
        """
        unseen, self._unseen = self._unseen, []
        values = torch.stack([loss.float() for _, loss in unseen]).tolist() if unseen else []
        for (where, _), value in zip(unseen, values, strict=True):
            if not math.isfinite(value):
                raise ValueError(
                    f"training stopped: the loss is {value} at {where}; {_state_of(network)}; {_saved(trainer)}; lower "
                    "the learning rate, or clip gradients (--trainer.gradient_clip_val 1)"
                )

    def check_before_saving(self, trainer: Trainer, network: nn.Module) -> None:
        """Refuse to save weights that are no numbers.

        Raises:
            ValueError: If a loss was not finite, or a weight is not.
        """
        self.check_losses(trainer, network)
        if name := first_nonfinite(network):
            raise ValueError(
                f"training stopped: network.{name} is NaN or infinite at epoch {trainer.current_epoch} (zero-based), "
                f"step {trainer.global_step}, and is not saved; {_saved(trainer)}"
            )


def _state_of(network: nn.Module) -> str:
    name = first_nonfinite(network)
    return "all weights are finite" if name is None else f"network.{name} is the first that is NaN or infinite"


def _saved(trainer: Trainer) -> str:
    for callback in trainer.checkpoint_callbacks:
        path = getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")
        if path:
            return f"the last whole checkpoint is {path}"
    return "no checkpoint has been saved"
