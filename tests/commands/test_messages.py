"""One-line errors: the option, the value given and the allowed values."""

import re
from argparse import ArgumentError
from pathlib import Path
from typing import Any

import pytest

from cli import main
from commands.command_line import RampartCLI
from commands.messages import command_line, describe, one_line
from tests.commands.toy import SETTINGS


class ParsesOnly(RampartCLI):
    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        self.command = ""  # so that one object parses all of them
        return super().subcommands()

    def before_instantiate_classes(self) -> None:
        raise InterruptedError

    @classmethod
    def make(cls) -> "ParsesOnly":
        cli = cls.__new__(cls)
        with pytest.raises(InterruptedError):
            cli.__init__(["fit", *SETTINGS])  # type: ignore[misc]
        return cli


@pytest.fixture(scope="module")
def cli() -> ParsesOnly:
    return ParsesOnly.make()


def parse(cli: ParsesOnly, command: str, *words: str) -> Any:
    cli.parse_arguments(cli.parser, [command, *SETTINGS, *words])
    return cli.config[command]


def test_a_single_value_is_accepted_for_a_list(cli: ParsesOnly) -> None:
    assert parse(cli, "evaluate", "--eps", "0.3").eps == (0.3,)
    assert parse(cli, "evaluate", "--eps=8/255").eps == ("8/255",)
    assert parse(cli, "evaluate", "--eps", "0.3, 8/255").eps == (0.3, "8/255")
    assert parse(cli, "evaluate", "--attacks", "rampart.attacks.PGD").attacks[0].class_path == "rampart.attacks.PGD"
    assert parse(cli, "export", "--formats", "pth").formats == ("pth",)
    phase = "{epochs: 1, end_eps: 0.1}"
    both = parse(
        cli, "fit", "--ramp.phases", phase, "--model.init_args.test_attacks", "{eps: 0.1, attack: rampart.attacks.PGD}"
    )
    assert "end_eps=0.1" in str(both.ramp.phases)
    assert "eps=0.1" in str(both.model.init_args.test_attacks)


