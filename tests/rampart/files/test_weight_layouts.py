"""Every row of the table in docs/weights.md, with a file like those of the tool in that row."""

import argparse
import gzip
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor, nn

from rampart.files import load_weights
from rampart.networks import MNISTCNN, GatedMNISTCNN, Normalize, ResNet18
from tests.conftest import ROOT
from tests.rampart.files.attacker_model import AttackerModel, train_and_save


class Net(nn.Module):
    """A convolution, BatchNorm and a linear layer, for 1x6x6 images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.bn = nn.BatchNorm2d(2)
        self.fc = nn.Linear(32, 3)
        self.register_buffer("grid", torch.zeros(4), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.bn(self.conv(images)).relu().flatten(1))
        return logits


def trained() -> Net:
    network = Net()
    network(torch.rand(8, 1, 6, 6))  # changes the running statistics
    return network.eval()


class TheirModule(LightningModule):
    """A user's LightningModule with its network in ``self.model`` and other layers."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.model = network
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(3))
        self.projection = nn.Linear(3, 2)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def prefixed(prefix: str, network: nn.Module | dict[str, Tensor]) -> dict[str, Tensor]:
    state = network.state_dict() if isinstance(network, nn.Module) else network
    return {f"{prefix}{name}": value for name, value in state.items()}


def others(network: nn.Module) -> dict[str, Tensor]:
    return {n: t + 1 for n, t in network.state_dict().items()}


