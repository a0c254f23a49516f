"""Rampart's command line: ``python cli.py fit --config configs/quickstart.yaml``."""

import logging
import pkgutil
import sys
import warnings
from argparse import ArgumentError
from pathlib import Path
from types import FunctionType
from typing import Any

from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch import nn
from tqdm import tqdm

import datamodules  # noqa: F401 (so that `data: MNISTDataModule` needs no package name)
from callbacks import (
    AdversarialImagesCallback,
    EpsilonRampCallback,
    PredictionWriterCallback,
    RampartProgressBar,
    ResultsTableCallback,
    RobustnessCurveCallback,
)
from callbacks.outputs import run_folder
from lightning_modules import AdversarialClassifier
from networks.weights import LIGHTNING_KEY, load_weights, read_checkpoint
from trainer import RampartTrainer


class RampartCLI(LightningCLI):
    """LightningCLI with the epsilon ramp, the pictures, the table and a new folder for every run."""

    def __init__(self, args: list[str] | None = None) -> None:
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
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's commands, evaluate and export."""
        return LightningCLI.subcommands() | {name: {"model", "datamodule"} for name in ("evaluate", "export")}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Let parse errors reach :func:`main`."""
        return super().init_parser(exit_on_error=False, allow_abbrev=False, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks that every run has, and where a run's files go."""
        parser.add_lightning_class_args(EpsilonRampCallback, "ramp")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
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

    def before_instantiate_classes(self) -> None:
        """Save the last weights after every epoch where nothing else is asked for.

        Lightning would wait for a validation, and lose a run that has none and is stopped.
        """
        checkpoint = self.config[self.subcommand].checkpoint
        if checkpoint.monitor is None and checkpoint.save_on_train_epoch_end is None:
            checkpoint.save_on_train_epoch_end = True

    def _parse_ckpt_path(self) -> None:
        """Leave the command line its say: Lightning would let the checkpoint's hyper-parameters override it."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Give the run a folder of its own, its logger and the callbacks that take no settings."""
        config = self.config_init[self.subcommand]
        folder = _new_run_folder(config.runs_dir, config.name, str(self.subcommand))
        if config.trainer.logger in (None, True) and not config.trainer.fast_dev_run:
            kwargs["logger"] = TensorBoardLogger(
                folder.parent.parent, name=folder.parent.name, version=folder.name, default_hp_metric=False
            )
        if config.trainer.default_root_dir is None:
            kwargs["default_root_dir"] = folder
        self.results_table = ResultsTableCallback()
        kwargs["callbacks"] = [*_as_list(config.trainer.callbacks), self.results_table, PredictionWriterCallback()]
        if config.trainer.enable_progress_bar is not False:
            kwargs["callbacks"].append(RampartProgressBar())
        return super().instantiate_trainer(**kwargs)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Check a ``ckpt_path`` before Lightning reads it, and take plain weights where no training goes on."""
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        path = arguments.get("ckpt_path")
        if path in ("best", "last"):
            raise ValueError(f"ckpt_path must be a file, got {path!r}: every run has a folder of its own")
        if path is None and subcommand not in ("fit", "evaluate", "export"):
            print(f"No --ckpt_path: {subcommand} takes the network's weights as it was built with them.")
        if path in (None, "hpc") or subcommand in ("evaluate", "export"):
            return arguments
        if LIGHTNING_KEY not in read_checkpoint(path):
            if subcommand == "fit":
                raise ValueError(f"{path} holds weights alone, a run can't be resumed from it: use --ramp.init_from")
            print(load_weights(self.model.network, path))
            arguments["ckpt_path"] = None
            self.results_table.weights = path
        return arguments

    def after_fit(self) -> None:
        """Test the best checkpoint and say what to do next."""
        trainer, config = self.trainer, self.config_init[self.subcommand]
        checkpoint = trainer.checkpoint_callback
        best = ""
        if isinstance(checkpoint, ModelCheckpoint):
            best = checkpoint.best_model_path or checkpoint.last_model_path
        if config.test_after_fit:
            trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best or None, verbose=False)
        if trainer.is_global_zero and best:
            folder = run_folder(trainer)
            print(
                f"\nCheckpoint: {best}\n\nNext:\n"
                f"  tensorboard --logdir {folder.parent}\n"
                f"  python cli.py predict --config {folder / 'config.yaml'} --ckpt_path {best}"
            )


def _new_run_folder(runs_dir: str, name: str, subcommand: str) -> Path:
    """Claim a folder that no run has had; other ranks take rank 0's word for it."""
    if name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"name must be a folder's name without a path, got {name!r}: use runs_dir for the path")
    parent, number = Path(runs_dir) / name, 0
    while True:
        folder = parent / f"{subcommand}-{number}"
        try:
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def _as_list(callbacks: Any) -> list[Any]:
    if callbacks is None:
        return []
    return callbacks if isinstance(callbacks, list) else [callbacks]


