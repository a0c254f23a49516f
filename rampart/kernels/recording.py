"""Steps that run many times: called operation by operation, or recorded once and replayed as a whole.

A GPU computes the operations of a small network faster than the host launches them. A CUDA graph holds a recorded
sequence of operations and launches it at once. A replay runs no Python: it repeats the same operations on the same
memory. So a step changes the tensors of a state in place, and decides nothing on the host.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any, Generic, TypeAlias, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn

from rampart.kernels.cuda_graphs import CUDAGraphs, Recorder
from rampart.kernels.derived import DerivedWeights, current_derived, frozen_weights
from rampart.kernels.execution import current_execution
from rampart.kernels.fast_path import is_traced_or_transformed
from rampart.kernels.network_state import (
    describe_modes,
    describe_settings,
    find_obstacle,
    list_modules,
    list_weights,
    locate_weights,
)
from rampart.kernels.state import copy_state, copy_to, describe_state, largest_difference, state_tensors
from rampart.kernels.warning import warn_on_rank_zero

State = TypeVar("State")
Memo: TypeAlias = dict[str, Any]

RECORDERS: dict[str, type[Recorder]] = {} if torch.version.hip else {"cuda": CUDAGraphs}
"""Recorder of each device type; on other devices steps are called."""

MOST_RECORDINGS = 48
"""Recordings kept per network; the least recently used is dropped."""

MOST_DROPPED = 100
"""Number of recordings of a network that may be dropped before its steps are no longer recorded."""

MANY_STEPS = 16
"""Number of steps from which recording pays at once. With fewer, a step is recorded the second time it is needed."""

MOST_MOVES = 16
"""Number of times that a network's weights may move in memory before its steps are no longer recorded."""

ALLOWED_DIFFERENCE = 0.02
"""Share of a tensor's numbers in which a replay may differ from a call, besides differences between two calls."""


class StepRunner(Generic[State]):
    """Run a step on a state, by replays where device and network allow it.

    Args:
        model: Network that the step calls, or any function; a function is never recorded.
        step: Function ``(state, memo)`` that changes the state's tensors in place. It reads nothing else that changes
            between two steps, except the weights of the network.
        kind: Everything that distinguishes the step from others of this network, besides the shapes of the state.
        steps: Expected number of steps.
        record: Record the step if possible; False calls it on every device.

    Attributes:
        state: The loaded state, which holds the results. Change it only in place.
        memo: Values that the step stores when it is called; with replays, those that it stored while it was recorded.
    """

    state: State

    def __init__(
        self, model: object, step: Callable[[State, Memo], None], kind: Hashable, steps: int, record: bool = True
    ) -> None:
        self._network = model if record and isinstance(model, nn.Module) else None
        self._step, self._kind, self._steps = step, kind, steps
        self.memo: Memo = {}
        self._recording: _Recording[State] | None = None

    @property
    def is_recorded(self) -> bool:
        """True if the loaded state is changed by replays."""
        return self._recording is not None

    def load(self, state: State) -> None:
        """Set the state. Its tensors are copied if the step is replayed, and changed in place otherwise."""
        self.state, self._recording = state, None
        device = state_tensors(state)[0].device
        if self._network is not None and self._steps > 0 and _may_record(device):
            recordings = _RECORDINGS.get(self._network)
            if recordings is None:
                recordings = _RECORDINGS[self._network] = _NetworkRecordings(device)
            self._recording = recordings.find(self._network, self._step, state, self._kind, self._steps)
        if self._recording is not None:
            copy_to(self._recording.state, state)
            self.state, self.memo = self._recording.state, self._recording.memo

    def run(self) -> None:
        """Run one step."""
        if self._recording is None:
            self._step(self.state, self.memo)
        else:
            self._recording.replay()


class _Recording(Generic[State]):
    """A recorded step with its own state.

    Raises:
        RuntimeError: If a replay gives another result than a call.
    """

    def __init__(self, step: Callable[[State, Memo], None], given: State, recorder: Recorder) -> None:
        self.state, self.memo = copy_state(given), dict[str, Any]()
        called = [copy_state(given) for _ in range(3)]
        calls = [partial(step, state, self.memo) for state in called]
        self.replay = recorder.record(partial(step, self.state, self.memo), calls)
        copy_to(self.state, given)
        self.replay()
        by_chance = largest_difference(called[1], called[2])
        if largest_difference(self.state, called[2]) > 3 * by_chance + ALLOWED_DIFFERENCE:
            raise RuntimeError("a replay gives other results than the network")