def write_lightning(network: Net, path: Path) -> None:
    trainer = Trainer(
        accelerator="cpu", max_epochs=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(TheirModule(network), [])
    trainer.save_checkpoint(path)


def write_averaged(network: Net, path: Path) -> None:
    torch.save(torch.optim.swa_utils.AveragedModel(network).state_dict(), path)


def write_timm(network: Net, path: Path) -> None:
    arguments = argparse.Namespace(model="resnet18", lr=0.1)
    torch.save({"epoch": 3, "arch": "resnet18", "state_dict": network.state_dict(), "args": arguments, "version": 2,
                "state_dict_ema": others(network), "metric": 71.0}, path)  # fmt: skip


def write_robustness(network: Net, path: Path) -> None:
    train_and_save(AttackerModel(network, [0.5], [0.25]), torch.rand(4, 1, 6, 6), path)


def write_authors(network: Net, path: Path) -> None:
    torch.save(AttackerModel(network, [0.5], [0.25]).state_dict(), path)


def write_robustbench(network: Net, path: Path) -> None:
    numbers = {"mu": torch.full((1, 1, 1, 1), 0.5), "sigma": torch.full((1, 1, 1, 1), 0.25)}
    torch.save({"state_dict": prefixed("module.", network) | prefixed("module.", numbers)}, path)


def write_from_cuda(network: Net, path: Path) -> None:
    torch.save(network.state_dict(), path.with_suffix(".cpu"))
    with zipfile.ZipFile(path.with_suffix(".cpu")) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            target.writestr(name, content)


def write_torchscript(how: str) -> Callable[[Net, Path], None]:
    def write(network: Net, path: Path) -> None:
        if how == "trace":
            torch.jit.save(torch.jit.trace(network, torch.zeros(1, 1, 6, 6)), path)
        else:
            script = torch.jit.script(network)
            torch.jit.save(torch.jit.freeze(script) if how == "freeze" else script, path)

    return write


def write_arrays(network: Net, path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **{name: value.numpy() for name, value in network.state_dict().items()})


def saved(content: Callable[[Net], Any], **how: Any) -> Callable[[Net, Path], None]:
    return lambda network, path: torch.save(content(network), path, **how)


def dump(network: Net, path: Path) -> None:
    path.write_bytes(pickle.dumps(network.state_dict()))


def cast(dtype: torch.dtype) -> Callable[[Net, Path], None]:
    return saved(lambda n: {k: v.to(dtype) if v.is_floating_point() else v for k, v in n.state_dict().items()})


LEGACY = {"_use_new_zipfile_serialization": False}
# By the first column of docs/weights.md: the function that writes the file, and a part of the printed line.
READ: dict[str, tuple[Callable[[Net, Path], None], str]] = {
    "plain state_dict": (saved(lambda n: n.state_dict()), "plain weights$"),
    "torch.save before 1.6": (saved(lambda n: n.state_dict(), **LEGACY), "plain weights$"),
    "nested keys": (saved(lambda n: {"a": {"b": [{"any_key": n.state_dict()}]}}), "under key a.b.0.any_key"),
    "PyTorch's general checkpoint": (
        saved(lambda n: {"epoch": 3, "model_state_dict": n.state_dict(), "optimizer_state_dict": {"state": {}}}),
        "under key model_state_dict",
    ),
    "pytorch-cifar": (saved(lambda n: {"net": prefixed("module.", n), "acc": 95.1}), "key net, prefix module."),
    "DataParallel": (saved(lambda n: nn.DataParallel(n).state_dict()), "under prefix module."),
    "torch.compile": (saved(lambda n: torch.compile(n, backend="eager").state_dict()), "plain weights$"),  # type: ignore[attr-defined]
    "FSDP and activation checkpointing": (
        saved(lambda n: {k.replace("conv.", "_fsdp_wrapped_module.conv._checkpoint_wrapped_module."): v
                         for k, v in n.state_dict().items()}),
        "plain weights$",
    ),
    "DeepSpeed's single file": (saved(lambda n: {"module": n.state_dict(), "dp_world_size": 1}), "under key module"),
    "Lightning, own module": (
        saved(lambda n: {"pytorch-lightning_version": "2.6", "epoch": 3, "global_step": 9,
                         "state_dict": prefixed("network.", n), "callbacks": {}}),
        r"a checkpoint after epoch 3 \(zero-based\), step 9; found under key state_dict, prefix network\.",
    ),
    "Lightning, any module": (
        write_lightning,
        r"key state_dict, prefix model\.; left out: loss.weight, projection.weight, projection.bias",
    ),
    "Lightning's WeightAveraging": (
        saved(lambda n: {"pytorch-lightning_version": "2.6", "state_dict": prefixed("model.", n),
                         "current_model_state": {f"model.{k}": v for k, v in others(n).items()},
                         "averaging_state": {"n_averaged": torch.tensor(3)}}),
        r"key state_dict, prefix model\.; left out: current_model_state\.model\.\*",
    ),
    "AveragedModel": (write_averaged, r"prefix module\.; left out: n_averaged"),
    "timm": (write_timm, r"key state_dict; left out: state_dict_ema\.\* \(other weights that fit\)"),
    "robustness (MadryLab)": (
        write_robustness,
        r"only the tensors were built; found under key model, prefix module\.model\.; equal copies under "
        r"module\.attacker\.model\.; the file normalises images outside the network, by mean \[0\.5\] and std",
    ),
    "Shaeiri et al., CIFAR-10": (
        write_authors,
        r"plain weights; found under prefix model\.; equal copies under attacker\.model\.; the file normalises images",
    ),
    "RobustBench": (saved(lambda n: {"state_dict": prefixed("module.0.model.", n)}), r"prefix module\.0\.model\.$"),
    "RobustBench, mu and sigma": (
        write_robustbench, r"prefix module\.; the file normalises images outside the network, by mean \[0\.5\] and std"
    ),
    "Hugging Face": (
        lambda n, path: save_file(prefixed("backbone.", n), path, metadata={"format": "pt"}),
        r"plain weights; found under prefix backbone\.",
    ),
    "TorchScript, traced": (write_torchscript("trace"), "TorchScript$"),
    "TorchScript, scripted": (write_torchscript("script"), "TorchScript$"),
    "torch.save(network)": (saved(lambda n: n), "a pickle of objects, of which only the tensors were built$"),
    "torch.save(network) before 1.6": (saved(lambda n: n, **LEGACY), "a pickle of objects"),
    "pickle.dump": (dump, "a pickle of objects"),
    "numpy.savez": (write_arrays, "plain weights$"),
    "saved from a GPU": (write_from_cuda, "plain weights$"),
    "without num_batches_tracked": (
        saved(lambda n: {k: v for k, v in n.state_dict().items() if "num_batches" not in k}),
        r"plain weights; not in the file and kept: bn\.num_batches_tracked$",
    ),
    "float16": (cast(torch.float16), "cast float16 to float32"),
    "bfloat16": (cast(torch.bfloat16), "cast bfloat16 to float32"),
    "float64": (cast(torch.float64), "cast float64 to float32"),
}  # fmt: skip


def assert_loaded(network: nn.Module, expected: dict[str, Tensor], without: str = "") -> None:
    for name, value in network.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(value, expected[name.replace(without, "", 1)], rtol=1e-2, atol=1e-2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", READ)
def test_each_layout_is_read_and_reported_in_one_line(layout: str, tmp_path: Path) -> None:
    write, message = READ[layout]
    source, target = trained(), Net()
    write(source, tmp_path / "weights")
    line = str(load_weights(target, tmp_path / "weights"))
    assert re.search(message, line), line
    assert "\n" not in line
    assert_loaded(target, source.state_dict())


@pytest.mark.parametrize(
    ("wrap", "own_prefix"),
    [
        (lambda n: torch.compile(n, backend="eager"), "_orig_mod."),
        (nn.DataParallel, "module."),
        (lambda n: torch.compile(nn.DataParallel(n), backend="eager"), "_orig_mod.module."),
        (lambda n: nn.ModuleDict({"net": n}), "net."),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_a_wrapped_network_loads_plain_and_wrapped_weights(
    wrap: Any, own_prefix: str, prefix: str, tmp_path: Path
) -> None:
    source, target = trained(), wrap(Net())
    torch.save(prefixed(prefix, source), tmp_path / "weights")
    load_weights(target, tmp_path / "weights")
    assert_loaded(target, source.state_dict(), own_prefix)


def test_a_network_with_normalisation_loads_weights_without_it(tmp_path: Path) -> None:
    source, target = trained(), nn.Sequential(Normalize([0.5], [0.25]), Net())
    torch.save(source.state_dict(), tmp_path / "weights")
    line = str(load_weights(target, tmp_path / "weights"))
    assert line.endswith("; the file has no normalisation, and the network keeps mean [0.5] and std [0.25]"), line
    assert_loaded(target[1], source.state_dict())


@pytest.mark.parametrize("write", [write_robustness, write_authors, write_robustbench])
def test_normalisation_outside_the_network_is_compared_with_the_networks(write: Any, tmp_path: Path) -> None:
    source, target = trained(), nn.Sequential(Normalize([0.5], [0.25]), Net())
    write(source, tmp_path / "weights")
    line = str(load_weights(target, tmp_path / "weights"))
    assert line.endswith("; the file's normalisation is the network's, mean [0.5] and std [0.25]"), line
    assert "left out" not in line
    assert "kept" not in line
    assert_loaded(target[1], source.state_dict())
    with pytest.raises(
        ValueError,
        match=r"by mean \[0\.5\] and std \[0\.25\], and Sequential normalises by mean \[0\.1.*: build it with the",
    ):
        load_weights(nn.Sequential(Normalize([0.1307], [0.3081]), Net()), tmp_path / "weights")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_normalisation_in_the_networks_own_form_is_compared_too(dtype: torch.dtype, tmp_path: Path) -> None:
    source, target = ResNet18(width=2), ResNet18(width=2)
    torch.save(source.to(dtype).state_dict(), tmp_path / "weights")
    assert "; the file's normalisation is the network's, mean [0.49" in str(load_weights(target, tmp_path / "weights"))
    with pytest.raises(
        ValueError, match=r"or --model\.network\.mean='\[0\.49.*' --model\.network\.std='\[0\.24"
    ) as caught:
        load_weights(ResNet18(width=2, std=(0.2023, 0.1994, 0.2010)), tmp_path / "weights")
    assert "\n" not in str(caught.value)


def test_a_normalisation_of_another_shape_is_compared_by_its_numbers(tmp_path: Path) -> None:
    source = ResNet18(width=2)
    state = {
        name: value[None] if name.startswith("normalize.") else value for name, value in source.state_dict().items()
    }
    torch.save(state, tmp_path / "weights")
    assert "the file's normalisation is the network's" in str(load_weights(ResNet18(width=2), tmp_path / "weights"))
    with pytest.raises(ValueError, match=r"and ResNet18 normalises by"):
        load_weights(ResNet18(width=2, mean=(0.5, 0.5, 0.5)), tmp_path / "weights")


class Call:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def named(name: str, content: bytes) -> Callable[[Net, Path], Path]:
    def write(network: Net, path: Path) -> Path:
        path.with_name(name).write_bytes(content)
        return path.with_name(name)

    return write


def folder(*names: str) -> Callable[[Net, Path], None]:
    def write(network: Net, path: Path) -> None:
        path.mkdir()
        for name in names:
            (path / name).touch()

    return write


def write_truncated(network: Net, path: Path) -> None:
    torch.save(network.state_dict(), path)
    path.write_bytes(path.read_bytes()[:1000])


def write_bomb(network: Net, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data.pkl", pickle.dumps({}))
        archive.writestr("weights/data/0", bytes(2**26))


def with_value(value: Any) -> Callable[[Net, Path], None]:
    def write(network: Net, path: Path) -> None:
        state = network.state_dict()
        state["fc.bias"] = value(state["fc.bias"]) if callable(value) else torch.full((3,), value)
        torch.save(state, path)

    return write


REFUSED: dict[str, tuple[Callable[[Net, Path], Any], str]] = {
    "a call in a pickle": (
        saved(lambda n: {"state_dict": n.state_dict(), "args": Call()}),
        r"holds a call of posix\.system, whose loading would execute code: refused, nothing was executed.*state_dict",
    ),
    "several sets of weights": (
        saved(lambda n: {"student": n.state_dict(), "teacher": others(n)}),
        r"holds 2 different sets of weights that fit \(student\.\*, teacher\.\*\)",
    ),
    "another network": (
        saved(lambda n: {"net": nn.Linear(3, 2).state_dict()}),
        r"conv\.weight \(2, 1, 3, 3\) is missing in the file.*net\.weight \(2, 3\) is unknown to the network",
    ),
    "another shape": (
        saved(lambda n: {"net": n.state_dict() | {"fc.bias": torch.ones(4)}}),
        r"fc\.bias is \(4,\) in the file and \(3,\) in the network",
    ),
    "more layers": (
        saved(lambda n: n.state_dict() | {"fc2.weight": torch.ones(3, 3)}),
        r"fc2\.weight \(3, 3\) is unknown to the network",
    ),
    "int8": (with_value(lambda t: t.to(torch.int8)), r"fc\.bias is int8 in the file, and the network has float32"),
    "bool": (with_value(lambda t: t > 0), r"fc\.bias is bool in the file"),
    "complex": (with_value(lambda t: t.to(torch.complex64)), r"fc\.bias is complex64 in the file"),
    "quantised": (
        with_value(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)), r"fc\.bias is qint8 in the file"
    ),
    "8-bit floats": (with_value(lambda t: t.to(torch.float8_e4m3fn)), r"fc\.bias is float8_e4m3fn in the file"),
    "sparse": (with_value(lambda t: t.to_sparse()), r"fc\.bias is float32, sparse_coo in the file"),
    "without data": (with_value(lambda t: t.to("meta")), r"fc\.bias is float32, without data in the file"),
    "NaN": (with_value(float("nan")), r"not finite \(NaN or infinite\).*fc\.bias \(3 of 3\)"),
    "infinite": (with_value(float("-inf")), r"not finite \(NaN or infinite\).*fc\.bias \(3 of 3\)"),
    "too large for float32": (
        with_value(lambda t: t.double() * 1e200), r"not finite \(NaN or infinite\).*fc\.bias \(3 of 3\)"
    ),
    "no tensors": (saved(lambda n: {"epoch": 3, "acc": 0.5}), "holds no network's weights.*the keys epoch, acc"),
    "tensors without names": (saved(lambda n: list(n.parameters())), "holds no network's weights.*got a list"),
    "numpy arrays in a pickle": (
        saved(lambda n: {name: value.numpy() for name, value in n.state_dict().items()}),
        "a pickle of numpy arrays: save them with numpy.savez",
    ),
    "frozen TorchScript": (write_torchscript("freeze"), "holds no network's weights.*as torch.jit.freeze makes it"),
    "torch.export (.pt2)": (
        lambda n, path: torch.export.save(torch.export.export(n, (torch.zeros(2, 1, 6, 6),)), path),
        r"is a zip archive and not one of torch\.save: refused.*torch\.export\.load",
    ),
    "arrays of objects": (
        lambda n, path: np.savez(path.open("wb"), a=np.array([Call()], dtype=object)),
        "not an array of numbers: refused, nothing was unpickled",
    ),
    "one array": (lambda n, path: np.save(path.open("wb"), np.ones(3)), "is one numpy array"),
    "index of several files": (named("model.safetensors.index.json", b"{}"), "index of a model in several files"),
    "distributed checkpoint": (folder(".metadata"), "is a folder, a distributed checkpoint: .*dcp_to_torch"),
    "DeepSpeed's folder": (folder("latest"), "is a folder, a DeepSpeed checkpoint: run the zero_to_fp32"),
    "model's folder": (folder("model.safetensors"), r"is a folder, .* give the file model\.safetensors in it"),
    "Keras (.h5)": (lambda n, path: path.write_bytes(b"\x89HDF\r\n\x1a\n123"), r"is an HDF5 file \(Keras\)"),
    "TensorFlow": (named("model.ckpt.index", b"123"), "part of a TensorFlow checkpoint"),
    "Flax, Orbax": (named("model.msgpack", b"123"), "is a Flax file"),
    "ONNX": (named("model.onnx", b"123"), "is an ONNX graph, whose weights have lost their names"),
    "compressed": (lambda n, path: path.write_bytes(gzip.compress(b"1")), "compressed with gzip: unpack it first"),
    "web page": (lambda n, path: path.write_text("<!DOCTYPE html><html>"), "is a web page: the download .* failed"),
    "Git LFS pointer": (
        lambda n, path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"
    ),
    "unpacks to far more": (write_bomb, r"would unpack to 67,108,\d+, and the network has 5\d\d: refused, not unpack"),
    "truncated": (write_truncated, "is damaged or truncated, or not a checkpoint: refused, nothing in it was executed"),
    "empty": (lambda n, path: path.touch(), "is empty: refused"),
    "pipe": (lambda n, path: os.mkfifo(path), "is not an ordinary file"),
    "dead link": (lambda n, path: path.symlink_to("gone"), "not found: .*it is a link to gone, which does not exist"),
    "address": (lambda n, path: "https://host/weights.pth", "is an address, and weights are read from files"),
    "no name": (lambda n, path: "", "the path of the weights is empty"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", REFUSED)
def test_other_layouts_are_refused_in_one_line_and_change_nothing(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write, message = REFUSED[layout]
    path = write(trained(), tmp_path / "weights")
    target = Net()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_weights(target, path if isinstance(path, str | Path) else tmp_path / "weights")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_the_table_in_the_documentation_has_the_same_rows() -> None:
    lines = (ROOT / "docs/weights.md").read_text().splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("| ") and not line.startswith("| Layout")]
    assert rows == [*READ, *REFUSED]


def test_recursive_and_exponentially_nested_files_are_read_at_once(tmp_path: Path) -> None:
    source, target = trained(), Net()
    content: dict[str, Any] = {"net": source.state_dict()}
    content["self"] = content
    for _ in range(60):
        content = {"a": content, "b": content}
    torch.save(content, tmp_path / "weights")
    load_weights(target, tmp_path / "weights")
    assert_loaded(target, source.state_dict())


@pytest.mark.parametrize("name", ["fc.\n\x1b[2Jweight", "long" * 1000])
def test_names_in_a_file_send_no_control_characters_to_the_terminal(tmp_path: Path, name: str) -> None:
    torch.save(trained().state_dict() | {name: torch.ones(2)}, tmp_path / "weights")
    with pytest.raises(ValueError, match="unknown to the network") as caught:
        load_weights(Net(), tmp_path / "weights")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_a_small_file_cannot_allocate_any_amount_of_memory(tmp_path: Path) -> None:
    requested = (2**40).to_bytes(8, "little")
    (tmp_path / "weights").write_bytes(b"\x80\x05" + pickle.BYTEARRAY8 + requested + b".")
    with pytest.raises(ValueError, match="is damaged or truncated"):
        load_weights(Net(), tmp_path / "weights")


def test_attributes_that_a_pickle_sets_on_builders_do_not_last(tmp_path: Path) -> None:
    # BUILD with a tuple sets attributes, here of the function that rebuilds tensors.
    code = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__N\x86sX\x01\x00\x00\x00as\x86b."
    (tmp_path / "weights").write_bytes(code)
    rebuild = torch._utils._rebuild_tensor_v2
    before = rebuild.__defaults__
    with pytest.raises(ValueError, match="weights"):
        load_weights(Net(), tmp_path / "weights")
    assert rebuild.__defaults__ == before


def test_other_weights_that_fit_are_reported(tmp_path: Path) -> None:
    source, target = trained(), Net()
    state = prefixed("network.", source) | {f"teacher.{name}": value for name, value in others(source).items()}
    torch.save({"state_dict": state}, tmp_path / "weights")
    assert "left out: state_dict.teacher.* (other weights that fit)" in str(load_weights(target, tmp_path / "weights"))
    assert_loaded(target, source.state_dict())


def test_a_network_split_over_several_keys_is_read(tmp_path: Path) -> None:
    source, target = trained(), Net()
    parts = {name: getattr(source, name).state_dict() for name in ("conv", "bn", "fc")}
    torch.save({"epoch": 3, "parts": parts}, tmp_path / "weights")
    assert "found under prefix parts." in str(load_weights(target, tmp_path / "weights"))
    assert_loaded(target, source.state_dict())


def test_a_file_may_lack_the_networks_normalisation(tmp_path: Path) -> None:
    source, target = trained(), Net()
    target.register_buffer("mu", torch.tensor([0.5]))
    target.register_buffer("sigma", torch.tensor([0.25]))
    torch.save(source.state_dict(), tmp_path / "weights")
    assert "the file has no normalisation, and the network keeps mean [0.5] and std [0.25]" in str(
        load_weights(target, tmp_path / "weights")
    )


def test_lazy_layers_are_refused_until_they_have_a_shape(tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "weights")
    with pytest.raises(ValueError, match="give the network an image first"):
        load_weights(nn.Sequential(nn.LazyLinear(3)), tmp_path / "weights")


def test_no_layer_changes_if_one_refuses_its_weights(tmp_path: Path) -> None:
    network = GatedMNISTCNN()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.save(MNISTCNN().state_dict(), tmp_path / "weights")
    with pytest.raises(ValueError, match=r"conv1\.weight is not that of a network with gates") as caught:
        load_weights(network, tmp_path / "weights")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_copy_inside_a_network_is_not_mistaken_for_the_network(tmp_path: Path) -> None:
    source = trained()
    torch.save(source.state_dict() | {f"teacher.{n}": t for n, t in others(source).items()}, tmp_path / "weights")
    with pytest.raises(ValueError, match="holds 2 different sets of weights that fit"):
        load_weights(Net(), tmp_path / "weights")


def test_extra_states_and_masks_are_kept(tmp_path: Path) -> None:
    class Masked(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

        def get_extra_state(self) -> OrderedDict[str, int]:
            return OrderedDict(version=1)

        def set_extra_state(self, state: Any) -> None:
            assert state == {"version": 1}

    torch.save(Masked().state_dict(), tmp_path / "weights")
    assert load_weights(Masked(), tmp_path / "weights").tensors == 10