def any_network(arguments: list[str]) -> list[str]:
    """Let evaluate's ``--model`` be any network: the import path of an nn.Module or of a function that makes one.

    Args:
        arguments: Of the command line.

    Returns:
        The same, with such a network in an AdversarialClassifier.

    Raises:
        ValueError: If the path leads nowhere, or to what is neither a class nor a function.
    """
    path, rest, after = "", [], 0
    words = iter(arguments)
    for word in words:
        flag, _, value = word.partition("=")
        if flag == "--model":
            path = value or next(words, "")
            continue
        rest.append(word)
        if flag in ("--config", "-c"):
            rest += [] if value else [next(words, "")]
        if flag in ("--config", "-c", "evaluate"):
            after = len(rest)  # what a config says of the model is overridden
    dotted = "." in path and all(part.isidentifier() for part in path.split("."))
    if "evaluate" not in rest or not dotted or path.endswith((".yaml", ".yml", ".json")):
        return arguments
    try:
        factory = pkgutil.resolve_name(path)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"model must be the import path of a network or of a function that makes one: {error}"
        ) from error
    if isinstance(factory, type) and issubclass(factory, LightningModule):
        return arguments
    if not isinstance(factory, (type, FunctionType)):
        raise ValueError(f"model must be a class or a function, got {path}, which is a {type(factory).__name__}")
    if isinstance(factory, FunctionType):
        # Of functions, only those are built that say what they return.
        factory.__annotations__.setdefault("return", nn.Module)
    eps = [] if any(word.partition("=")[0] == "--model.eps" for word in rest) else ["--model.eps=0"]
    return [*rest[:after], "--model=AdversarialClassifier", f"--model.network={path}", *eps, *rest[after:]]


def one_line(message: str) -> str:
    """Reduce jsonargparse's tree of tried types to the branch that says what is wrong."""
    noise = (
        "Does not validate against any",
        "Subtypes:",
        "Errors:",
        "Expected a <class 'NoneType'>",
        "Given value",
        "Expected a path",
    )
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith(noise))
    return f"{text} (--print_config shows the accepted ones)" if text.endswith("is not accepted") else text


def _keep_quiet() -> None:
    """Leave out what is of no use to anyone here."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # Without validation images there is no validation, which is what was asked for.
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
    # Lightning suspects that its default was overlooked; here the default is `step`, so `epoch` was chosen.
    warnings.filterwarnings("ignore", message=".*OneCycleLR.*'interval': 'epoch'.*")
    rank_zero_log = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    rank_zero_log.addFilter(lambda record: "litlogger" not in record.getMessage())


def main(args: list[str] | None = None) -> None:
    """Run a command; an error becomes one line and exit status 1, or 2 for a wrong command line.

    ``--traceback`` anywhere among the arguments shows the full trace instead.
    """
    arguments = sys.argv if args is None else args
    full_trace = "--traceback" in arguments
    if full_trace:
        arguments.remove("--traceback")
    _keep_quiet()
    try:
        arguments[:] = any_network(arguments)
        RampartCLI(args)
    except Exception as error:
        if full_trace:
            raise
        # Through tqdm, so that no half-drawn progress bar stands in the same line.
        tqdm.write(f"error: {one_line(str(error)) or type(error).__name__}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ArgumentError) else 1)


if __name__ == "__main__":
    main()
