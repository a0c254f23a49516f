"""Lightning's trainer, with the commands that judge a trained network and hand it on."""

from pathlib import Path
from typing import get_args

from pytorch_lightning import LightningDataModule, Trainer

from callbacks.outputs import run_folder
from commands.evaluate import choose_attacks, evaluate
from lightning_modules import AdversarialClassifier
from rampart.attacks import Attack, Eps
from rampart.attacks.eps import NormName
from rampart.evaluation import Preset
from rampart.files.export import ExportFormat, check_export, export_network
from rampart.files.weights import load_weights


class RampartTrainer(Trainer):
    """Lightning's trainer, with two commands more.

    Attributes:
        run_folder: Gets all that the run makes, whatever the loggers; the trainer's default folder if None.
        run_seed: The run's seed; see `rampart.attacks.random`.
    """

    run_folder: Path | None = None
    run_seed: int | None = None

    @property
    def log_dir(self) -> str:
        """The run's folder, the same for every logger; not a collective."""
        return str(self.run_folder or self.default_root_dir)

    def export(
        self,
        model: AdversarialClassifier,
        datamodule: LightningDataModule | None = None,  # noqa: ARG002 - the command line hands it to every command
        ckpt_path: str | None = None,
        formats: tuple[ExportFormat, ...] = ("pth", "safetensors", "onnx"),
        image_shape: tuple[int, int, int] | None = None,
        weights_only: bool | None = None,  # noqa: ARG002 - a config that a fit has saved holds it
    ) -> None:
        """Write a trained network as a plain state_dict (.pth), as safetensors and as ONNX, into the run's folder.

        Args:
            model: Holds the network.
            datamodule: Not used.
            ckpt_path: A Lightning checkpoint, .pth or .safetensors.
            formats: Which files to write.
            image_shape: ``(C, H, W)`` for ONNX; the network's own ``image_shape`` if None.
            weights_only: Not used: a file is never read otherwise.

        Raises:
            ValueError: If no ckpt_path or no format is given, or nothing says the images' shape to ONNX.
            FileExistsError: If a file exists; then none is written.
        """
        if ckpt_path is None:
            raise ValueError("export needs --ckpt_path: a Lightning checkpoint, .pth or .safetensors")
        if not formats:
            raise ValueError(f"formats must be at least one of {', '.join(get_args(ExportFormat))}, got none")
        paths = [run_folder(self) / f"network.{suffix}" for suffix in formats]
        check_export(model.network, paths, image_shape)
        print(load_weights(model.network, ckpt_path))
        for path in paths:
            export_network(model.network, path, image_shape)
            print(f"Wrote {path}")

    def evaluate(
        self,
        model: AdversarialClassifier,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        preset: Preset | None = None,
        attacks: tuple[Attack, ...] | None = None,
        norm: NormName | None = None,
        eps: tuple[Eps, ...] | None = None,
        num_images: int | None = None,
        batch_size: int = 250,
        weights_only: bool | None = None,  # noqa: ARG002 - a config that a fit has saved holds it
    ) -> None:
        """Find each test image's worst case over attacks and report what is robust.

        Prints a table, and writes report.json, per_image.csv, figures and report.html into the run's folder. The images
        are those that test sees. A command that was killed, given again, resumes; given several times at once, on
        several devices or machines that share the folder of the runs, it is done that much sooner. The network's
        weights are made float32, the images' dtype, and the trainer's precision is not used: a coarser one rounds
        by more than a small eps.

        Args:
            model: Holds the network.
            datamodule: Holds the test images.
            ckpt_path: A Lightning checkpoint, .pth or .safetensors; not needed for a network that brings its weights.
            preset: Which attacks: quick, paper (PGD-200), pgd (ten restarts, best iterate) or autoattack (standard);
                autoattack if neither this nor attacks are given.
            attacks: These attacks instead.
            norm: Of the preset, Linf or L2; that of the model's attack if None.
            eps: Increasing values; the model's target eps if None (AdversarialClassifier has none by default).
            num_images: How many of the first test images; all if None.
            batch_size: Images of a batch.
            weights_only: Not used: a file is never read otherwise.

        Raises:
            ValueError: If weights, eps or test data are missing, a setting is out of its range, images, labels or
                logits are not as they must be, or the numbers contradict one another.
        """
        chosen, sizes = choose_attacks(model, preset, attacks, norm, eps)
        evaluate(self, model, datamodule, ckpt_path, chosen, sizes, num_images, batch_size)
