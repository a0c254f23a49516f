"""Lightning's trainer, with the commands that judge a trained network and hand it on."""

import json
from pathlib import Path

import torch
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.utilities import rank_zero_only

from attacks import Attack, Eps
from attacks.draws import run_seed
from callbacks.outputs import run_folder, save_figure
from evaluation import (
    PRESETS,
    Preset,
    WorstCase,
    WorstCaseSearch,
    html_of,
    masking_signs,
    report_of,
    table_of,
    worst_case_figures,
    write_per_image,
)
from lightning_modules import AdversarialClassifier
from networks.export import ExportFormat, check_export, export_network
from networks.weights import load_weights


class RampartTrainer(Trainer):
    """Lightning's trainer, with two commands more.

    Attributes:
        run_folder: Gets all that the run makes, whatever the loggers; the trainer's default folder if None.
        run_seed: The run's seed; see `attacks.draws`.
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
            ValueError: If no ckpt_path is given, or neither argument nor network say the images' shape to ONNX.
            FileExistsError: If a file exists; then none is written.
        """
        if ckpt_path is None:
            raise ValueError("export needs --ckpt_path: a Lightning checkpoint, .pth or .safetensors")
        paths = [run_folder(self) / f"network.{suffix}" for suffix in formats]
        check_export(model.network, paths, image_shape)
        print(load_weights(model.network, ckpt_path))
        for path in paths:
            export_network(model.network, path, image_shape)
            print(f"Wrote {path}")

    def evaluate(
        self,
        model: AdversarialClassifier,
        datamodule: LightningDataModule,
        ckpt_path: str | None = None,
        preset: Preset = "autoattack",
        attacks: tuple[Attack, ...] | None = None,
        eps: tuple[Eps, ...] | None = None,
        num_images: int | None = None,
        batch_size: int = 250,
        weights_only: bool | None = None,  # noqa: ARG002 - a config that a fit has saved holds it
    ) -> None:
        """Find each test image's worst case over attacks and report what stands.

        Prints a table, and writes report.json, per_image.csv, figures and report.html into the run's folder. A command
        that was killed, given again, goes on where it was; given several times at once, on several devices or machines
        that share the folder of the runs, it is done that much sooner. The network's weights are made float32,
        the images' dtype, and the trainer's precision is not used: a coarser one rounds by more than a small eps.

        Args:
            model: Holds the network.
            datamodule: Holds the test images.
            ckpt_path: A Lightning checkpoint, .pth or .safetensors.
            preset: Which attacks: quick, paper (PGD-200), pgd (ten restarts, best iterate) or autoattack (standard).
            attacks: These attacks instead.
            eps: Rising; the model's target eps if None, which a network of one's own (--model) does not have.
            num_images: How many of the first test images; all if None.
            batch_size: Images of a batch.
            weights_only: Not used: a file is never read otherwise.

        Raises:
            ValueError: If no ckpt_path or no eps is given, a setting is out of its range, or the numbers contradict one
                another.
        """
        if ckpt_path is None:
            raise ValueError("evaluate needs --ckpt_path: a Lightning checkpoint, .pth or .safetensors")
        if eps is None and model.target_eps == 0:
            raise ValueError("eps must be given: --eps '[8/255]'")
        print(load_weights(model.network.float(), ckpt_path))
        network = model.to(self.strategy.root_device).judged_network.eval()
        images, labels = _first_test_images(datamodule, num_images)
        chosen = PRESETS[preset] if attacks is None else attacks
        search = WorstCaseSearch(
            network,
            images.to(self.strategy.root_device),
            labels.to(self.strategy.root_device),
            chosen,
            (model.target_eps,) if eps is None else eps,
            store=run_folder(self).parent / "searches",
            batch_size=batch_size,
            seed=run_seed(self),
        )

        @rank_zero_only
        def tell(at: int, part: WorstCase) -> None:
            stood = ", ".join(f"{stage.attack} @ {stage.eps:g} {stage.standing}" for stage in part.stages)
            print(
                f"batch {at + 1} of {search.batches}: clean {part.standing(0)} of {len(part.labels)}, {stood}",
                flush=True,
            )

        found = search.run(tell)
        if rank_zero_only.rank != 0:  # type: ignore[attr-defined] # not the trainer's: torchrun may start more than it knows
            return
        names = [attack.name for attack in chosen]
        report = report_of(search, found, masking_signs(network, search.images, search.labels, found, names))
        folder = run_folder(self)
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        write_per_image(folder / "per_image.csv", found, names)
        print(f"\n{table_of(report)}\n")
        intervals = [rate["interval_95"] for rate in (report["clean"], *report["robust"])]
        target = model.target_eps or search.eps[-1]
        drawn = worst_case_figures(found, search.images, search.eps, target, intervals)
        pictures = {name: save_figure(self, name, figure).read_bytes() for name, figure in drawn.items()}
        page = folder / "report.html"
        page.write_text(html_of(report, pictures, Path(ckpt_path).name), encoding="utf-8")
        print(f"Report: {page}")


def _first_test_images(data: LightningDataModule, count: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The first test images and their labels, all if ``count`` is None.

    Raises:
        ValueError: If ``count`` is not in the test set's range.
    """
    data.prepare_data()
    data.setup("test")
    images, labels = [], []
    for batch in data.test_dataloader():
        images.append(batch[0])
        labels.append(batch[1])
        if count is not None and sum(map(len, labels)) >= count:
            break
    total = sum(map(len, labels))
    if count is not None and not 1 <= count <= total:
        raise ValueError(f"num_images must be from 1 to the test images' number, {total}, got {count}")
    return torch.cat(images)[:count], torch.cat(labels)[:count]
