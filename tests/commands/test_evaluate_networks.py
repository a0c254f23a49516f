"""The ``evaluate`` command on custom networks."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer

from cli import main
from tests.commands.test_evaluate import without_timings
from tests.test_cli import QUICKSTART

FACTORY = """
import subprocess
from os import system

import torch
from pytorch_lightning import LightningModule
from torch import nn
from rampart.networks import MNISTCNN
from transformers_like import Output

def linear(classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, classes))

def annotated(classes: int = 10) -> nn.Module:
    return linear(classes)

def half(classes: int = 10) -> nn.Module:
    return linear(classes).half()

def text() -> str:
    raise AssertionError("called")

def some_text():
    return "no network"

def trained():
    torch.manual_seed(25)
    return linear(12)

class Holds(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.net, self.form = trained(), form

    def forward(self, images):
        logits = self.net(images)
        return {"logits": Output(logits=logits), "pair": (logits, logits), "flat": logits.argmax(1),
                "one": logits[:, :1], "half": logits[:5]}[self.form]

def holds(form: str) -> nn.Module:
    return Holds(form)

class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = trained()

    def forward(self, images):
        return self.net(images.mul_(0.5)) if images.shape[0] else self.net(images)

class Copying(InPlace):
    def forward(self, images):
        return self.net(images * 0.5)

class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = linear(12)

    def forward(self, images):
        return self.model(images)

class Late(Module):
    def __init__(self):
        LightningModule.__init__(self)

    def configure_model(self):
        self.model = trained()

class Double(nn.Module):
    def __init__(self, all: bool):
        super().__init__()
        self.net, self.all = trained(), all
        self.head = nn.Linear(12, 12, bias=False).double()
        nn.init.eye_(self.head.weight)
        self.net.double() if all else None

    def forward(self, images):
        return self.head(self.net(images.double() if self.all else images).double())

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(12))

def scripted():
    return torch.jit.script(trained())

made = linear()
VALUE = 3

def trained_mnist_cnn():
    return MNISTCNN()

class Network(nn.Sequential):
    def __init__(self, classes: int = 10):
        super().__init__(nn.Flatten(), nn.Linear(784, classes))
"""


OUTPUT = """
from dataclasses import dataclass
from typing import Any

@dataclass
class Output:
    logits: Any = None
"""


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the figures, which are tested elsewhere, to save time."""
    monkeypatch.setattr("commands.evaluate.worst_case_figures", lambda *_: {})


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "foreign_networks.py").write_text(FACTORY)
    (tmp_path / "transformers_like.py").write_text(OUTPUT)
    monkeypatch.syspath_prepend(str(tmp_path))
    weights = tmp_path / "linear.pth"
    torch.manual_seed(25)  # classifies six of the images correctly
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 12))
    torch.save(network.state_dict(), weights)
    return ["evaluate", f"--ckpt_path={weights}", f"--runs_dir={tmp_path}", "--data=DigitsDataModule",
            "--num_images=20", "--preset=quick", "--trainer.accelerator=cpu"]  # fmt: skip


@pytest.mark.parametrize("name", ["linear", "annotated", "Network"])
@pytest.mark.parametrize("split", [True, False], ids=["two words", "one word"])
def test_any_network_can_be_evaluated(foreign: list[str], tmp_path: Path, name: str, split: bool) -> None:
    model = f"foreign_networks.{name}"
    more = (
        ["--model.network", model, "--eps", "[2/255, 0.02]"]
        if split
        else [f"--model.network={model}", "--eps=[2/255, 0.02]"]
    )
    main([*foreign, *more, "--model.network.classes=12"])
    report = json.loads((tmp_path / "unnamed/evaluate-0/report.json").read_text())
    assert report["search"]["eps"] == [2 / 255, 0.02]
    assert "out_features=12" in report["search"]["network"]