class _NetworkRecordings:
    """All recordings of one network on one device, with the derived weights that they share."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._refused, self._moves, self._dropped = device, False, 0, 0
        self._recordings: OrderedDict[Hashable, _Recording[Any]] = OrderedDict()
        self._needed_once: OrderedDict[Hashable, None] = OrderedDict()
        self._too_large: set[Hashable] = set()
        self._warned: set[str] = set()
        self._weights: tuple[object, ...] = ()
        self._forget()

    def _forget(self) -> None:
        """Drop everything that holds addresses of weights."""
        self._recordings.clear()
        self._recorder = RECORDERS[self._device.type](self._device)
        self._derived = DerivedWeights()
        self._refresh: tuple[int, Callable[[], None]] | None = None
        self._refreshed_for: Callable[[], DerivedWeights | None] = _nothing

    def find(
        self, network: nn.Module, step: Callable[[State, Memo], None], state: State, kind: Hashable, steps: int
    ) -> _Recording[State] | None:
        """Return the recording of a step, made now if it pays; None if the step is to be called."""
        if self._refused or state_tensors(state)[0].device != self._device:
            return None
        try:
            with _LOCK:
                modules = list_modules(network)
                if obstacle := find_obstacle(modules):  # Hooks may be removed again.
                    self._warn(network, obstacle)
                    return None
                return self._find(modules, step, state, kind, steps)
        except torch.OutOfMemoryError:  # Smaller batches may still be recorded.
            self._forget()
            self._warn(network, "there is too little memory to record them, at least for batches of one size")
        except Exception as error:  # The network may be any code. If it fails by itself, it fails again when called.
            self._refused = True
            self._forget()
            self._warn(network, (str(error).splitlines() or [type(error).__name__])[0])
        return None

    def _find(
        self,
        modules: Sequence[nn.Module],
        step: Callable[[State, Memo], None],
        state: State,
        kind: Hashable,
        steps: int,
    ) -> _Recording[State] | None:
        self._forget_moved(modules)
        settings = describe_modes(modules), describe_settings(self._device.type), current_execution()
        key = kind, describe_state(state), settings, threading.get_ident()
        self._recorder.wait()
        if key not in self._recordings and self._pays(key, steps):
            self._too_large.add(key)
            self._recordings[key] = self._make(modules, step, state)
            self._too_large.remove(key)
            if len(self._recordings) > MOST_RECORDINGS:
                self._recordings.popitem(last=False)
                self._dropped += 1
                if self._dropped > MOST_DROPPED:
                    raise RuntimeError("its batches have too many different shapes, or its attacks too many settings")
        if (recording := self._recordings.get(key)) is not None:
            self._recordings.move_to_end(key)
            self._refresh_derived()
        return recording

    def _forget_moved(self, modules: Sequence[nn.Module]) -> None:
        """Forget recordings of other weights.

        Raises:
            RuntimeError: If the weights have moved too often.
        """
        if (weights := locate_weights(modules)) != self._weights:
            self._moves += bool(self._weights)
            if self._moves > MOST_MOVES:
                raise RuntimeError("its weights or attributes are replaced again and again")
            self._weights = weights
            self._forget()

    def _warn(self, network: nn.Module, reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            name = type(network).__name__
            warn_on_rank_zero(f"{name} is attacked without CUDA graphs, which takes longer: {reason}", 5)

    def _pays(self, key: Hashable, steps: int) -> bool:
        if key in self._too_large:
            return False
        if steps >= MANY_STEPS or key in self._needed_once:
            return True
        self._needed_once[key] = None
        if len(self._needed_once) > 10 * MOST_RECORDINGS:
            self._needed_once.popitem(last=False)
        return False

    def _make(
        self, modules: Sequence[nn.Module], step: Callable[[State, Memo], None], state: State
    ) -> _Recording[State]:
        if any(tensor.device != self._device for module in modules for tensor in list_weights(module)):
            raise RuntimeError(f"some of its weights are not on {self._device}")
        # In train mode, the steps that warm up may update running statistics.
        updated = modules if describe_modes(modules) else []
        buffers = [buffer for module in updated for buffer in module._buffers.values() if buffer is not None]
        before, caching = [buffer.clone() for buffer in buffers], torch.is_autocast_cache_enabled()
        try:
            self._refresh_derived()
            torch.set_autocast_cache_enabled(False)  # A cached cast would be freed, but still read by replays.
            with frozen_weights(self._derived), self._same_random_state():
                recording = _Recording(step, state, self._recorder)
            if locate_weights(modules) != self._weights:
                raise RuntimeError("its attributes or weights change when it is called")
            return recording
        finally:
            torch.set_autocast_cache_enabled(caching)
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)

    def _same_random_state(self) -> AbstractContextManager[None]:
        """Restore the state of random generators after the context, in which random networks are called."""
        devices = [] if self._device.type == "cpu" else [self._device]
        return torch.random.fork_rng(devices, device_type=self._device.type)

    def _refresh_derived(self) -> None:
        """Compute the derived weights again, at the first step of each attack."""
        attack = current_derived()
        if attack is not None:
            if attack is self._refreshed_for():
                return
            self._refreshed_for = ref(attack)
        if count := len(self._derived):
            if self._refresh is None or self._refresh[0] != count:
                function = self._derived.refresh
                self._refresh = count, self._recorder.record(function, [function] * 2)
            self._refresh[1]()


_LOCK = threading.RLock()
"""Held while steps are recorded: a process can record only one at a time."""

_RECORDINGS: WeakKeyDictionary[nn.Module, _NetworkRecordings] = WeakKeyDictionary()


def _may_record(device: torch.device) -> bool:
    capture, recorder = current_execution().capture, RECORDERS.get(device.type)
    if capture and recorder is None:
        _warn_of_device(device.type)
    return (
        capture is not False
        and recorder is not None
        and not is_traced_or_transformed()
        and not torch.is_anomaly_enabled()  # It looks at the results of each operation.
        and recorder.can_record(device)
    )


@cache
def _warn_of_device(device_type: str) -> None:
    """Warn once, since every attack would repeat the same line."""
    warn_on_rank_zero(f"execution.capture needs CUDA graphs, which {device_type} does not have", 5)


def _nothing() -> None:
    return None