WRONG = [
    (["evaluate", "--preset", "nope"], "--preset must be quick, paper, pgd or autoattack, got 'nope'"),
    (["export", "--formats", "foo"], "--formats must be pth, safetensors, onnx, robustness or shaeiri, got 'foo'"),
    (["fit", "--trainer.max_epochs", "ten"], "--trainer.max_epochs must be a whole number, got 'ten': such as"),
    (["fit", "--data=MNIST"], "got MNIST; did you mean datamodules.MNISTDataModule?"),
    (
        ["fit", "--model.test_attacks=rampart.attacks.PGD"],
        "such as --model.test_attacks '[{eps: 0.3, attack: rampart.attacks.PGD}]'",
    ),
    (
        ["evaluate", "--attacks", "PGD", "--attacks.steps", "2"],
        "'[{class_path: rampart.attacks.PGD, init_args: {steps: 2}}]'",
    ),
    (["fit", "--trainer.max_epochs"], "--trainer.max_epochs needs a value, got none"),
    (["fit", "--seed_everything", "abc"], "--seed_everything must be true or false or a whole number, got 'abc'"),
    (["fit", "--model.attack.steps", "abc"], "--model.attack.steps must be a whole number or paper, got 'abc'"),
    (["fit", "--ramp.phases", "5"], "--ramp.phases must be a Phase or a list of them, got '5': such as"),
    (["fit", "--ramp.phases", "[{epochs: 1}]"], "Phase needs end_eps, such as '[{epochs: 1, end_eps: 0.4}]'"),
    (["fit", "--ramp.phases", "[{epochs: a, end_eps: 1}]"], "--ramp.phases.epochs must be a whole number, got 'a'"),
    (["fit", "--data", "torchvision.datasets.MNIST"], "a data module is a class of LightningDataModule whose train_da"),
    (["fit", "--data", "Digits"], "got Digits; did you mean datamodules.DigitsDataModule?"),
    (["fit", "--model", "MNISTClasifier"], "did you mean lightning_modules.MNISTClassifier?"),
    (["fit", "--model.attack", "rampart.attacks.PDG"], "did you mean rampart.attacks.PGD?"),
    (["fit", "--model.network", "nowhere.Net"], "got nowhere.Net (No module named 'nowhere')"),
    (["fit", "--model.optimizer", "Adamm"], "got Adamm; did you mean torch.optim.Adam?"),
    (["fit", "--trainer.callbacks", "Nope"], "--trainer.callbacks must be a known name or an import path, got Nope"),
    (["fit", "--trainer.logger", "CSVLogger"], "CSVLogger needs save_dir, such as --trainer.logger.save_dir VALUE"),
    (["fit", "--model.epss", "3"], "'epss' is not accepted by AdversarialClassifier; did you mean --model.eps?"),
    (["fit", "--trainer.max_epochz", "3"], "--trainer.max_epochz; did you mean --trainer.max_epochs?"),
    (["fit", "--max_epochs", "3"], "unrecognized arguments: --max_epochs; did you mean --trainer.max_epochs?"),
    (["fit", "more"], "unrecognized arguments: more: it belongs to no option"),
    (["fit", "--config", "none.yaml"], "there is no none.yaml"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_an_error_names_the_option_the_value_and_the_allowed_values(
    cli: ParsesOnly, words: list[str], message: str
) -> None:
    with pytest.raises(ArgumentError) as error:
        parse(cli, *words)
    line = describe(error.value)
    assert message in line
    assert "<class" not in line
    assert len(line) <= 400
    assert "\n" not in line


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)
FILES = [
    (b"a: [1\nb: }", "is not valid YAML: line 2, column 2"),
    (b"- 1\n- 2\n", "must hold options, such as `trainer: {max_epochs: 3}`, got a list"),
    (b"", "got nothing"),
    (b"\xd5\x00\xff", "is not a text file"),
    (b"a: &a [*a]", "expands to more than 1,000,000 values"),
    (BOMB.encode(), "expands to more than 1,000,000 values"),
]


@pytest.mark.parametrize(("content", "message"), FILES, ids=[message for _, message in FILES])
def test_an_error_names_the_config_that_cannot_be_read(
    cli: ParsesOnly, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ArgumentError, match=f"config {path} ") as error:
        parse(cli, "fit", f"--config={path}")
    assert message in describe(error.value)


def test_an_error_without_a_sentence_is_printed_with_its_type() -> None:
    def test_dataloader() -> None:
        raise NotImplementedError

    assert describe(KeyError(0)) == "KeyError: 0"
    assert describe(ValueError()) == "ValueError"
    assert describe(ValueError("eps is\n  wrong")) == "eps is wrong"
    with pytest.raises(NotImplementedError) as error:
        test_dataloader()
    assert describe(error.value) == "test_dataloader is not implemented"


def test_an_error_inside_an_object_is_printed_without_the_parsers_types(capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *SETTINGS, "--trainer.callbacks={class_path: EarlyStopping, init_args: {monitor: a, mode: nope}}"])
    assert stopped.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: `mode` can be")
    assert "Expected" not in line


def test_a_long_message_is_cut_in_the_middle() -> None:
    line = one_line("begin " + "x " * 10_000 + "end")
    assert len(line) <= 400
    assert line.startswith("begin")
    assert line.endswith("end")


def test_a_printed_command_is_quoted_for_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/pytest"])
    assert command_line("test", "--ckpt_path", "a b's.ckpt") == "python cli.py test --ckpt_path 'a b'\"'\"'s.ckpt'"
    monkeypatch.setattr("sys.argv", ["clone/cli.py"])
    assert command_line("test") == "python clone/cli.py test"


def test_a_command_without_data_names_the_missing_option(cli: ParsesOnly) -> None:
    with pytest.raises(ArgumentError, match="--data must be given: --data CLASS, or --config FILE"):
        cli.parse_arguments(cli.parser, ["fit", "--model", "MNISTClassifier"])


def test_an_unknown_command_suggests_the_nearest(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["fitt"])
    assert "error: no command is called 'fitt'; did you mean fit?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ramp: {phase: []}", "ramp.phase in the config is not an option of fit; did you mean --ramp.phases?"),
        ("fit: {name: a}", "a config holds the options themselves, without the command: leave out `fit:`"),
    ],
)
def test_an_unknown_option_in_a_config_suggests_the_nearest(
    tmp_path: Path, cli: ParsesOnly, content: str, message: str
) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ArgumentError, match=re.escape(message)):
        cli.parse_arguments(cli.parser, ["fit", *SETTINGS, f"--config={tmp_path / 'config.yaml'}"])


def test_a_command_after_a_config_is_refused_with_the_right_order(cli: ParsesOnly, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: a")
    with pytest.raises(ArgumentError, match="the command comes first: fit --config FILE"):
        cli.parse_arguments(cli.parser, [f"--config={tmp_path / 'config.yaml'}", "fit", *SETTINGS])
