"""Lightning's launcher of a run's processes on one machine, with a watch over them."""

import os
from collections.abc import Callable
from typing import Any

from lightning_fabric.utilities.distributed import _set_num_threads_if_needed
from pytorch_lightning import Trainer
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

from commands.interruption import signals
from commands.process_watch import PARENT_VARIABLE, ChildWatch


class WatchedLauncher(_SubprocessScriptLauncher):
    """Start the processes of the other ranks, and watch them in place of Lightning's observer.

    That one kills the first process with SIGKILL, so that nothing says which process died and how the run resumes.
    """

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:  # noqa: ARG002
        """Start the processes, if no other program has, and call ``function``."""
        environment = self.cluster_environment
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not environment.creates_processes_externally:
            os.environ[PARENT_VARIABLE] = str(os.getpid())
            try:
                self._call_children_scripts()
            finally:
                del os.environ[PARENT_VARIABLE]
            signals.watch = ChildWatch(self.procs, environment.node_rank() * self.num_processes + 1)
            signals.watch.start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)


def watch_processes(trainer: Trainer) -> None:
    """Replace the trainer's launcher, if it starts processes by a command."""
    launcher = trainer.strategy.launcher
    if type(launcher) is _SubprocessScriptLauncher:
        trainer.strategy._launcher = WatchedLauncher(
            launcher.cluster_environment, launcher.num_processes, launcher.num_nodes
        )
