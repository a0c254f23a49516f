"""The norm of an evaluation, its seed, and what its report records."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cli import main
from commands.evaluate import choose_attacks
from lightning_modules import AdversarialClassifier
from rampart.attacks import PGD, Attack, NormName, Square
from rampart.evaluation import Preset, preset_attacks
from rampart.networks import MNISTCNN


def model(norm: NormName, eps: float) -> AdversarialClassifier:
    return AdversarialClassifier(nn.Linear(2, 2), eps, attack=PGD(norm=norm))


@pytest.mark.parametrize("preset", ["quick", "pgd", "autoattack"])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_presets_follow_the_models_norm(preset: Preset, norm: NormName) -> None:
    attacks, eps = choose_attacks(model(norm, 0.5), preset, None, None, None)
    assert {attack.norm for attack in attacks} == {norm}
    assert eps == (0.5,)
    assert [type(attack) for attack in attacks] == [type(attack) for attack in preset_attacks(preset)]


def test_autoattack_is_the_default() -> None:
    attacks, _ = choose_attacks(model("L2", 2), None, None, None, None)
    assert [attack.name for attack in attacks] == ["APGD-L2-CE", "APGD-L2-T", "FAB-L2-T", "Square-L2-5000"]


def test_norm_can_be_given() -> None:
    attacks, eps = choose_attacks(model("Linf", 0), "quick", None, "L2", (2.5,))
    assert {attack.norm for attack in attacks} == {"L2"}
    assert eps == (2.5,)


SQUARE: tuple[Attack, ...] = (Square(queries=5),)


@pytest.mark.parametrize(
    ("norm", "preset", "attacks", "given", "message"),
    [
        ("L2", "paper", None, None, "preset paper is an attack in Linf .* the evaluation is in L2: use --preset"),
        (
            "Linf",
            None,
            None,
            "L2",
            "eps must be given for attacks in L2: .* target eps, 0.5, is a radius in Linf",
        ),
        ("L2", None, SQUARE, None, "eps must be given for attacks in Linf: .* 0.5, is a radius in L2"),
        ("Linf", None, SQUARE, "L2", r"norm must be that of the attacks, got L2 and Square-5 \(Linf\)"),
        ("Linf", "quick", SQUARE, None, "preset and attacks exclude each other"),
    ],
)
def test_norms_that_contradict_each_other_are_refused(
    norm: NormName, preset: Preset | None, attacks: Any, given: NormName | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choose_attacks(model(norm, 0.5), preset, attacks, given, None)


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the figures, which are tested elsewhere, to save time."""
    monkeypatch.setattr("commands.evaluate.worst_case_figures", lambda *_: {})


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(MNISTCNN().state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def evaluate(weights: Path, runs: Path, *more: str) -> list[Path]:
    main([
        "evaluate", "--model=MNISTClassifier", "--model.attack=PGD", "--model.attack.norm=L2", f"--runs_dir={runs}",
        "--data=DigitsDataModule", f"--ckpt_path={weights}", "--num_images=10", "--trainer.accelerator=cpu", *more,
    ])  # fmt: skip
    return sorted((runs / "unnamed").glob("evaluate-*/report.json"))


def test_a_model_for_l2_is_attacked_in_l2_and_the_report_says_so(weights: Path, tmp_path: Path, capsys: Any) -> None:
    (path,) = evaluate(weights, tmp_path, "--model.eps=2", "--preset=quick", "--trainer.precision=bf16-mixed")
    report = json.loads(path.read_text())
    assert report["norm"] == report["search"]["norm"] == "L2"
    assert report["search"]["eps"] == [2.0]
    assert [stage["attack"] for stage in report["stages"]] == ["PGD-L2-20", "Square-L2-200"]
    out = capsys.readouterr().out
    assert "10 images, L2" in out
    assert "worst case at eps 2: " in out
    assert "% (L2; 95% interval" in out
    assert {row["norm"] for row in csv.DictReader((path.parent / "per_image.csv").open())} == {"L2"}
    assert "each in the L2 ball" in (path.parent / "report.html").read_text()
    made_on = report["made_on"]
    assert (made_on["precision"], made_on["tf32"], made_on["device"]) == ("float32", False, "cpu")
    assert (made_on["deterministic"], made_on["world_size"]) == (False, 1)
    assert made_on["trainer_precision"] == "bf16-mixed"


def test_without_a_seed_the_same_command_repeats_the_search(weights: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        torch.manual_seed(len(name))
        attack = "--attacks=[rampart.attacks.PGD]"
        evaluate(weights, tmp_path, "--eps=[0.5]", attack, "--model.attack.norm=Linf", "--seed_everything=false")
    reports = [json.loads(path.read_text()) for path in sorted((tmp_path / "unnamed").glob("evaluate-*/report.json"))]
    assert reports[0]["search"] == reports[1]["search"]
    assert reports[0]["search"]["seed"] == 0
    assert len([path for path in (tmp_path / "unnamed" / "searches").iterdir() if path.is_dir()]) == 1
