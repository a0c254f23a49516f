"""LightningCLI with what every run of Rampart has."""

import os
import shlex
import sys
from argparse import ArgumentError
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import register_type
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor

import datamodules  # noqa: F401 (so that `data: MNISTDataModule` needs no package name)
from callbacks import (
    AdversarialImagesCallback,
    EpsilonRampCallback,
    MonitorCheckCallback,
    PredictionWriterCallback,
    ResultsTableCallback,
    RobustnessCurveCallback,
    RunCheckpoint,
)
from callbacks.outputs import run_folder
from commands.any_network import any_network
from commands.checkpoint_path import check_ckpt_path, check_init_from, suggesting_whole_ones
from commands.config_files import check_configs
from commands.ending import InterruptionCallback
from commands.help import CKPT_PATH, COMMANDS, USE, RampartParser
from commands.loaders import LoaderConnector
from commands.messages import command_line, keep_quiet
from commands.parse_errors import explain, wrap_single
from commands.records import copy_curves, hyper_parameters, log_results
from commands.requeue import checkpoint_of_job, record_job
from commands.resuming import make_resumable
from commands.run_folder import RunFolderCallback, new_run_folder, starts_run
from commands.trainer import RampartTrainer
from commands.trainer_settings import (
    check_images,
    check_loaders,
    check_seed,
    check_settings,
    complete_settings,
    naming_settings,
)
from lightning_modules import AdversarialClassifier
from rampart.files.weights import check_checkpoint, is_checkpoint_of, load_weights

# A loss's class weights are a list in a config: [1, 1, 2.5].
register_type(Tensor, serializer=Tensor.tolist, deserializer=lambda numbers: torch.tensor(numbers, dtype=torch.float32))


def run_command(args: list[str] | None = None) -> None:
    """Parse a command line and run its command.

    Args:
        args: Command and options; those that the process was started with if None.
    """
    keep_quiet()
    # Last, so that a user's folder adds names to import and hides none.
    sys.path += [] if os.getcwd() in sys.path else [os.getcwd()]
    arguments = sys.argv if args is None else args
    arguments[:] = any_network(arguments)
    RampartCLI(args)


