"""Checkpoints of a run: none of its training is lost, and a resumed run keeps its best checkpoint."""

import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from callbacks.saved_best import find_file, find_state, link_into, read_scores, replace_by_link

CERTIFIED = "val/certified_acc"


class RunCheckpoint(ModelCheckpoint):
    """Save a run's checkpoints, with the options of Lightning's ModelCheckpoint.

    It differs from that class in six ways:

    - ``last`` is saved after every epoch, every validation and every ``every_n_train_steps`` or
      ``train_time_interval``, and at the end of training, whether or not the monitored metric improved or exists.
    - ``last`` is also saved by the clock, so that a killed run loses at most minutes of training.
    - It saves where training can be resumed exactly: between two optimizer steps. If a validation or the end of an
      epoch follows, it saves after that.
    - A resumed run keeps the best checkpoints of the run that it resumes: they are linked into its own folder.
    - Paths in a checkpoint are not followed: a file is looked up by its name in the folder of the resumed checkpoint.
      Only files that this run wrote are ever replaced or removed.
    - The monitor ``auto`` is the module's ``selection_metric``. Of checkpoints with equal certified accuracy, which is
      0 until late in some runs, the last one is the best.

    Args:
        last_every_minutes: Save ``last`` when its last save is this many minutes ago, whatever the other intervals;
            never if null.
    """

    def __init__(self, *args: Any, last_every_minutes: float | None = 5, **kwargs: Any) -> None:
        if last_every_minutes is not None and not last_every_minutes > 0:
            raise ValueError(f"last_every_minutes must be above 0, or null for no limit, got {last_every_minutes}")
        super().__init__(*args, **kwargs)
        self.last_every_minutes = last_every_minutes
        self._last_saved = math.inf  # on the clock of this process
        self._last_due = False  # last_every_minutes have passed
        self._written, self._adopted = set[str](), set[str]()  # files of the run; those of its earlier processes
        self._best_step: int | None = None  # optimizer steps of the best checkpoint
        self._due = False  # an interval has passed since the last save
        self._measured = False  # a validation has ended since the last save
        self._from_validation = False  # validation logs the monitored metric

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace the monitor ``auto``."""
        super().setup(trainer, pl_module, stage)
        if self.monitor == "auto":
            self.monitor = str(getattr(pl_module, "selection_metric", "val/robust_acc"))

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Return True if a score is to be saved among the best."""
        if super().check_monitor_top_k(trainer, current):
            return True
        return self.monitor == CERTIFIED and current is not None and bool(current == self.kth_value)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and print a line if there is no validation to measure the monitored metric."""
        super().on_train_start(trainer, pl_module)
        self._last_saved = time.monotonic()
        if self._idle(trainer) or self.monitor is None or not self.monitor.startswith("val"):
            return
        if not sum(trainer.num_val_batches):
            rank_zero_info(
                f"No validation, so checkpoint.monitor {self.monitor} is not measured: the last weights are used."
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if an interval has passed; if a validation or the end of the epoch follows, save after that."""
        loop = trainer.fit_loop.epoch_loop
        # Gradients that are accumulated over several batches are in no checkpoint.
        if self._idle(trainer) or loop._should_accumulate():
            return
        if not hasattr(loop, "agreement"):  # Lightning's loop, without the command line
            self.request_save(trainer.strategy.broadcast(self.find_due_save()))
        step, every = trainer.global_step, self._every_n_train_steps
        self._due |= bool(every) and step % every == 0 and step != self._last_global_step_saved
        fetcher: Any = trainer.fit_loop._data_fetcher
        if loop._num_ready_batches_reached() or loop._should_check_val_fx(fetcher):
            return
        if self._due:
            self._save(trainer)
        elif self._last_due:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def find_due_save(self) -> int:
        """Return 2 if ``train_time_interval`` has passed, else 1 if ``last_every_minutes`` have, else 0.

        Clocks differ between processes: ask rank 0, and tell all ranks by :meth:`request_save` at the same batch.
        """
        now, interval, minutes = time.monotonic(), self._train_time_interval, self.last_every_minutes
        if interval is not None and now - (self._last_time_checked or 0) >= interval.total_seconds():
            self._last_time_checked = now
            return 2
        return int(minutes is not None and now - self._last_saved >= 60 * minutes)

    def request_save(self, due: int) -> None:
        """Save at the next moment from which training resumes exactly.

        Args:
            due: Result of :meth:`find_due_save`: 2 saves like ``every_n_train_steps``, 1 only ``last``.
        """
        self._due |= due == 2
        self._last_due |= due == 1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation within an epoch; :meth:`on_train_epoch_end` saves after one at its end."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._from_validation = self.monitor in trainer._logger_connector.metrics["callback"]
        if self._idle(trainer):
            return
        self._measured = True
        if not trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after every epoch."""
        if not self._idle(trainer):
            loop: Any = trainer.fit_loop.epoch_loop
            if hasattr(loop, "settle_epoch"):
                loop.settle_epoch()
            self._save(trainer, epoch_end=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of training, regardless of the intervals."""
        if self._idle(trainer) or self._last_global_step_saved == trainer.global_step:
            return
        metrics = self._monitor_candidates(trainer)
        if self.monitor is None:
            self._save_topk_checkpoint(trainer, metrics)
        self._save_last_checkpoint(trainer, metrics)

    def adopt(self, files: Iterable[Path]) -> None:
        """Treat files of the run's earlier processes as written by this one: replace or remove them."""
        self._adopted |= {os.path.abspath(file) for file in files}
        self._written |= self._adopted

    def file_exists(self, filepath: str | Path, trainer: Trainer) -> bool:
        """Return True if a file's name is taken, so that the next one gets a version number.

        A file of the run's earlier processes is replaced, unless it is among the best.
        """
        path = os.path.abspath(filepath)
        if path in self._adopted and path not in map(os.path.abspath, self.best_k_models):
            return False
        return super().file_exists(filepath, trainer)

    def last_path(self) -> str:
        """Return the path that ``last`` has if no other file has that name yet."""
        return str(Path(str(self.dirpath)) / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}")

    def save_now(self, trainer: Trainer) -> str:
        """Save ``last`` before an interruption, and return its path."""
        saved = self._wrote(self.last_model_path) and self._last_global_step_saved == trainer.global_step
        if not self._idle(trainer) and not saved:
            save_last, self.save_last = self.save_last, True
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            self.save_last = save_last
        return self.last_model_path

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"best_step": self._best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignore the state, because :meth:`on_load_checkpoint` reads it together with the checkpoint's path."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Link the best checkpoints of the resumed run into this run's folder."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.ckpt_path is None:
            return
        resumed = Path(trainer.ckpt_path)
        self.last_model_path = str(resumed)
        state = find_state(checkpoint, self.monitor, self.mode)
        if self.monitor is None:
            newest = find_file(resumed, str(state.get("best_model_path") or resumed), state.get("dirpath"))
            own = newest is not None and os.path.abspath(newest) in self._adopted
            self.best_model_path = str(newest if own else resumed)  # The next checkpoint replaces an own one.
            return
        kept = self._link_best(resumed, checkpoint, state) if trainer.is_global_zero else {}
        kept = trainer.strategy.broadcast(kept)
        if not kept:
            return
        ranked = sorted(kept, key=lambda path: kept[path], reverse=self.mode == "max")
        self.best_k_models = {path: torch.tensor(kept[path]) for path in ranked}
        self.best_model_path, self.kth_best_model_path = ranked[0], ranked[-1]
        self.best_model_score = self.best_k_models[ranked[0]]
        self.kth_value = self.best_k_models[ranked[-1]]
        self._best_step = state.get("best_step")

    def _link_best(self, resumed: Path, checkpoint: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, float]:
        """Link the resumed run's best files into this run's folder, and return their scores by path."""
        scores = read_scores(state)
        names = sorted(scores, key=lambda name: scores[name], reverse=self.mode == "max")
        kept: dict[str, float] = {}
        for name in names[: max(self.save_top_k, 1)] if self.save_top_k else []:
            file = find_file(resumed, name, state.get("dirpath"))
            if file is None and name == names[0] and state.get("best_step") == checkpoint.get("global_step"):
                file = resumed  # It was saved at the same optimizer step as the best one, so it has the same weights.
            if file is not None:
                kept[self._link(file)] = scores[name]
            elif name == names[0]:
                rank_zero_info(
                    f"The best checkpoint so far, {Path(name).name} ({self.monitor} {scores[name]:.4f}), is not in the "
                    f"folder of {resumed}: the best is chosen from the checkpoints found and the following epochs."
                )
        return kept

    def _link(self, file: Path) -> str:
        """Link a file into this run's folder, and return the link's path."""
        assert self.dirpath is not None
        folder = Path(self.dirpath)
        if folder.resolve() in file.resolve().parents:
            # Spelled like new paths: Lightning would remove a file that it replaces under another spelling.
            return os.path.join(self.dirpath, file.resolve().relative_to(folder.resolve()))
        link = link_into(file, folder)
        self._written.add(os.path.abspath(link))
        return str(link)

    def _save(self, trainer: Trainer, epoch_end: bool = False) -> None:
        metrics = self._monitor_candidates(trainer)
        if self._is_candidate(trainer, metrics, epoch_end):
            self._save_topk_checkpoint(trainer, metrics)
        if trainer.fit_loop.epoch_loop._should_accumulate():
            self._due = True
        else:
            self._due = False
            self._save_last_checkpoint(trainer, metrics)
        self._measured = False

    def _is_candidate(self, trainer: Trainer, metrics: Mapping[str, Tensor], epoch_end: bool) -> bool:
        """Return True if these weights are to be compared with the best, or saved to a file of their step."""
        by_epoch = self._every_n_epochs >= 1
        epoch_due = by_epoch and (trainer.current_epoch + 1) % self._every_n_epochs == 0
        if self.monitor is not None and self.monitor not in metrics:
            if self._measured or (epoch_end and not self.monitor.startswith("val")):
                raise ValueError(
                    f"checkpoint.monitor must be a metric that the run logs, got {self.monitor!r}: "
                    f"there are {', '.join(sorted(set(metrics) - {'epoch', 'step'}))}"
                )
            return False
        if self.monitor is not None and self._from_validation:
            return self._measured and (epoch_due or not by_epoch)
        if by_epoch:
            return epoch_due and (epoch_end or self._measured)
        return self._due

    @staticmethod
    def _idle(trainer: Trainer) -> bool:
        fast_dev_run = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        return fast_dev_run or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING

    def _get_metric_interpolated_filepath_name(
        self, monitor_candidates: dict[str, Tensor], trainer: Trainer, del_filepath: str | None = None
    ) -> str:
        """Return the path of the next checkpoint: not that of the file that it displaces, unless this run wrote it."""
        own = del_filepath if self._wrote(del_filepath) else None
        return str(super()._get_metric_interpolated_filepath_name(monitor_candidates, trainer, own))

    def _wrote(self, filepath: str | None) -> bool:
        return bool(filepath) and os.path.abspath(str(filepath)) in self._written

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if not self._wrote(self.last_model_path):
            self.last_model_path = ""  # Lightning would replace that file: the one that this run was resumed from.
        if self.save_last == "link" and self._last_global_step_saved != trainer.global_step:
            self._last_checkpoint_saved = ""  # A link could point to no checkpoint of this step.
        super()._save_last_checkpoint(trainer, monitor_candidates)
        self._written.add(os.path.abspath(self.last_model_path))  # also if it is a link
        self._last_saved, self._last_due = time.monotonic(), False

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if filepath == self.best_model_path:
            self._best_step = trainer.global_step
        super()._save_checkpoint(trainer, filepath)
        self._written.add(os.path.abspath(filepath))

    @staticmethod
    def _link_checkpoint(trainer: Trainer, filepath: str, linkpath: str) -> None:
        if trainer.is_global_zero and os.path.abspath(filepath) != os.path.abspath(linkpath):
            replace_by_link(Path(filepath), Path(linkpath))
        trainer.strategy.barrier()

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if (path := os.path.abspath(filepath)) in self._written:
            self._written.discard(path)
            super()._remove_checkpoint(trainer, filepath)
