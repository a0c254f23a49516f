"""The documentation agrees with the code: commands parse, names exist, examples run."""

import ast
import csv
import itertools
import json
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torchvision.utils import save_image

from cli import main
from tests.commands.test_messages import ParsesOnly
from tests.conftest import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks/README.md",
    ROOT / "pretrained/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
CONFIGS = [*sorted((ROOT / "configs").rglob("*.yaml")), ROOT / "docs/examples/my_run.yaml"]
LIGHTNING = ("fit", "validate", "test", "predict", "evaluate", "export")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def commands(file: Path) -> list[str]:
    """Find commands in a page, or in a config's header; a bare mention of an option is no command."""
    text = file.read_text()
    if file.suffix == ".yaml":
        text = re.sub(r"^# *", "", text, flags=re.MULTILINE)
    text = re.sub(r"\\\n\s*", "", text)
    return [
        found
        for found in re.findall(rf"(?:cli\.py|slurm\.sbatch) +((?:{'|'.join(LIGHTNING)})\b[^`\n&|]*)", text)
        if re.search(r" --(?!help)\S+[ =]\S", found)
    ]


COMMANDS = [(relative(file), command) for file in [*PAGES, *CONFIGS] for command in commands(file)]


def filled(words: list[str]) -> Iterator[str]:
    """Replace names such as FILE, and a run's saved config, by existing files."""
    for before, word in zip(["", *words], words, strict=False):
        saved = word == "FILE" or (word.endswith("/config.yaml") and not word.startswith("configs/"))
        if before == "--config" and saved:
            yield str(ROOT / "configs/quickstart.yaml")
        elif word != "...":
            yield word


@pytest.fixture(scope="module")
def cli() -> ParsesOnly:
    return ParsesOnly.make()


@pytest.fixture(autouse=True)
def _custom_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs" / "examples")
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(("file", "command"), COMMANDS)
def test_commands_parse(cli: ParsesOnly, file: str, command: str) -> None:
    words = list(filled(shlex.split(command, comments=True)))
    cli.parse_arguments(cli.parser, words)
    for before, word in itertools.pairwise(words):
        assert before != "--config" or (ROOT / word).is_file(), f"{file}: {word} does not exist"


def test_there_are_commands_to_check() -> None:
    files = {file for file, _ in COMMANDS}
    assert files >= {"README.md", "docs/command_line.md", "docs/cluster.md"}
    assert files >= {relative(config) for config in CONFIGS}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_names_in_pages_exist(page: Path) -> None:
    text = page.read_text()
    missing = []
    for module in re.findall(r"python -m ((?:benchmarks|experiments)[\w.]+)", text):
        if not (ROOT / f"{module.replace('.', '/')}.py").is_file():
            missing.append(module)
    for path in re.findall(r"`((?:[\w-]+/)+[\w-]+\.(?:md|py|yaml))`", text):
        if not (ROOT / path).exists() and not path.startswith("runs/") and "NAME" not in path:
            missing.append(path)
    for name in re.findall(r"`((?:rampart|callbacks|datamodules|lightning_modules)(?:\.\w+)+)`", text):
        missing += [] if exists(name) else [name]
    for block in blocks(page, "yaml"):
        yaml.safe_load(block)
        missing += [name for name in re.findall(r"class_path: ([\w.]+)", block) if "." in name and not exists(name)]
    for block in blocks(page, "python"):
        imports = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Import | ast.ImportFrom)]
        exec("\n".join(map(ast.unparse, imports)), {})  # noqa: S102 - our own pages
    for extra in re.findall(r"'\.\[(\w+)\]'", text):
        missing += [] if f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() else [extra]
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        missing += [] if "://" in link or (page.parent / link).exists() else [link]
    assert not missing


