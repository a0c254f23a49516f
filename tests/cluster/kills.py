"""A callback that sends SIGKILL to its own process, or to its process group, at a chosen moment."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback

VARIABLE = "RAMPART_TEST_KILL"
"""Environment variable ``RANK MOMENT NUMBER``: kill that rank, or with ``all`` the group, at the n-th such moment.

At the moment ``clock``, the number counts hundredths of a second from the start of training.
"""

TIME_VARIABLE = "RAMPART_TEST_KILL_TIME"
"""Environment variable with the file that gets the time of the kill."""

MOMENTS = (
    "start", "group", "setup", "fit", "load", "batch", "step", "save", "fsync", "replace", "replaced", "validation",
    "epoch", "clock", "test",
)  # fmt: skip


class KillCallback(Callback):
    """Kill the process at the moment that the environment names."""

    def __init__(self) -> None:
        rank, self.moment, number = os.environ.get(VARIABLE, "none none 1").split()
        self.left, self.group = int(number), rank == "all"
        if (rank if not self.group else "0") != os.environ.get("LOCAL_RANK", "0"):
            self.moment = "none"
        if self.moment == "group":
            self._wrap(torch.distributed, "init_process_group")
        if self.moment == "fsync":
            self._wrap(os, "fsync")
        if self.moment == "replace":
            self._wrap(Path, "replace")
        if self.moment == "replaced":
            self._wrap(Path, "replace", after=True)
        self.reach("start")

    def _wrap(self, owner: Any, name: str, after: bool = False) -> None:
        """Reach the moment at each call of a function, before or after it."""
        function: Callable[..., Any] = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if not after:
                self.reach(self.moment)
            result = function(*args, **kwargs)
            if after:
                self.reach(self.moment)
            return result

        setattr(owner, name, call)

    def reach(self, moment: str) -> None:
        """Count a moment, and kill at the chosen one."""
        if moment == self.moment:
            self.left -= 1
            if self.left == 0:
                self.die()

    def die(self) -> None:
        """Write the time, and kill."""
        with open(os.environ[TIME_VARIABLE], "w") as file:
            file.write(str(time.time()))
        (os.killpg if self.group else os.kill)(0 if self.group else os.getpid(), signal.SIGKILL)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.reach("setup")

    def on_fit_start(self, *_: Any) -> None:
        self.reach("fit")
        if self.moment == "clock":
            threading.Timer(self.left / 100, self.die).start()

    def on_load_checkpoint(self, trainer: Any, *_: Any) -> None:
        self.reach("load" if trainer.state.fn == "fit" else "")

    def on_train_start(self, *_: Any) -> None:
        self.reach("load")  # a run that has no checkpoint yet

    def on_train_batch_start(self, *_: Any) -> None:
        self.reach("batch")

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.reach("step")

    def on_save_checkpoint(self, *_: Any) -> None:
        self.reach("save")

    def on_validation_batch_start(self, *_: Any) -> None:
        self.reach("validation")

    def on_train_epoch_end(self, *_: Any) -> None:
        self.reach("epoch")

    def on_test_batch_start(self, *_: Any) -> None:
        self.reach("test")
