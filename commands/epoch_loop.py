"""Training loop over the batches of an epoch, which saves and resumes between any two of them."""

import warnings
from typing import Any

from lightning_fabric.utilities.types import _Stateful
from pytorch_lightning import Trainer
from pytorch_lightning.loops.fetchers import _DataFetcher
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.trainer import call

from commands.agreement import Agreement
from commands.interruption_callback import find_run_checkpoint, save_and_end
from commands.loader_connector import seed_epoch
from commands.resumed_progress import LAST_BATCH
from rampart.attacks.random import run_seed, seed_torch


class ResumableEpochLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch, which can start at any batch and end between any two."""

    _settled: int | None = None

    def __init__(self, trainer: Trainer, min_steps: int | None = None, max_steps: int = -1) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self.agreement = Agreement()

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Train on a batch, or end the run: all processes agree here on signals and saves, before the same batch."""
        checkpoint = find_run_checkpoint(self.trainer)
        signum, save = self.agreement.before_batch(self.trainer, checkpoint, self._accumulated_batches_reached())
        if signum:
            save_and_end(self.trainer, signum)
        if checkpoint is not None:
            checkpoint.request_save(save)
        super().advance(data_fetcher)

    def settle_epoch(self) -> None:
        """Step the schedules that watch a metric before the epoch is saved: Lightning would step them after it."""
        if self._num_ready_batches_reached():
            super().update_lr_schedulers("epoch", update_plateau_schedulers=True)
            self._settled = self.trainer.current_epoch

    def update_lr_schedulers(self, interval: str, update_plateau_schedulers: bool) -> None:
        """Skip the step that :meth:`settle_epoch` has done."""
        if not (interval == "epoch" and update_plateau_schedulers and self._settled == self.trainer.current_epoch):
            super().update_lr_schedulers(interval, update_plateau_schedulers)

    def on_save_checkpoint(self) -> dict[str, Any]:
        """Save if the epoch's last batch was reached: Lightning counts an epoch that is stopped early as finished."""
        return super().on_save_checkpoint() | {LAST_BATCH: self._num_ready_batches_reached()}

    def _on_before_fetch(self) -> None:
        """Seed the loading of a batch by its position alone, and an epoch's order by one seed on all ranks."""
        super()._on_before_fetch()
        if self.batch_progress.current.ready == 0:
            seed_epoch(self.trainer)
        else:
            self._seed_batch("fetch")

    def _on_after_fetch(self) -> None:
        """Seed the random numbers of the network, such as dropout's, by the batch's position alone."""
        super()._on_after_fetch()
        self._seed_batch("step")

    def _seed_batch(self, purpose: str) -> None:
        trainer, position = self.trainer, (self.trainer.current_epoch, self.batch_progress.current.ready)
        seed_torch(trainer.strategy.root_device, purpose, run_seed(trainer), trainer.global_rank, *position)

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Seed before an epoch: workers start here, and a loader without length reads its first batches."""
        seed_epoch(self.trainer)
        super().on_run_start(data_fetcher)

    def _broadcast_sigterm_tensor(self) -> None:
        """Do nothing: Lightning would ask rank 0 alone for a signal."""

    def reset(self) -> None:
        """Advance the loaders to the resumed batch; then the epoch continues like any other."""
        if self.trainer.fit_loop.restarted_mid_epoch:
            # Callbacks set values per epoch in this hook, such as the number of batches to accumulate.
            call._call_callback_hooks(self.trainer, "on_train_epoch_start")
            call._call_lightning_module_hook(self.trainer, "on_train_epoch_start")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
            super().reset()
        loop = self.trainer.fit_loop
        done, fetcher = self.batch_progress.current.completed, loop._data_fetcher
        if self.restarting and done and fetcher is not None and loop._combined_loader is not None:
            if loop._combined_loader_states_to_load:  # The loaders were set up before the progress was restored.
                loop._combined_loader._load_state_dicts(loop._combined_loader_states_to_load)
                loop._combined_loader_states_to_load = []
                iter(fetcher)
            if not all(isinstance(loader, _Stateful) for loader in loop._combined_loader.flattened):
                seed_epoch(self.trainer)
                for _ in range(done):
                    next(fetcher)
                fetcher.fetched -= done  # Lightning adds this number itself.
        # The checkpoint's last batch and its validation were finished: see `resumed_progress`.
        loop._restarting = self._restarting = self.val_loop._restarting = False
