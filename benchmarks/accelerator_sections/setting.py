"""Settings that all sections share, their sizes, and the rows that they keep."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

Row: TypeAlias = dict[str, Any]
Precision: TypeAlias = Literal["float32", "tf32", "bfloat16"]

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Recipe:
    """Training whose throughput is measured.

    Attributes:
        name: Name in tables.
        config: Config file, relative to a checkout; None for ResNet-18 with PGD-7 on random images.
        updates: Updates per timed turn.
        batch_size: Images per update; the config's if None.
        precision: The trainer's precision; Lightning's default if None.
    """

    name: str
    config: str | None
    updates: int
    batch_size: int | None = None
    precision: str | None = None


@dataclass(frozen=True)
class Size:
    """Amount of work.

    Attributes:
        cases: Network and batch size of each attack-step table.
        compiled: The cases in which the compiled network is measured too, which takes long to compile.
        steps: Gradient steps per attack: the first number for all contestants, others for Rampart and its baseline.
        precisions: Precisions of Rampart's attack.
        peers: Time libraries too.
        rounds: Least and largest number of timed rounds; fewer if there is no time left.
        agreement_images: Images per network and attack whose results are compared.
        attack_steps: Gradient steps, and a twentieth of the queries, of the compared attacks.
        recipes: Trainings.
        evaluated_images: Images of `evaluate`.
        preset: Preset of `evaluate`.
        evaluate_rounds: Number of evaluations in turn.
        rank_updates: Updates of two processes on one device.
        rank_images: Images per update of two processes together.
        trained: Additional options of the complete training; empty for the config's own length.
    """

    cases: tuple[tuple[str, int], ...]
    compiled: tuple[tuple[str, int], ...]
    steps: tuple[int, ...]
    precisions: tuple[Precision, ...]
    peers: bool
    rounds: tuple[int, int]
    agreement_images: int
    attack_steps: int
    recipes: tuple[Recipe, ...]
    evaluated_images: int
    preset: str
    evaluate_rounds: int
    rank_updates: int
    rank_images: int
    trained: tuple[str, ...] = ()


FAST, QUICKSTART = "configs/mnist/fast.yaml", "configs/quickstart.yaml"

SIZES = {
    "toy": Size(
        cases=(("MNIST CNN", 8), ("ResNet-18", 1)),
        compiled=(),
        steps=(2, 1),
        precisions=("float32", "bfloat16"),
        peers=True,
        rounds=(1, 1),
        agreement_images=4,
        attack_steps=2,
        recipes=(Recipe("quickstart", QUICKSTART, 2, 8),),
        evaluated_images=20,
        preset="quick",
        evaluate_rounds=1,
        rank_updates=2,
        rank_images=8,
        trained=(
            "--ramp.phases=null",
            "--trainer.max_epochs=1",
            "--trainer.limit_train_batches=4",
            "--trainer.limit_test_batches=1",
        ),
    ),
    "cpu": Size(
        cases=(("MNIST CNN", 128), ("gated MNIST CNN", 64), ("ResNet-18", 16)),
        compiled=(),
        steps=(5,),
        precisions=("float32",),
        peers=False,
        rounds=(3, 15),
        agreement_images=32,
        attack_steps=10,
        recipes=(
            Recipe("fast", FAST, 10),
            Recipe("quickstart", QUICKSTART, 20),
            Recipe("ResNet-18, PGD-7", None, 1, 16),
        ),
        evaluated_images=10,
        preset="autoattack",
        evaluate_rounds=3,
        rank_updates=10,
        rank_images=64,
    ),
    "full": Size(
        cases=(
            ("MNIST CNN", 128),
            ("MNIST CNN", 1024),
            ("gated MNIST CNN", 128),
            ("ResNet-18", 128),
            ("ResNet-18", 512),
        ),
        compiled=(("MNIST CNN", 128), ("ResNet-18", 512)),
        steps=(20, 5),
        precisions=("float32", "tf32", "bfloat16"),
        peers=True,
        rounds=(3, 9),
        agreement_images=64,
        attack_steps=20,
        recipes=(
            Recipe("fast", FAST, 50),
            Recipe("quickstart", QUICKSTART, 50),
            Recipe("ResNet-18, PGD-7, bf16", None, 20, 128, "bf16-mixed"),
            Recipe("ResNet-18, PGD-7", None, 5, 512),
        ),
        evaluated_images=1000,
        preset="autoattack",
        evaluate_rounds=1,
        rank_updates=100,
        rank_images=512,
    ),
}


@dataclass(frozen=True)
class Setting:
    """Settings of one section's run.

    Attributes:
        device: Device of the networks, such as ``"cpu"``.
        size: Amount of work.
        data_dir: Folder that holds ``MNIST/raw``; the bundled digits if None.
        baseline: Folder with the source of an earlier commit; None measures no baseline.
        seconds: Time of the section; it is ended soon after.
        seed: Seed of weights, images and attacks.
        started: Clock at which the section began.
    """

    device: str
    size: Size
    data_dir: str | None = None
    baseline: str | None = None
    seconds: float = 60.0
    seed: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def on_cpu(self) -> bool:
        """True if the device is the CPU."""
        return self.device == "cpu"

    def seconds_left(self) -> float:
        """Return the seconds until the section should end."""
        return self.seconds - (time.monotonic() - self.started)

    def data_options(self) -> list[str]:
        """Return the command line's options for MNIST, or for the bundled digits if there is no folder."""
        if self.data_dir is None:
            return ["--data", "DigitsDataModule"]
        return ["--data", "MNISTDataModule", "--data.data_dir", str(Path(self.data_dir).resolve())]


class Rows:
    """Rows of a section, written after each addition, so that an ended process loses none.

    Args:
        write: Function that keeps the section's rows so far.
    """

    def __init__(self, write: Callable[[list[Row]], None] | None = None) -> None:
        self.rows: list[Row] = []
        self._write = write

    def add(self, table: str, **row: Any) -> Row:
        """Add a row to a table, print it, and return it."""
        self.rows.append({"table": table} | row)
        print(json.dumps(self.rows[-1]), flush=True)
        if self._write:
            self._write(self.rows)
        return self.rows[-1]

    def leave_out(self, what: str, why: object) -> None:
        """Add a line that something was not measured."""
        reason = " ".join(str(why).split()) or type(why).__name__
        self.add("left out", what=what, why=reason[:300])
