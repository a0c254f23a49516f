"""Interruption of training: save between two batches, and print the command that resumes the run."""

import os
from signal import Signals

from pytorch_lightning import Callback, LightningModule, Trainer

from callbacks import RunCheckpoint
from callbacks.outputs import run_folder
from commands.agreement import find_maxima
from commands.interruption import Interrupted, signals
from commands.launcher import start_words
from commands.messages import command_line
from commands.requeue import requeue
from commands.run_identity import write_record

NO_CHECKPOINTS = "nothing was saved, because trainer.enable_checkpointing is false"


class InterruptionCallback(Callback):
    """End training between two batches after a signal, and print the command that resumes it."""

    _signum = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Defer signals from now on until the batch is finished."""
        checkpoint = find_run_checkpoint(trainer)
        if checkpoint is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            signals.checkpoint = checkpoint.last_path()
            signals.command = _resume_command(trainer, signals.checkpoint)
            if trainer.is_global_zero:
                print(f"If it is interrupted, resume with: {signals.command}", flush=True)
        signals.deferred = signals.progress = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Agree between processes on a signal that was received at the end of the last epoch."""
        self._signum = int(find_maxima(trainer, signals.received)[0])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Skip the test if a signal was received in training; everything is saved."""
        signals.deferred = False
        if self._signum or signals.received:
            raise Interrupted(self._signum or signals.received, f"training was finished and saved; {signals.advice}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        signals.deferred = False


def save_and_end(trainer: Trainer, signum: int) -> None:
    """Save the run and end it, and return a SLURM job to the queue if it should run again.

    Raises:
        Interrupted: Always, with the command that resumes the run.
    """
    if signals.watch is not None:
        signals.watch.stop()
    checkpoint, advice = find_run_checkpoint(trainer), NO_CHECKPOINTS
    if checkpoint is not None:
        path = checkpoint.save_now(trainer)
        advice = f"saved {path}; {_requeue(trainer, signum) or f'resume with: {_resume_command(trainer, path)}'}"
    raise Interrupted(signum, advice, requeued=checkpoint is not None)


def _requeue(trainer: Trainer, signum: int) -> str:
    queued = ""
    if trainer.is_global_zero:
        asks = Signals(signum).name == "SIGUSR1" and "SLURM_JOB_ID" in os.environ
        if asks:  # before SLURM ends the job
            write_record(run_folder(trainer), requeued=True)
        queued = requeue(signum, resumable=True)
        if asks and not queued:
            write_record(run_folder(trainer), requeued=False)
    trainer.strategy.barrier()  # srun terminates all tasks once one has ended.
    return queued


def find_run_checkpoint(trainer: Trainer) -> RunCheckpoint | None:
    """Return the callback that saves the run's checkpoints; None if the run has no checkpoints."""
    return next((each for each in trainer.checkpoint_callbacks if isinstance(each, RunCheckpoint)), None)


def _resume_command(trainer: Trainer, path: str) -> str:
    if trainer.num_nodes > 1:
        return "the same command on every node, with --ckpt_path auto"
    return command_line(
        "fit", "--config", str(run_folder(trainer) / "config.yaml"), "--ckpt_path", path, start=start_words()
    )
