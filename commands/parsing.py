"""The command line's parser: options, help and error messages of all commands."""

import pkgutil
import sys
from argparse import ArgumentError
from typing import Any

import torch
from jsonargparse.typing import register_type
from pytorch_lightning import LightningDataModule
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from torch import Tensor

import datamodules  # noqa: F401 (so that `data: MNISTDataModule` needs no package name)
from callbacks import (
    AdversarialImagesCallback,
    CollapseGuard,
    EpsilonRampCallback,
    RobustnessCurveCallback,
    RunCheckpoint,
)
from commands.config_files import check_configs, read_old_configs, update_words
from commands.custom_network import declare_network
from commands.help import COMMANDS, OPTIONS, USE, RampartParser
from commands.messages import command_line
from commands.parse_errors import explain, find_refused_network, move_network_option, wrap_single_value
from commands.trainer import RampartTrainer
from commands.trainer_settings import check_seed
from lightning_modules import AdversarialClassifier
from rampart.kernels import Execution

# Class weights of a loss are written as a list in a config: [1, 1, 2.5].
register_type(Tensor, serializer=Tensor.tolist, deserializer=lambda numbers: torch.tensor(numbers, dtype=torch.float32))
read_old_configs()


class ParsingCLI(LightningCLI):
    """LightningCLI with Rampart's options, help and error messages."""

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
            # Attacks work in inference mode too, but then copy each batch once more.
            trainer_defaults={"inference_mode": False, "enable_model_summary": False},
            auto_configure_optimizers=False,
            parser_class=RampartParser,
            save_config_callback=None,  # it would write to the logger's folder, and only for some commands
            args=args,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static in the base class, but called on the object
        """Return the typed command alone, because building a parser takes time; all commands if it is unknown."""
        known = LightningCLI.subcommands() | {name: {"model", "datamodule"} for name in ("evaluate", "export")}
        return {self.command: known[self.command]} if self.command in known else known

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Create a parser that raises its errors and whose help begins with examples."""
        kwargs = {"description": None, "exit_on_error": False, "allow_abbrev": False} | kwargs
        parser = super().init_parser(**kwargs)
        assert isinstance(parser, RampartParser)
        parser.introduction = USE.format(program=command_line())
        return parser

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """Add the commands, each described in a sentence."""
        super()._add_subcommands(parser, **kwargs)
        subcommands: Any = parser._subcommands_action
        for action in subcommands._choices_actions:
            action.help = COMMANDS[action.dest]

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Create a command's parser: Rampart's options first; ``verbose`` off, since Rampart prints its own table."""
        usage = f"{command_line(subcommand)} [--config FILE] [--OPTION VALUE ...]"
        parser = super()._prepare_subcommand_parser(
            klass, subcommand, **kwargs | {"description": COMMANDS[subcommand], "usage": usage}
        )
        assert isinstance(parser, RampartParser)
        if subcommand in ("validate", "test"):
            parser.set_defaults(verbose=False)
        for option, text in OPTIONS.items():
            parser._option_string_actions[option].help = text
        parser.order_groups()
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the callbacks of every run, of execution, and of the run's folder."""
        parser.add_lightning_class_args(EpsilonRampCallback, "ramp")
        parser.add_lightning_class_args(CollapseGuard, "guard")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(AdversarialImagesCallback, "images")
        parser.add_lightning_class_args(RobustnessCurveCallback, "curve")
        parser.add_class_arguments(Execution, "execution")
        parser.set_defaults(
            {
                "model": {"class_path": "lightning_modules.AdversarialClassifier"},
                "checkpoint.monitor": "auto",
                "checkpoint.mode": "max",
                "checkpoint.save_last": True,
                "checkpoint.filename": "epoch{epoch}-step{step}",
                "checkpoint.auto_insert_metric_name": False,
            }
        )
        parser.add_argument("--name", type=str, default="unnamed", help="Name of the experiment.")
        parser.add_argument(
            "--runs_dir",
            type=str,
            default="runs",
            help="Folder of all runs; a run's files are in RUNS_DIR/NAME/COMMAND-N.",
        )
        parser.add_argument(
            "--test_after_fit", type=bool, default=True, help="Test the best checkpoint at the end of fit."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line; a single value is accepted in place of a list of one.

        Raises:
            ArgumentError: If an option is unknown, a value is not allowed or a config file can't be read.
        """
        words: list[str] | None = update_words(sys.argv[1:] if args is None else args)
        while words is not None:
            given = words
            try:
                self.typed = given
                check_configs(given)
                self.config = parser.parse_args(given)
                check_seed(self.config[self.config.subcommand].seed_everything)
                return
            except (ArgumentError, ValueError) as error:
                words = self._correct_words(str(error), given)
                if words is None:
                    command = next((word for word in given if word in self._subcommand_parsers), None)
                    options = self._subcommand_parsers[command]._option_string_actions if command else {}
                    raise ArgumentError(None, explain(str(error), options)) from error

    def _correct_words(self, message: str, words: list[str]) -> list[str] | None:
        """Return the words to parse after an error, if the error can be corrected; otherwise None.

        Raises:
            ArgumentError: If a network is given as the model, or ``model.network`` is not a network.
        """
        if (path := find_refused_network(message)) is not None:
            try:
                return words if declare_network(path) else None
            except ValueError as error:
                raise ArgumentError(None, f"--model.network {error}") from error
        if (corrected := move_network_option(message, words)) is not None:
            example = command_line(*corrected)
            raise ArgumentError(None, f"--model takes an AdversarialClassifier, not a network; use {example}")
        return wrap_single_value(message, words)

    def before_instantiate_classes(self) -> None:
        """Set model.eps to 0 for commands that need no target eps, unless the user or the model's class sets it."""
        model = self.config[self.config.subcommand].model
        if self.config.subcommand not in ("evaluate", "export") or model is None:
            return
        default = getattr(pkgutil.resolve_name(model.class_path), "default_eps", None)
        if default is None and "eps" in model.init_args and model.init_args.eps is None:
            model.init_args.eps = 0.0
