"""The commands of ``cli.py``: LightningCLI with a run's folder, logger, callbacks and checkpoints."""

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.model_helpers import is_overridden

from callbacks import MonitorCheckCallback, PredictionWriterCallback, ResultsTableCallback
from callbacks.outputs import run_folder
from commands.checkpoint_path import AUTO, check_ckpt_path, check_init_from, suggest_readable_checkpoint
from commands.interruption_callback import InterruptionCallback
from commands.launcher import adopt_launch
from commands.loader_connector import LoaderConnector
from commands.messages import command_line, silence_warnings
from commands.no_profiler import spare_profiling
from commands.node_watch import NodeWatchCallback, watch_torchrun
from commands.parsing import ParsingCLI
from commands.resuming import make_resumable
from commands.run_checkpoints import choose_checkpoint, find_checkpoints
from commands.run_folder import RunFolderCallback, create_run_folder, removed_if_empty, starts_run
from commands.run_identity import CONFIG, find_run, hold_run, read_start, release_run
from commands.tensorboard_records import collect_hyper_parameters, copy_curves, log_results, rewind_curves
from commands.threads import ThreadsCallback
from commands.trainer import RampartTrainer
from commands.trainer_settings import (
    check_images,
    check_loaders,
    check_settings,
    complete_settings,
    name_settings_in_errors,
)
from lightning_modules import AdversarialClassifier
from rampart.files import load_weights, write_whole
from rampart.files.weight_files import read_checkpoint
from rampart.files.weights import check_checkpoint, is_checkpoint_of


def run_command(args: list[str] | None = None) -> None:
    """Parse a command line and run its command.

    Args:
        args: Command and options; ``sys.argv[1:]`` if None.
    """
    silence_warnings()
    watch_torchrun()
    # Last, so that a user's folder adds names to import and hides none.
    sys.path += [] if os.getcwd() in sys.path else [os.getcwd()]
    try:
        RampartCLI(args)
    finally:
        release_run()