@pytest.mark.parametrize(
    "more",
    [
        ["--model.network=foreign_networks.half"],
        ["--model.network=foreign_networks.linear", "--trainer.precision=bf16-true"],
    ],
)
def test_evaluation_is_computed_in_float32(foreign: list[str], tmp_path: Path, more: list[str]) -> None:
    for model in (["--model.network=foreign_networks.linear"], more):
        main([*foreign, *model, "--model.network.classes=12", "--eps=[0.001, 0.1]"])
    report, other = (without_timings(tmp_path / f"unnamed/evaluate-{run}/report.json") for run in (0, 1))
    assert report == other
    assert report["clean"]["count"] > 0


def test_a_custom_network_replaces_that_of_a_config_in_either_order(foreign: list[str], tmp_path: Path) -> None:
    for config in (
        ["--config", QUICKSTART, "--model.network=foreign_networks.annotated"],
        ["--model.network=foreign_networks.annotated", f"--config={QUICKSTART}"],
    ):
        main([*foreign, *config, "--model.network.classes=12", "--eps=[0.1]"])
    for report in (tmp_path / "quickstart").glob("evaluate-*/report.json"):
        assert "out_features=12" in json.loads(report.read_text())["search"]["network"]


def test_a_network_given_as_the_model_ends_in_a_line_with_the_new_command(foreign: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*foreign, "--model", "foreign_networks.linear", "--model.network.classes=12", "--eps=[0.1]"])
    assert stopped.value.code == 2
    assert " --model.network foreign_networks.linear --model.network.classes=12 " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("network", "more", "message"),
    [
        ("foreign_networks.nothing", [], "must be a known name or an import path, got foreign_networks.nothing"),
        ("no_such_module.Network", [], "No module named 'no_such_module'"),
        ("foreign_networks.annotated", [], "does not fit Sequential"),
        ("foreign_networks.text", [], "got foreign_networks.text, which returns str"),
        ("foreign_networks.some_text", [], "a function that returns one, got a str"),
        ("foreign_networks.Output", [], "got the class foreign_networks.Output"),
        ("foreign_networks.VALUE", [], "got foreign_networks.VALUE, which is a int"),
        ("foreign_networks.system", [], "foreign_networks.system of Python's own library"),
        ("rampart.networks.MNISTCNN", ["--ckpt_path=null"], "evaluate needs --ckpt_path"),
        ("foreign_networks.linear", ["--eps=null"], "eps must be given: --eps '[8/255]'"),
        ("foreign_networks.linear", ["--attacks=[rampart.attacks.PGD]"], "preset and attacks exclude each other"),
    ],
)
def test_a_network_that_cannot_be_evaluated_ends_in_one_line(
    foreign: list[str], capsys: Any, network: str, more: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*foreign, f"--model.network={network}", "--eps=[0.1]", *more])
    assert stopped.value.code != 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_nothing_of_pythons_own_library_is_called(foreign: list[str], tmp_path: Path, capsys: Any) -> None:
    for path in ("subprocess.getoutput", "foreign_networks.subprocess.getoutput", "os.system"):
        with pytest.raises(SystemExit):
            main(
                [*foreign, f"--model.network={path}", f"--model.network.cmd=touch {tmp_path / 'called'}", "--eps=[0.1]"]
            )
        assert f"got {path} of Python's own library" in capsys.readouterr().err
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("network", ["made", "trained_mnist_cnn"])
def test_a_network_from_the_users_own_code_needs_no_file(foreign: list[str], capsys: Any, network: str) -> None:
    without = [word for word in foreign if "ckpt_path" not in word]
    main([*without, f"--model.network=foreign_networks.{network}", "--eps=[0.001]"])
    assert "No --ckpt_path: evaluating" in capsys.readouterr().out


def read_report(foreign: list[str], tmp_path: Path, name: str, *more: str) -> dict[str, Any]:
    main(
        [
            *foreign,
            f"--model.network={name}",
            "--eps=[0.02]",
            f"--name={name}",
            "--attacks=[rampart.attacks.PGD]",
            *more,
        ]
    )
    return json.loads((tmp_path / name / "evaluate-0" / "report.json").read_text())  # type: ignore[no-any-return]


