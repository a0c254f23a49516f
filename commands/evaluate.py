"""The evaluate command: worst case of each test image over several attacks, as a table and a report."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import nn
from torch.nn.parameter import is_lazy

from callbacks.outputs import run_folder, save_figure, warn_if_not_drawn
from commands.custom_network import add_network_hooks, may_be_trained
from commands.evaluation_progress import EvaluationProgress
from commands.interruption import Interrupted, signals
from commands.lightning_batches import run_on_test_batches
from lightning_modules import AdversarialClassifier
from rampart.attacks import Attack, Eps, NormName
from rampart.attacks.random import run_seed
from rampart.evaluation import (
    Certifier,
    Preset,
    Source,
    WorstCase,
    WorstCaseSearch,
    build_report,
    find_masking_signs,
    format_table,
    preset_attacks,
    render_html,
    worst_case_figures,
    write_per_image,
)
from rampart.files import fingerprint, load_weights, write_whole


def evaluate(
    trainer: Trainer,
    model: AdversarialClassifier,
    datamodule: LightningDataModule | None,
    ckpt_path: str | None,
    attacks: Sequence[Attack],
    eps: Sequence[Eps],
    num_images: int | None,
    batch_size: int,
    certify: bool | None = None,
    skip_certified: bool = False,
) -> None:
    """Attack the test images with all attacks, and write the report.

    Args:
        trainer: Trainer whose run folder, device and ``limit_test_batches`` are used.
        model: Lightning module with the network to evaluate.
        datamodule: Data module with the test images; None if the model has a ``test_dataloader``.
        ckpt_path: Lightning checkpoint, .pth or .safetensors; None if the network has its weights already.
        attacks: Attacks in the order in which they run, cheapest first.
        eps: Increasing radii on the pixel scale.
        num_images: Use only the first images of the test set; all if None.
        batch_size: Images per batch.
        certify: Certify images too. If None, do it if the network can be bounded; the report says why if it can't.
        skip_certified: Attack images that are certified at an eps by the first attack alone.

    Raises:
        ValueError: If weights, test data or required certificates are missing, a setting is out of range, an image, a
            label or a logit is invalid, an attack fails, or the results contradict one another.
    """
    _check_options(certify, skip_certified)
    _check_test_data(model, datamodule)
    print(_prepare_weights(model, ckpt_path))
    model = add_network_hooks(model).eval()
    seed, searches = run_seed(trainer), run_folder(trainer).parent / "searches"
    searches.mkdir(parents=True, exist_ok=True)

    def search_and_report(source: Source) -> None:
        bounds = None if certify is False else _build_certifier(model, certify is True, skip_certified)
        search = WorstCaseSearch(
            model.evaluated_network.eval(), source, attacks, eps, searches, batch_size, seed, num_images, bounds
        )
        _write_report(trainer, model, search, _run_search(trainer, search), ckpt_path)

    try:
        with model.execution.evaluation(trainer.strategy.root_device.type):
            run_on_test_batches(trainer, model, datamodule, search_and_report, searches / "data.lock", seed)
    except Interrupted as end:
        end.advice = f"the same command resumes; finished batches are cached in {searches}"
        raise


def choose_attacks(
    model: AdversarialClassifier,
    preset: Preset | None,
    attacks: Sequence[Attack] | None,
    norm: NormName | None,
    eps: Sequence[Eps] | None,
) -> tuple[Sequence[Attack], Sequence[Eps]]:
    """Return the attacks and the radii of an evaluation, all in one norm.

    Args:
        model: Classifier whose norm and target eps are the defaults.
        preset: Named set of attacks; autoattack if neither preset nor attacks are given.
        attacks: Custom attacks in place of a preset.
        norm: Norm of the preset; the model's if None.
        eps: Increasing radii on the pixel scale; the model's target eps if None.

    Raises:
        ValueError: If two arguments contradict each other, or no eps is given.
    """
    own = model.attack.norm
    if attacks is not None:
        if preset is not None:
            raise ValueError(f"preset and attacks exclude each other: leave out --preset {preset} or --attacks")
        others = [f"{attack.name} ({attack.norm})" for attack in attacks if norm not in (None, attack.norm)]
        if others:
            raise ValueError(f"norm must be that of the attacks, got {norm} and {others[0]}: leave out --norm")
    chosen = preset_attacks(preset or "autoattack", norm or own) if attacks is None else tuple(attacks)
    if eps is not None:
        return chosen, eps
    if model.target_eps == 0:
        raise ValueError("eps must be given: --eps '[8/255]'")
    if chosen and chosen[0].norm != own:
        raise ValueError(
            f"eps must be given for attacks in {chosen[0].norm}: the model's target eps, {model.target_eps:g}, is a "
            f"radius in {own}"
        )
    return chosen, (model.target_eps,)


def _check_test_data(model: AdversarialClassifier, datamodule: LightningDataModule | None) -> None:
    holder: Any = model if datamodule is None else datamodule
    if not is_overridden("test_dataloader", holder):
        what = "no --data was given" if datamodule is None else f"{type(datamodule).__name__} has no test_dataloader"
        raise ValueError(f"evaluate needs test images, and {what}: give a LightningDataModule that has one")


def _prepare_weights(model: AdversarialClassifier, ckpt_path: str | None) -> str:
    """Load the weights from a file, if one is given, and return a sentence that names the evaluated weights."""
    if not isinstance(model.network, nn.Module):
        kind = type(model.network).__name__
        raise ValueError(
            f"model.network must be a network (torch.nn.Module) or a function that returns one, got a {kind}"
        )
    network = model.network
    if isinstance(network, LightningModule):
        network.configure_model()  # May create layers; Lightning allows repeated calls.
    if any(map(is_lazy, network.parameters())):
        raise ValueError(f"{type(network).__name__} has lazy layers without a shape: give the network an image first")
    if torch.float64 not in {parameter.dtype for parameter in network.parameters()}:
        network.float()
    if ckpt_path is not None:
        return str(load_weights(network, ckpt_path))
    if not may_be_trained(model):
        raise ValueError("evaluate needs --ckpt_path: a Lightning checkpoint, .pth or .safetensors")
    state = network.state_dict().values()
    numbers = sum(tensor.numel() for tensor in state)
    return (
        f"No --ckpt_path: evaluating {type(network).__name__} with the weights that it was built with "
        f"({numbers:,} numbers, SHA-256 {fingerprint(*state)[:16]})"
    )


def _check_options(certify: bool | None, skip_certified: bool) -> None:
    if skip_certified and certify is False:
        raise ValueError("skip_certified needs certificates: leave out --certify false")


def _build_certifier(model: AdversarialClassifier, required: bool, skip_certified: bool) -> Certifier:
    """Bound the training form: it is the same function as the attacked form, and its bounds may be tighter."""
    return Certifier(model.network, required, skip_certified=skip_certified)


def _run_search(trainer: Trainer, search: WorstCaseSearch) -> WorstCase:
    signals.progress = True
    with EvaluationProgress(search, _is_first_process() and trainer.progress_bar_callback is not None) as progress:
        return search.run(progress)


def _is_first_process() -> bool:
    # Not by the trainer's rank: torchrun may start more processes than it knows of.
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]


def _write_report(
    trainer: Trainer, model: AdversarialClassifier, search: WorstCaseSearch, found: WorstCase, ckpt_path: str | None
) -> None:
    if not _is_first_process():
        return
    target_eps = (model.target_eps if search.norm == model.attack.norm else 0.0) or search.eps[-1]
    names = [attack.name for attack in search.attacks]
    signs = find_masking_signs(search.model, search.clean_pass.probe, found, names)
    report = build_report(search, found, signs, str(trainer.precision))
    folder = run_folder(trainer)
    write_whole(folder / "report.json", json.dumps(report, indent=2, default=str) + "\n")
    write_per_image(folder / "per_image.csv", found, names, search.norm, search.eps)
    print(f"\n{format_table(report)}\n")
    intervals = [rate["interval_95"] for rate in (report["clean"], *report["robust"])]
    certified = [rate["interval_95"] for rate in (report["certificates"] or {}).get("certified", [])]
    pictures: dict[str, bytes] = {}
    with warn_if_not_drawn("the figures"):
        for name, figure in worst_case_figures(found, search.eps, target_eps, intervals, certified).items():
            pictures[name] = save_figure(trainer, f"evaluate/{name}", figure, name).read_bytes()
    page = folder / "report.html"
    write_whole(page, render_html(report, pictures, ckpt_path or type(search.model).__name__))
    print(f"Report: {page}")
