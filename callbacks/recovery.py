"""Recovery of a collapsed training: back to a healthy state, and up to its eps again more slowly."""

from typing import Any

import torch.distributed
from pytorch_lightning import LightningModule, Trainer

from callbacks.epsilon_ramp import EpsilonRampCallback
from callbacks.healthy_state import HealthyState
from rampart.collapse import Alarm

EVERY = 50
"""Optimizer steps between two copies of a healthy training."""

LOWER = 0.5
"""Factor of the healthy state's eps at which a recovered training starts."""


class Recovery:
    """Healthy states of a training, and the return to them.

    Two states are kept. A training returns to the older one, after which it was still healthy for :data:`EVERY` steps
    or more; a network that never learned returns to its initial weights.

    Args:
        most: Largest number of recoveries in a run.

    Attributes:
        times: Number of recoveries so far.
    """

    def __init__(self, most: int) -> None:
        self.most, self.times = most, 0
        self._confirmed: HealthyState | None = None
        self._latest: HealthyState | None = None
        self._again = 0  # recoveries to the same state
        self._ramp: EpsilonRampCallback | None = None

    def setup(self, trainer: Trainer, module: Any) -> None:
        """Find the ramp that is set back, and take over losses that are NaN or infinite.

        Raises:
            TypeError: If the trainer has no EpsilonRampCallback.
        """
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        self._ramp = next((each for each in callbacks if isinstance(each, EpsilonRampCallback)), None)
        if self._ramp is None:
            raise TypeError("guard.action recover sets an EpsilonRampCallback back: add one to trainer.callbacks")
        module.ends_at_nonfinite_loss = False

    def start(self, trainer: Trainer, module: LightningModule) -> None:
        """Copy the initial weights of a run; a resumed run has them from its checkpoint."""
        if self._confirmed is None:
            self._confirmed = self._copy(trainer, module, 0.0)

    def keep(self, trainer: Trainer, module: Any) -> None:
        """Copy a healthy training that has learned, if the last copy is :data:`EVERY` or more steps old."""
        if self._latest is not None and trainer.global_step < self._latest.step + EVERY:
            return
        if self._latest is not None:
            self._confirmed, self._again = self._latest, 0
        self._latest = self._copy(trainer, module, module.eps)

    def find_nonfinite(self, trainer: Trainer, module: Any) -> Alarm | None:
        """Find logits of the last step that are NaN or infinite, at once on a CPU.

        On an accelerator the host would wait; there the measurements find them.
        """
        if module.device.type != "cpu" or module.last_step is None or trainer.fit_loop.epoch_loop._should_accumulate():
            return None
        found = (~module.last_step.logits.isfinite()).any().int()
        if trainer.world_size > 1:
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        if not found:
            return None
        return Alarm("non-finite logits", trainer.global_step - 1, "logits are NaN or infinite", "")

    def recover(self, trainer: Trainer, module: LightningModule, stronger: bool) -> str | None:
        """Return to the healthy state, and say in words what has changed; None if there were too many recoveries.

        Args:
            trainer: Trainer of the run, between two optimizer steps.
            module: Module that is trained.
            stronger: Keep the healthy state's eps, and make one attack step more, if the attack has a number of steps.
        """
        state, ramp = self._confirmed, self._ramp
        if self.times == self.most or state is None or ramp is None:
            return None
        stronger = stronger and ramp.can_strengthen()
        eps = state.eps * (1.0 if stronger else LOWER ** (self._again + 1))
        state.restore(trainer, module)
        ramp.set_back(trainer, state.time, eps, more_steps=int(stronger))
        self.times, self._again, self._latest = self.times + 1, self._again + 1, None
        more = "; each attack makes one step more" if stronger else ""
        return f"back to the weights of step {state.step}, eps rises from {eps:.4g}{more}"

    def end(self, module: Any) -> None:
        """Free the states, and let the module end at a loss that is NaN or infinite again."""
        self._confirmed = self._latest = None
        module.ends_at_nonfinite_loss = True

    def state_dict(self) -> dict[str, Any]:
        """Return the state, in tensors and plain values."""
        states = {"confirmed": self._confirmed, "latest": self._latest}
        kept = {name: None if state is None else state.state_dict() for name, state in states.items()}
        return kept | {"times": self.times, "again": self._again}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._confirmed, self._latest = (
            None if state[name] is None else HealthyState.from_state(state[name]) for name in ("confirmed", "latest")
        )
        self.times, self._again = int(state["times"]), int(state["again"])

    def _copy(self, trainer: Trainer, module: LightningModule, eps: float) -> HealthyState:
        assert self._ramp is not None
        return HealthyState.copy_from(trainer, module, self._ramp.progress.clock.time, eps)
