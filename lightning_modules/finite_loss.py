"""Stop training at a loss or a weight that is NaN or infinite, before it is saved to a checkpoint."""

import math

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn

from rampart.files.finite import first_nonfinite

INTERVAL = 50
"""Steps between two checks on an accelerator if the trainer has no logging interval."""


class FiniteLossCheck:
    """Check losses, on an accelerator several at a time because each check makes the host wait for the device.

    Args:
        raises: Raise an error at a loss that is NaN or infinite; False if something else handles it.
    """

    def __init__(self, raises: bool = True) -> None:
        self._raises = raises
        self._unchecked: list[tuple[tuple[int, int, float], Tensor]] = []

    def add(self, loss: Tensor, eps: float, trainer: Trainer, network: nn.Module) -> None:
        """Record a step's loss; check it at once on a CPU, on other devices as often as the trainer logs.

        Args:
            loss: Loss of the step, a scalar.
            eps: Radius of the step's attack, for the message.
            trainer: Trainer of the run.
            network: Network that is trained.

        Raises:
            ValueError: If a loss that has not been checked yet is NaN or infinite.
        """
        if not self._raises:
            return
        self._unchecked.append(((trainer.current_epoch, trainer.global_step, eps), loss.detach()))
        if loss.device.type == "cpu" or len(self._unchecked) >= (getattr(trainer, "log_every_n_steps", 0) or INTERVAL):
            self.check_losses(trainer, network)

    def check_losses(self, trainer: Trainer, network: nn.Module) -> None:
        """Check the losses that have not been checked yet.

        Raises:
            ValueError: If one is NaN or infinite; the message has its step, the first such weight and the last
                checkpoint.
        """
        unchecked, self._unchecked = self._unchecked, []
        values = torch.stack([loss.float() for _, loss in unchecked]).tolist() if unchecked else []
        for ((epoch, step, eps), _), value in zip(unchecked, values, strict=True):
            if not math.isfinite(value):
                raise ValueError(
                    f"training stopped: the loss is {value} at epoch {epoch} (zero-based), step {step}, eps {eps:g}; "
                    f"{_describe_weights(network)}; {_describe_checkpoint(trainer)}; lower the learning rate, or clip "
                    "gradients (--trainer.gradient_clip_val 1)"
                )

    def check_before_saving(self, trainer: Trainer, network: nn.Module) -> None:
        """Refuse to save a checkpoint with non-finite weights.

        Raises:
            ValueError: If a loss since the last check or a weight is NaN or infinite.
        """
        self.check_losses(trainer, network)
        if name := first_nonfinite(network):
            raise ValueError(
                f"training stopped: network.{name} is NaN or infinite at epoch {trainer.current_epoch} (zero-based), "
                f"step {trainer.global_step}, and is not saved; {_describe_checkpoint(trainer)}"
            )


def _describe_weights(network: nn.Module) -> str:
    name = first_nonfinite(network)
    return "all weights are finite" if name is None else f"network.{name} is the first that is NaN or infinite"


def _describe_checkpoint(trainer: Trainer) -> str:
    for callback in trainer.checkpoint_callbacks:
        path = getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")
        if path:
            return f"the last checkpoint is {path}"
    return "no checkpoint has been saved"