class RampartCLI(LightningCLI):
    """LightningCLI with the epsilon ramp, the pictures, the table and a new folder for every run."""

    def __init__(self, args: list[str] | None = None) -> None:
        words = sys.argv[1:] if args is None else args
        self.command = words[0] if words else ""
        super().__init__(
            model_class=AdversarialClassifier,
            datamodule_class=LightningDataModule,
            trainer_class=RampartTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            # Attacks guard themselves against inference mode; without it they have a copy less to make.
            trainer_defaults={"inference_mode": False, "enable_model_summary": False},
            auto_configure_optimizers=False,
            parser_class=RampartParser,
            save_config_callback=None,  # a callback would write it into the logger's folder, and not for every command
            args=args,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static there, and called on the object
        """Return the command that is asked for, since building a parser takes time; else Lightning's and Rampart's."""
        known = LightningCLI.subcommands() | {name: {"model", "datamodule"} for name in ("evaluate", "export")}
        return {self.command: known[self.command]} if self.command in known else known

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Let parse errors reach :func:`main`, and begin the help with how the command line is used."""
        kwargs = {"description": None, "exit_on_error": False, "allow_abbrev": False} | kwargs
        parser = super().init_parser(**kwargs)
        assert isinstance(parser, RampartParser)
        parser.introduction = USE.format(program=command_line())
        return parser

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """Describe each command in a sentence."""
        super()._add_subcommands(parser, **kwargs)
        subcommands: Any = parser._subcommands_action
        for action in subcommands._choices_actions:
            action.help = COMMANDS[action.dest]

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Put Rampart's own options first, and leave out Lightning's table of results: Rampart prints its own."""
        usage = f"{command_line(subcommand)} [--config FILE] [--OPTION VALUE ...]"
        parser = super()._prepare_subcommand_parser(
            klass, subcommand, **kwargs | {"description": COMMANDS[subcommand], "usage": usage}
        )
        assert isinstance(parser, RampartParser)
        if subcommand in ("validate", "test"):
            parser.set_defaults(verbose=False)
        parser._option_string_actions["--ckpt_path"].help = CKPT_PATH
        parser.order_groups()
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks that every run has, and where a run's files go."""
        parser.add_lightning_class_args(EpsilonRampCallback, "ramp")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(AdversarialImagesCallback, "images")
        parser.add_lightning_class_args(RobustnessCurveCallback, "curve")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/robust_acc",
                "checkpoint.mode": "max",
                "checkpoint.save_last": True,
                "checkpoint.filename": "epoch{epoch}-step{step}",
                "checkpoint.auto_insert_metric_name": False,
            }
        )
        parser.add_argument("--name", type=str, default="unnamed", help="The experiment's name.")
        parser.add_argument("--runs_dir", type=str, default="runs", help="Runs go to RUNS_DIR/NAME/SUBCOMMAND-N.")
        parser.add_argument(
            "--test_after_fit", type=bool, default=True, help="Test the best checkpoint at the end of fit."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; take one value for a list of one, and say in the user's words what is wrong.

        Raises:
            ArgumentError: If an option is unknown, a value is not allowed or a config file can't be read.
        """
        words: list[str] | None = list(sys.argv[1:] if args is None else args)
        while words is not None:
            given = words
            try:
                self.typed = given
                check_configs(given)
                self.config = parser.parse_args(given)
                check_seed(self.config[self.config.subcommand].seed_everything)
                return
            except (ArgumentError, ValueError) as error:
                words = wrap_single(str(error), given)
                if words is None:
                    command = next((word for word in given if word in self._subcommand_parsers), None)
                    options = self._subcommand_parsers[command]._option_string_actions if command else {}
                    raise ArgumentError(None, explain(str(error), options)) from error

    def after_instantiate_classes(self) -> None:
        """Tell the module how the config describes its network, for those who load its checkpoints from Python."""
        given = self.config_dump["model"]["init_args"].get("network")
        if isinstance(given, dict) and isinstance(self.model, AdversarialClassifier):
            self.model.network_settings = given

    def _parse_ckpt_path(self) -> None:
        """Leave the command line its say: Lightning would let the checkpoint's hyper-parameters override it."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Give the run a folder of its own, its logger, its callbacks and its config."""
        config = self.config_init[self.subcommand]
        check_settings(str(self.subcommand), config.trainer, config.test_after_fit)
        check_loaders(str(self.subcommand), self.datamodule)
        self.folder = new_run_folder(config.runs_dir, config.name, str(self.subcommand))
        self.results_table = ResultsTableCallback()
        own = [config[key] for key in self._parser(self.subcommand).callback_keys]
        own = [
            RunFolderCallback(self.folder),
            InterruptionCallback(),
            MonitorCheckCallback(),
            *own,
            self.results_table,
            PredictionWriterCallback(),
        ]
        with naming_settings(config.trainer):
            trainer = RampartTrainer(**complete_settings(config.trainer, self.folder, own), **kwargs)
        trainer.run_folder = self.folder
        trainer._data_connector = LoaderConnector(trainer)
        if starts_run() and not config.trainer.fast_dev_run:
            parser = self._parser(self.subcommand)
            record_job(self.folder)
            parser.save(self.config[self.subcommand], self.folder / "config.yaml", skip_none=False, multifile=False)
            self._dump_config()
            for logger in _boards(trainer):
                logger.hparams.update(hyper_parameters(self.config_dump))
        # Set before user code can change torch's seed. A training run without one gets it from rank 0;
        # measurements get 0, for processes that share an evaluation, or take it up again, are not connected.
        given = config.seed_everything
        if given is not False:
            trainer.run_seed = int(given)
        elif self.subcommand != "fit":
            trainer.run_seed = 0
        make_resumable(trainer)
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        with suggesting_whole_ones(self.config_init[subcommand].get("ckpt_path")):
            super()._run_subcommand(subcommand)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Check a ``ckpt_path`` before Lightning reads it, and take plain weights where no training goes on."""
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        path = arguments["ckpt_path"] = check_ckpt_path(arguments.get("ckpt_path"), arguments.get("weights_only"))
        if path is None and subcommand not in ("fit", "evaluate", "export"):
            print(f"No --ckpt_path: {subcommand} takes the network's weights as it was built with them.")
        if path is None and subcommand == "fit" and (found := checkpoint_of_job(self.folder)):
            path = arguments["ckpt_path"] = str(found)
            rank_zero_info(f"This job was started again: it is resumed from {path}")
        if path is None or subcommand in ("evaluate", "export"):
            return arguments
        if subcommand == "fit":
            check_checkpoint(self.model.network, path)
            check_init_from(self.config_init.fit.ramp.init_from, path, self.typed)
            if starts_run() and any(Path(logger.log_dir) == self.folder for logger in _boards(self.trainer)):
                copy_curves(path, self.folder)
        elif not is_checkpoint_of(self.model.network, path):
            print(load_weights(self.model.network, path))
            arguments["ckpt_path"] = None
            self.results_table.weights = path
        return arguments

    def after_validate(self) -> None:
        """Refuse an empty result."""
        check_images(sum(self.trainer.num_val_batches), "images to validate on")

    def after_test(self) -> None:
        """Refuse an empty result."""
        check_images(sum(self.trainer.num_test_batches), "images to test on")
        self._log_results(self.trainer.callback_metrics)

    def after_predict(self) -> None:
        """Refuse an empty result."""
        check_images(sum(self.trainer.num_predict_batches), "images to predict")

    def after_fit(self) -> None:
        """Test the best checkpoint, if there are test images, and say what to do next."""
        check_images(self.trainer.num_training_batches, "training images")
        trainer, config, checkpoint = self.trainer, self.config_init.fit, self.config_init.fit.checkpoint
        if trainer.global_step == 0:
            raise ValueError("nothing was trained: trainer.max_time is over before the first step")
        best = "" if config.trainer.fast_dev_run else checkpoint.best_model_path or checkpoint.last_model_path
        metrics, holder = dict(trainer.callback_metrics), self.datamodule or self.model
        try:
            if config.test_after_fit and is_overridden("test_dataloader", holder):
                trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best or None, verbose=False)
            elif config.test_after_fit:
                rank_zero_info(f"No test: {type(holder).__name__} has no test_dataloader.")
            self._log_results(metrics | trainer.callback_metrics)
        finally:  # What was trained is there, however its test ends.
            self._say_what_is_next(best)

    def _say_what_is_next(self, best: str) -> None:
        trainer = self.trainer
        if trainer.is_global_zero and best:
            print(f"\nCheckpoint: {best}\n\nNext:")
            for logger in _boards(trainer):
                print(f"  {shlex.join(['tensorboard', '--logdir', logger.root_dir])}")
            saved, holder = str(run_folder(trainer) / "config.yaml"), self.datamodule or self.model
            for command in ("predict", "test"):
                if is_overridden(f"{command}_dataloader", holder):
                    print(f"  {command_line(command, '--config', saved, '--ckpt_path', best)}")
                    break

    def _log_results(self, metrics: Mapping[str, Any]) -> None:
        if self.trainer.is_global_zero:
            for logger in _boards(self.trainer):
                log_results(logger, self.config_dump, metrics)


def _boards(trainer: Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