def test_a_function_that_returns_a_trained_network_needs_no_file(
    foreign: list[str], tmp_path: Path, capsys: Any
) -> None:
    foreign = [word for word in foreign if "preset" not in word]
    weights = next(word for word in foreign if "ckpt_path" in word)
    without = [word for word in foreign if word != weights]
    brought = read_report(without, tmp_path, "foreign_networks.trained")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("No --ckpt_path"))
    assert "Sequential with the weights that it was built with (9,420 numbers" in line
    assert brought["search"]["weights"][:16] in line
    loaded = read_report(foreign, tmp_path, "foreign_networks.linear", "--model.network.classes=12")
    assert brought["search"]["weights"] == loaded["search"]["weights"]
    assert brought["stages"] == loaded["stages"]


def test_a_network_that_works_on_its_input_in_place_is_evaluated_as_one_that_copies(
    foreign: list[str], tmp_path: Path
) -> None:
    foreign = [word for word in foreign if "preset" not in word and "ckpt_path" not in word]
    reports = [read_report(foreign, tmp_path, f"foreign_networks.{name}") for name in ("InPlace", "Copying")]
    assert reports[0]["stages"] == reports[1]["stages"]
    assert reports[0]["clean"]["count"] > 0


def test_logits_by_name_are_found_and_other_outputs_refused(foreign: list[str], tmp_path: Path, capsys: Any) -> None:
    foreign = [word for word in foreign if "preset" not in word and "ckpt_path" not in word]
    held = read_report(foreign, tmp_path, "foreign_networks.holds", "--model.network.form=logits")
    assert held["clean"]["count"] > 0
    for form, got in (
        ("pair", "got a tuple of 2"),
        ("flat", "got shape (20,), int64"),
        ("one", "at least two logits per image"),
        ("half", "must return logits of shape (20, classes) for 20 images, got shape (5, 12)"),
    ):
        with pytest.raises(SystemExit):
            read_report(foreign, tmp_path, "foreign_networks.holds", f"--model.network.form={form}")
        assert got in capsys.readouterr().err


def test_a_lightning_module_and_its_checkpoint_are_evaluated(foreign: list[str], tmp_path: Path) -> None:
    foreign = [word for word in foreign if "preset" not in word and "ckpt_path" not in word]
    foreign_networks = importlib.import_module("foreign_networks")
    module = foreign_networks.Module()
    module.model.load_state_dict(foreign_networks.trained().state_dict())
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    expected = read_report(foreign, tmp_path, "foreign_networks.trained")["stages"]
    file = f"--ckpt_path={tmp_path / 'own.ckpt'}"
    own = read_report(foreign, tmp_path, "foreign_networks.Module", file)
    assert own["stages"] == expected
    plain = read_report(foreign, tmp_path, "foreign_networks.linear", "--model.network.classes=12", file)
    assert plain["stages"] == expected


def test_a_network_in_another_form_gives_the_same_numbers(foreign: list[str], tmp_path: Path) -> None:
    foreign = [word for word in foreign if "preset" not in word and "ckpt_path" not in word]
    expected = read_report(foreign, tmp_path, "foreign_networks.trained")["stages"]
    assert read_report(foreign, tmp_path, "foreign_networks.scripted")["stages"] == expected
    assert read_report(foreign, tmp_path, "foreign_networks.Late")["stages"] == expected
    mixed, double = (
        read_report(foreign, tmp_path / str(all), "foreign_networks.Double", f"--model.network.all={all}", runs)
        for all in (False, True)
        for runs in [f"--runs_dir={tmp_path / str(all)}"]
    )
    assert mixed["stages"] == double["stages"] == expected
    assert (mixed["made_on"]["precision"], double["made_on"]["precision"]) == ("float32", "float64")


def test_lazy_layers_are_refused_in_one_line(foreign: list[str], tmp_path: Path, capsys: Any) -> None:
    foreign = [word for word in foreign if "ckpt_path" not in word]
    with pytest.raises(SystemExit):
        main([*foreign, "--model.network=foreign_networks.lazy", "--eps=[0.1]"])
    assert "Sequential has lazy layers without a shape: give the network an image first" in capsys.readouterr().err
