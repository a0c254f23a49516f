"""The options ``--execution.NAME`` of the command line."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cli import main
from commands.command_line import RampartCLI
from rampart.kernels import Execution
from rampart.kernels.recording import _warn_of_device
from tests.commands.toy import SETTINGS
from tests.conftest import ROOT

OPTIONS = ["--execution.tf32=false", "--execution.capture=false", "--execution.memory_format=contiguous"]


def fit(runs: Path, *more: str) -> Any:
    return RampartCLI(
        ["fit", *SETTINGS, f"--runs_dir={runs}", "--trainer.max_epochs=1", "--trainer.logger=false", *more]
    )


def test_options_are_set_on_the_module_and_saved_in_the_config(tmp_path: Path) -> None:
    expected = Execution(tf32=False, capture=False, memory_format="contiguous")
    assert fit(tmp_path, *OPTIONS).model.execution == expected
    folder = tmp_path / "unnamed" / "fit-0"
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert Execution(**saved["execution"]) == expected
    checkpoint = folder / "checkpoints" / "last.ckpt"
    main([
        "export", f"--config={folder / 'config.yaml'}", f"--ckpt_path={checkpoint}", "--formats=[pth]",
        f"--runs_dir={tmp_path}",
    ])  # fmt: skip
    assert list(tmp_path.glob("unnamed/export-0/network.pth"))


def test_a_config_of_an_earlier_version_runs_with_the_defaults(tmp_path: Path) -> None:
    fit(tmp_path)
    path = tmp_path / "unnamed" / "fit-0" / "config.yaml"
    saved = yaml.safe_load(path.read_text())
    del saved["execution"]
    path.write_text(yaml.safe_dump(saved))
    checkpoint = path.parent / "checkpoints" / "last.ckpt"
    assert RampartCLI(["test", f"--config={path}", f"--ckpt_path={checkpoint}"]).model.execution == Execution()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--execution.memory_format=nhwc", "--execution.memory_format must be contiguous or channels_last, got 'nhwc'"),
        ("--execution.attack_precision=fp8", "must be float32, tf32 or bfloat16, got 'fp8'"),
        ("--execution.compile=often", "--execution.compile must be true or false, got 'often'"),
        ("--execution.captur=true", "did you mean --execution.capture?"),
    ],
)
def test_bad_values_end_in_one_line(capsys: Any, option: str, message: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *SETTINGS, option])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_capture_on_a_cpu_warns_once(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    _warn_of_device.cache_clear()
    fit(tmp_path, "--execution.capture=true")
    assert sum("execution.capture needs CUDA graphs" in str(warning.message) for warning in recwarn) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests a machine without a GPU")
def test_a_missing_gpu_ends_in_one_line_and_leaves_no_folder(tmp_path: Path, capsys: Any) -> None:
    overlay = ROOT / "configs" / "overlays" / "h100.yaml"
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *SETTINGS, f"--config={overlay}", f"--runs_dir={tmp_path}"])
    assert stopped.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "no GPU that torch can use was found" in line
    assert "cpu.yaml" in line
    assert not list(tmp_path.glob("*/fit-*"))