def test_the_architecture_page_shows_the_imports_between_subpackages() -> None:
    packages = {file.parent.name for file in (ROOT / "rampart").glob("*/__init__.py")}
    imports: dict[str, set[str]] = {package: set() for package in packages}
    for package in packages:
        for file in (ROOT / "rampart" / package).glob("*.py"):
            found = re.findall(r"^\s*(?:from|import) rampart\.(\w+)", file.read_text(), re.MULTILINE)
            imports[package] |= set(found) - {package}
    page = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| `rampart/(\w+)` \|.*\| ?([\w, ]*) \|$", page, re.MULTILINE)
    assert {package: set(re.findall(r"\w+", names)) for package, names in rows} == imports
    arrows = re.findall(r'id="(\w+)-(\w+)"', (ROOT / "docs/architecture.svg").read_text())
    assert {arrow for arrow in arrows if arrow[0] in packages} == {
        (package, to) for package in packages for to in imports[package]
    }


def exists(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("folder", ["rampart", "lightning_modules", "datamodules", "callbacks", "commands"])
def test_names_in_docstrings_and_messages_exist(folder: str) -> None:
    missing = []
    for file in sorted((ROOT / folder).rglob("*.py")):
        text, module = file.read_text(), ".".join(file.relative_to(ROOT).with_suffix("").parts)
        missing += [f"{module}: {name}" for name in re.findall(r"\brampart(?:\.\w+)+", text) if not exists(name)]
        classes = [f"{module}.{name}" for name in re.findall(r"^class (\w+)", text, re.MULTILINE)]
        for name in re.findall(r":(?:class|data|exc|func|meth|mod):`([\w.]+)`", text):
            full = [name, *(f"{place}.{name}" for place in (module, module.rpartition(".")[0], *classes))]
            missing += [] if any(map(exists, full)) else [f"{module}: {name}"]
    assert not missing


def test_weights_load_in_python_as_readme_says() -> None:
    (block,) = blocks(ROOT / "README.md", "python")
    names: dict[str, Any] = {"images": torch.rand(2, 1, 28, 28), "labels": torch.tensor([0, 1])}
    exec(block, names)  # noqa: S102 - our own page
    assert names["logits"].shape == (2, 10)
    assert (names["adv"] - names["images"]).abs().max() <= 0.4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image files of two classes, a dark and a bright one."""
    path = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for part, number in (("train", 6), ("test", 3)):
        for label, name in enumerate(("dark", "bright")):
            (path / part / name).mkdir(parents=True)
            for index in range(number):
                image = (torch.rand(3, 8, 8, generator=generator) + label) / 2
                save_image(image, path / part / name / f"{index}.png")
    return path


def test_the_examples_train_and_evaluate_together(folder: Path, tmp_path: Path) -> None:
    own = ["--config", "docs/examples/my_run.yaml", "--data.data_dir", str(folder), "--runs_dir", str(tmp_path)]
    small = ["--data.image_size=8", "--data.batch_size=4", "--trainer.accelerator=cpu", "--curve.num_images=0"]
    quick = ["--trainer.max_epochs=2", "--ramp.phases=[{epochs: 2, start_eps: 0, end_eps: 8/255}]"]
    main(["fit", *own, *small, *quick, "--images.num_images=0", "--trainer.enable_progress_bar=false"])
    run = tmp_path / "my_run" / "fit-0"
    table = json.loads((run / "test.json").read_text())
    assert "random-20 @ 8/255" in json.dumps(table)
    attack = "{class_path: docs.examples.my_attack.RandomPoints, init_args: {points: 2}}"
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    main(["evaluate", *own, *small, "--ckpt_path", checkpoint, f"--attacks=[{attack}]", "--eps=[8/255]"])
    with (tmp_path / "my_run" / "evaluate-0" / "per_image.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6


def test_the_example_of_custom_data_reads_arrays(tmp_path: Path) -> None:
    images, labels = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3), np.array([1, 0])
    file = tmp_path / "mine.npz"
    np.savez(file, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    data = pkgutil.resolve_name("docs.examples.my_images.MyImages")(str(file), num_classes=2)
    data.setup("test")
    read, classes, _ = next(iter(data.test_dataloader()))
    assert torch.equal((read * 255).round().byte(), torch.from_numpy(images).movedim(-1, 1))
    assert classes.tolist() == [1, 0]
