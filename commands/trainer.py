"""Lightning's trainer with two more commands, ``evaluate`` and ``export``."""

from pathlib import Path
from typing import get_args

from pytorch_lightning import LightningDataModule, Trainer

from callbacks.outputs import run_folder
from commands.evaluate import choose_attacks, evaluate
from lightning_modules import AdversarialClassifier
from rampart.attacks import Attack, Eps, NormName
from rampart.evaluation import Preset
from rampart.files import export_network, load_weights
from rampart.files.export import ExportFormat, check_export, name_file


class RampartTrainer(Trainer):
    """Lightning's trainer with two more commands.

    Attributes:
        run_folder: Folder for all files of the run; the trainer's default folder if None.
        resume_path: Checkpoint that training resumes from, as rank 0 has chosen it; None for a new run.
        run_seed: Seed of the run; see `rampart.attacks.random`.
    """

    run_folder: Path | None = None
    resume_path: str | None = None
    run_seed: int | None = None

    @property
    def log_dir(self) -> str:
        """Folder of the run, the same for every logger; reading it needs no communication between processes."""
        return str(self.run_folder or self.default_root_dir)

    def export(
        self,
        model: AdversarialClassifier,
        datamodule: LightningDataModule | None = None,  # noqa: ARG002 - the command line passes it to every command
        ckpt_path: str | None = None,
        formats: tuple[ExportFormat, ...] = ("pth", "safetensors", "onnx"),
        image_shape: tuple[int, int, int] | None = None,
        weights_only: bool | None = None,  # noqa: ARG002 - a config saved by fit has it
    ) -> None:
        """Write a trained network as a plain state_dict (.pth), as safetensors and as ONNX, into the run's folder.

        Args:
            model: Module with the network.
            datamodule: Not used.
            ckpt_path: Lightning checkpoint, .pth or .safetensors.
            formats: Files to write. Two more are for other programs: robustness (a ResNet, for make_and_restore_model
                of the library) and shaeiri (MNISTCNN or ResNet50, for test.py of the paper's authors).
            image_shape: Image shape ``(C, H, W)`` for ONNX; the network's attribute ``image_shape`` if None.
            weights_only: Not used: only tensors and plain values are ever read from a file.

        Raises:
            ValueError: If ckpt_path, formats or the image shape for ONNX is missing, or a format has no such network.
            FileExistsError: If one of the files exists already; then none is written.
        """
        if ckpt_path is None:
            raise ValueError("export needs --ckpt_path: a Lightning checkpoint, .pth or .safetensors")
        if not formats:
            raise ValueError(f"formats must be at least one of {', '.join(get_args(ExportFormat))}, got none")
        paths = [run_folder(self) / name_file("network", name) for name in formats]
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
        certify: bool | None = None,
        skip_certified: bool = False,
        weights_only: bool | None = None,  # noqa: ARG002 - a config saved by fit has it
    ) -> None:
        """Evaluate each test image under several attacks and write a report.

        Prints a table, and writes report.json, per_image.csv, figures and report.html to the run's folder. The images
        are those of ``test``. Results are cached per batch: run an interrupted command again to resume it, or run it
        several times in parallel, on devices or machines that share runs_dir, to share the work. Computes in float32
        (float64 if the network's weights are) and ignores trainer.precision: lower precision rounds by more than a
        small eps.

        Args:
            model: Module with the network.
            datamodule: Data module with the test images.
            ckpt_path: Lightning checkpoint, .pth or .safetensors; None if the network is built with its weights.
            preset: Set of attacks: quick, paper (PGD-200), pgd (ten restarts, best iterate) or autoattack (standard);
                the default is autoattack.
            attacks: Custom attacks in place of a preset.
            norm: Norm of the preset's attacks, Linf or L2; that of the model's attack if None.
            eps: Increasing radii on the pixel scale; the model's target eps if None (AdversarialClassifier has none by
                default).
            num_images: Use only the first images of the test set; all if None.
            batch_size: Images per batch.
            certify: Also give a lower bound: the images that no perturbation up to eps fools, by proof (Linf only). If
                None, do so if the network has a bound for each of its layers.
            skip_certified: Attack an image that is certified at an eps by the first attack alone, as a check. The
                results are the same: no attack can fool it.
            weights_only: Not used: only tensors and plain values are ever read from a file.

        Raises:
            ValueError: If weights, eps or test data are missing, a setting is out of range, images, labels or logits
                are invalid, or the results contradict one another.
        """
        chosen, sizes = choose_attacks(model, preset, attacks, norm, eps)
        evaluate(self, model, datamodule, ckpt_path, chosen, sizes, num_images, batch_size, certify, skip_certified)
