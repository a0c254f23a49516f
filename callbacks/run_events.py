"""Events of a run: lines in the log, in TensorBoard and in a file of the run's folder."""

import json
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_info

from callbacks.outputs import run_folder
from rampart.files import write_whole

FILE = "events.jsonl"


class RunEvents:
    """Events of one run, kept in the checkpoint: a resumed run continues after them.

    Args:
        tag: Name of the events in TensorBoard.
    """

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self._events: list[dict[str, Any]] = []

    def add(self, trainer: Trainer, line: str, event: dict[str, Any], shown: bool = True) -> None:
        """Print an event in one line, show it in TensorBoard, and write it to ``events.jsonl`` (rank 0).

        Args:
            trainer: Trainer of the run.
            line: The event in words.
            event: Plain values.
            shown: Print the line; False if an error will show it.
        """
        self._events.append({"epoch": trainer.current_epoch, **event, "text": line})
        if shown:
            rank_zero_info(line)
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text(self.tag, line, trainer.global_step)
                logger.experiment.flush()
        self.write(trainer)

    def write(self, trainer: Trainer) -> None:
        """Write all events to the file, one JSON object per line; remove those of a later time than a resumed run's."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = run_folder(trainer) / FILE
        if self._events:
            write_whole(path, "".join(json.dumps(event) + "\n" for event in self._events))
        elif trainer.ckpt_path is not None:
            path.unlink(missing_ok=True)

    def state(self) -> list[dict[str, Any]]:
        """Return the events, plain values."""
        return list(self._events)

    def restore(self, events: list[dict[str, Any]]) -> None:
        """Continue after the events of :meth:`state`."""
        self._events = list(events)
