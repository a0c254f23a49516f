"""Averaged weights: an exponential moving average, or a mean, of the network's weights over the optimizer steps."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import StochasticWeightAveraging, WeightAveraging
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from callbacks.run_length import count_steps
from rampart.files.weights import check_match, network_weights

RAW = "current_model_state"
"""Key of the weights before averaging in a checkpoint, as in Lightning's WeightAveraging."""


class AveragedWeights(WeightAveraging):
    """Average the network's weights over optimizer steps, and validate, test and save the average.

    The average begins as the weights after the start, and follows them after every later optimizer step. Validation
    measures the average, so the best checkpoint is chosen by it; the network holds the average when training has
    ended. Before the start, the average is the current weights. Floating-point buffers, such as BatchNorm's
    statistics, are averaged too; others are copied.

    A checkpoint has the average under ``state_dict``, where every command and ``ramp.init_from`` find it, and the
    weights that are trained under ``current_model_state``. A resumed run continues with both.

    The warm-up of the decay is that of TensorFlow's ExponentialMovingAverage: update n uses the smaller of decay and
    (1 + n) / (10 + n).

    Args:
        decay: Weight of the old average at each update, in [0, 1), such as 0.999; None for the mean of all weights
            since the start.
        start: Start of the average: number of optimizer steps, or a fraction of the run if below 1.
        warm_up: Use a smaller decay at first, so that the average soon forgets the weights that it began with.

    Raises:
        ValueError: If decay is not in [0, 1), or start is negative or no whole number of steps.
    """

    _average_model: "_RunningAverage | None"  # type: ignore[assignment]  # in place of a copy of the LightningModule

    def __init__(self, decay: float | None = 0.999, start: int | float = 0, warm_up: bool = True) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"AveragedWeights: decay must be in [0, 1), or null for the mean, got {decay}")
        if not 0 <= start < math.inf or (start >= 1 and start != int(start)):
            raise ValueError(
                f"AveragedWeights: start must be a whole number of steps, or a fraction of the run below 1, got {start}"
            )
        super().__init__()
        self.decay, self.start, self.warm_up = decay, start, warm_up
        self._start_step = 0
        self._swapped = False  # The network holds the average, and `_average_model` the weights that are trained.

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return True after each optimizer step from the start on."""
        return step_idx is not None and step_idx + 1 >= self._start_step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare an average without weights.

        Raises:
            TypeError: If the module has no ``network``.
            ValueError: If the trainer has another callback that averages weights, also StochasticWeightAveraging.
        """
        if stage != "fit":
            return
        if not isinstance(getattr(pl_module, "network", None), nn.Module):
            raise TypeError(f"AveragedWeights averages `network`, which {type(pl_module).__name__} lacks")
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if sum(isinstance(callback, (WeightAveraging, StochasticWeightAveraging)) for callback in callbacks) > 1:
            raise ValueError("trainer.callbacks must hold at most one callback that averages weights")
        self._average_model, self._swapped = _RunningAverage(self.decay, self.warm_up), False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the start in optimizer steps.

        Raises:
            ValueError: If the start is a fraction of a run without a known number of steps.
        """
        assert self._average_model is not None
        self._average_model.move_to(_network(pl_module))
        self._latest_update_step = trainer.global_step
        self._start_step = int(self.start)
        if 0 < self.start < 1:
            length = count_steps(trainer)
            if not math.isfinite(length):
                raise ValueError(
                    f"AveragedWeights: start {self.start} is a fraction of the run, whose number of steps is not known "
                    "before it ends: give start as a number of optimizer steps"
                )
            self._start_step = round(self.start * length)
        elif self.start > count_steps(trainer):
            rank_zero_warn(f"AveragedWeights: start {self.start} is after the end of the run: nothing is averaged")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the network also if the resumed run was finished, so that no training began or ended."""
        if not self._swapped:
            self._swap_models(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the weights that are trained in the network, if a validation was interrupted."""
        if self._swapped:
            self._swap_models(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Free the memory of the second set of weights."""
        self._average_model, self._swapped = None, False

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: a checkpoint holds the average itself, and commands that only read it need no callback."""
        return {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average under ``state_dict``, and the weights that are trained under ``current_model_state``."""
        average = self._average_model
        if average is None or not average.updates:
            return
        held = checkpoint["state_dict"]
        kept = {f"network.{name}": tensor for name, tensor in average.by_name(_network(pl_module))}
        other = {name: kept.get(name, tensor) for name, tensor in held.items()}
        checkpoint["state_dict"], checkpoint[RAW] = (held, other) if self._swapped else (other, held)
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(average.updates)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Continue with the checkpoint's average and with the weights that were trained, if a run resumes.

        Raises:
            ValueError: If they do not fit the network.
        """
        updates = int(checkpoint.get("averaging_state", {}).get("n_averaged", 0))
        if self._average_model is None or RAW not in checkpoint or updates == 0:
            return
        network = _network(pl_module)
        trained = network_weights({"state_dict": checkpoint[RAW]}, RAW)
        check_match(network, trained, RAW)
        self._average_model.load(network, network_weights(checkpoint), updates)
        network.load_state_dict(trained)

    def copy_average(self) -> dict[str, Any]:
        """Return a copy of the average of a running training, for :meth:`restore_average`."""
        average = self._average_model
        assert average is not None
        return {"updates": average.updates, "tensors": [tensor.clone() for tensor in average.tensors]}

    def restore_average(self, pl_module: LightningModule, state: dict[str, Any]) -> None:
        """Return to an average that :meth:`copy_average` returned."""
        average = self._average_model
        assert average is not None
        average.updates = int(state["updates"])
        average.tensors = [tensor.clone() for tensor in state["tensors"]]
        average.move_to(_network(pl_module))

    def _swap_models(self, pl_module: LightningModule) -> None:
        """Swap the network's weights and the average, both in their places in memory."""
        assert self._average_model is not None
        if self._average_model.updates:
            self._average_model.swap(_network(pl_module))
            self._swapped = not self._swapped

    def _copy_average_to_current(self, pl_module: LightningModule) -> None:
        """Leave the average in the network when training ends; the trained weights are kept for the last checkpoint."""
        self._swap_models(pl_module)


class _RunningAverage:
    """Average of a network's parameters and saved buffers, which holds no tensors before the first update.

    The number of updates is kept on the host, so that an update never waits for the device.
    """

    def __init__(self, decay: float | None, warm_up: bool) -> None:
        self.updates = 0
        self._decay, self._warm_up = decay, warm_up
        self.tensors: list[Tensor] = []

    def update_parameters(self, module: LightningModule) -> None:
        """Move the average towards the weights."""
        current = _list_tensors(_network(module))
        if self.updates == 0:
            self.tensors = [tensor.clone() for tensor in current]
        else:
            pairs = list(zip(self.tensors, current, strict=True))
            floats, others = ([pair for pair in pairs if pair[0].is_floating_point() is kind] for kind in (True, False))
            if floats:
                torch._foreach_lerp_(*map(list, zip(*floats, strict=True)), 1 - self._next_decay())  # type: ignore[call-overload]
            for average, tensor in others:
                average.copy_(tensor)
        self.updates += 1

    def _next_decay(self) -> float:
        n = self.updates
        if self._decay is None:
            return n / (n + 1)
        return min(self._decay, (1 + n) / (10 + n)) if self._warm_up else self._decay

    def swap(self, network: nn.Module) -> None:
        """Exchange the values of the average and the network."""
        for average, tensor in zip(self.tensors, _list_tensors(network), strict=True):
            kept = tensor.clone()
            tensor.copy_(average)
            average.copy_(kept)

    def by_name(self, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Yield the average by the network's names; a tensor that the network has twice has two names."""
        places = {id(tensor): place for place, (_, tensor) in enumerate(_named_tensors(network))}
        for name, tensor in _named_tensors(network, remove_duplicate=False):
            yield name, self.tensors[places[id(tensor)]]

    def load(self, network: nn.Module, weights: dict[str, Tensor], updates: int) -> None:
        """Load the average by the network's names."""
        named = list(_named_tensors(network))
        self.tensors = [tensor.detach().clone().copy_(weights[name]) for name, tensor in named]
        self.updates = updates

    def move_to(self, network: nn.Module) -> None:
        """Move the average to the network's devices, on which a resumed run was not yet when it was loaded."""
        if self.updates:
            tensors = _list_tensors(network)
            self.tensors = [own.to(tensor.device) for own, tensor in zip(self.tensors, tensors, strict=True)]


def _network(module: LightningModule) -> nn.Module:
    network = module.network
    assert isinstance(network, nn.Module)
    return network


def _named_tensors(network: nn.Module, remove_duplicate: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters, and the buffers that checkpoints hold."""
    unsaved = {
        f"{place}.{name}".lstrip(".")
        for place, module in network.named_modules()
        for name in module._non_persistent_buffers_set
    }
    named = (
        network.named_parameters(remove_duplicate=remove_duplicate),
        network.named_buffers(remove_duplicate=remove_duplicate),
    )
    yield from ((name, tensor) for name, tensor in itertools.chain(*named) if name not in unsaved)


def _list_tensors(network: nn.Module) -> list[Tensor]:
    return [tensor.detach() for _, tensor in _named_tensors(network)]