class RampartCLI(ParsingCLI):
    """Run a parsed command with a new folder, a logger and callbacks; raise an error if it processed no images."""

    def after_instantiate_classes(self) -> None:
        """Set the module's execution options, and store the config of its network for checkpoints to be loaded."""
        self.model.execution = self.config_init[self.subcommand].execution
        given = self.config_dump["model"]["init_args"].get("network")
        if isinstance(given, dict) and isinstance(self.model, AdversarialClassifier):
            self.model.network_settings = given

    def _parse_ckpt_path(self) -> None:
        """Keep command-line values: LightningCLI would override them with the checkpoint's hyper-parameters."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Create the run's folder, and the trainer with its logger and callbacks; save the config."""
        config = self.config_init[self.subcommand]
        adopt_launch(str(self.subcommand), config.trainer)
        check_settings(str(self.subcommand), config.trainer, config.test_after_fit)
        check_loaders(str(self.subcommand), self.datamodule)
        self.folder = create_run_folder(config.runs_dir, config.name, str(self.subcommand), self._find_run)
        self.run_folder = RunFolderCallback(self.folder, continued=starts_run() and (self.folder / CONFIG).exists())
        self.results_table = ResultsTableCallback()
        configured = [config[key] for key in self._parser(self.subcommand).callback_keys]
        callbacks = [
            self.run_folder,
            NodeWatchCallback(),
            ThreadsCallback(),
            InterruptionCallback(),
            MonitorCheckCallback(),
            *configured,
            self.results_table,
            PredictionWriterCallback(),
        ]
        with removed_if_empty(self.folder), name_settings_in_errors(config.trainer):
            trainer = RampartTrainer(**complete_settings(config.trainer, self.folder, callbacks), **kwargs)
        trainer.run_folder = self.folder
        trainer._data_connector = LoaderConnector(trainer)
        if starts_run() and not config.trainer.fast_dev_run:
            self._record_run(trainer)
        # Set before user code can change torch's seed. Without a seed, a training run gets one from rank 0. Other
        # commands use 0, because processes that share or resume an evaluation do not communicate.
        given = config.seed_everything
        if given is not False:
            trainer.run_seed = int(given)
        elif self.subcommand != "fit":
            trainer.run_seed = 0
        make_resumable(trainer)
        spare_profiling(trainer)
        return trainer

    def _find_run(self, parent: Path) -> Path | None:
        """Return the folder of the training run that this command continues; None for a new run."""
        config = self.config_init[self.subcommand]
        if self.subcommand != "fit" or config.trainer.fast_dev_run:
            return None
        return find_run(parent, self._settings(), asked=config.ckpt_path == AUTO)

    def _settings(self) -> str:
        """Return the settings to save, as YAML; they name no run to return to, so that they always start a new one."""
        config = self.config[self.subcommand].clone()
        if config.get("ckpt_path") == AUTO:
            config.ckpt_path = None
        return str(self._parser(self.subcommand).dump(config, skip_none=False))

    def _record_run(self, trainer: Trainer) -> None:
        """Write the settings and the job to the run's folder, unless it has them, and show them in TensorBoard."""
        if self.subcommand == "fit":
            hold_run(self.folder)
        if not self.run_folder.continued:
            write_whole(self.folder / CONFIG, self._settings())
        self._dump_config()
        for logger in _tensorboard_loggers(trainer):
            logger.hparams.update(collect_hyper_parameters(self.config_dump))

    def _choose_checkpoint(self, given: Any, weights_only: bool | None) -> str | None:
        """Return the checkpoint from which a run continues in its own folder, or else the one that was given."""
        if not self.run_folder.continued:
            return check_ckpt_path(None if given == AUTO and self.subcommand == "fit" else given, weights_only)
        callback, start = self.config_init.fit.checkpoint, read_start(self.folder)
        files = find_checkpoints(self.folder, None if callback.dirpath is None else Path(callback.dirpath))
        self.run_folder.files = files
        found = choose_checkpoint(files if start is None else [*files, Path(start)], callback.save_weights_only)
        rank_zero_info(
            f"This run continues in {self.folder}, {f'from {found}' if found else 'which has no checkpoint yet'}"
        )
        rewind_curves(self.folder, int(read_checkpoint(found)["global_step"]) if found else 0)
        return check_ckpt_path(found, weights_only)

    def _run_subcommand(self, subcommand: str) -> None:
        with suggest_readable_checkpoint(self.config_init[subcommand].get("ckpt_path")):
            super()._run_subcommand(subcommand)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Check ``ckpt_path`` before Lightning reads it; load plain weights for every command that does not train."""
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        path = self._choose_checkpoint(arguments.get("ckpt_path"), arguments.get("weights_only"))
        arguments["ckpt_path"] = self.run_folder.checkpoint = path
        if path is None and subcommand not in ("fit", "evaluate", "export"):
            print(f"No --ckpt_path: {subcommand} uses the weights that the network was built with.")
        if path is None or subcommand in ("evaluate", "export"):
            return arguments
        if subcommand == "fit":
            check_checkpoint(self.model.network, path)
            continued = self.run_folder.continued
            check_init_from(self.config_init.fit.ramp.init_from, path, () if continued else self.typed)
            loggers = _tensorboard_loggers(self.trainer)
            if starts_run() and not continued and any(Path(logger.log_dir) == self.folder for logger in loggers):
                copy_curves(path, self.folder)
        elif not is_checkpoint_of(self.model.network, path):
            print(load_weights(self.model.network, path))
            arguments["ckpt_path"] = None
            self.results_table.weights = path
        return arguments

    def after_validate(self) -> None:
        """Raise an error if there were no validation images."""
        check_images(sum(self.trainer.num_val_batches), "images to validate on")

    def after_test(self) -> None:
        """Raise an error if there were no test images, and log the results."""
        check_images(sum(self.trainer.num_test_batches), "images to test on")
        self._log_results(self.trainer.callback_metrics)

    def after_predict(self) -> None:
        """Raise an error if there were no images to predict."""
        check_images(sum(self.trainer.num_predict_batches), "images to predict")

    def after_fit(self) -> None:
        """Test the best checkpoint, if there are test images, and print the next commands."""
        check_images(self.trainer.num_training_batches, "training images")
        trainer, config, checkpoint = self.trainer, self.config_init.fit, self.config_init.fit.checkpoint
        if trainer.global_step == 0:
            raise ValueError("nothing was trained: trainer.max_time ended before the first step")
        best = "" if config.trainer.fast_dev_run else checkpoint.best_model_path or checkpoint.last_model_path
        metrics, holder = dict(trainer.callback_metrics), self.datamodule or self.model
        try:
            if config.test_after_fit and is_overridden("test_dataloader", holder):
                trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best or None, verbose=False)
            elif config.test_after_fit:
                rank_zero_info(f"No test: {type(holder).__name__} has no test_dataloader.")
            self._log_results(metrics | trainer.callback_metrics)
        finally:  # The checkpoints exist, even if the test fails.
            self._print_next_commands(best)

    def _print_next_commands(self, best: str) -> None:
        trainer = self.trainer
        if trainer.is_global_zero and best:
            print(f"\nCheckpoint: {best}\n\nNext:")
            for logger in _tensorboard_loggers(trainer):
                print(f"  {shlex.join(['tensorboard', '--logdir', logger.root_dir])}")
            saved, holder = str(run_folder(trainer) / "config.yaml"), self.datamodule or self.model
            for command in ("predict", "test"):
                if is_overridden(f"{command}_dataloader", holder):
                    print(f"  {command_line(command, '--config', saved, '--ckpt_path', best)}")
                    break

    def _log_results(self, metrics: Mapping[str, Any]) -> None:
        if self.trainer.is_global_zero:
            for logger in _tensorboard_loggers(self.trainer):
                log_results(logger, self.config_dump, metrics)


def _tensorboard_loggers(trainer: Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
