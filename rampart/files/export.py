"""Export a trained network to files that other programs read."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors.torch import save
from torch import Tensor, nn

from rampart.files.attacker_model import robustness_checkpoint, shaeiri_weights
from rampart.files.finite import check_finite_weights
from rampart.networks import plain_form

ExportFormat: TypeAlias = Literal["pth", "safetensors", "onnx", "robustness", "shaeiri"]
ImageShape: TypeAlias = tuple[int, int, int]
Encoder: TypeAlias = Callable[[nn.Module, ImageShape | None], bytes]
Layout: TypeAlias = Callable[[nn.Module, dict[str, Tensor]], dict[str, Any]]


def export_network(network: nn.Module, path: str | Path, image_shape: ImageShape | None = None) -> None:
    """Write a network's weights, or for ONNX the network itself, to a new file.

    - ``.pth``: a plain state_dict, written by ``torch.save``.
    - ``.safetensors``: the same tensors, in a format that holds tensors only.
    - ``.onnx``: the network in eval mode; input ``images`` ``(N, C, H, W)`` in [0, 1], output ``logits``
      ``(N, classes)``, any N. A network with gates is written in its plain form (:func:`rampart.networks.plain_form`),
      which test and evaluate attack.
    - ``.robustness.pt``: a ResNet as the robustness library saves it. Its ``make_and_restore_model`` restores it with
      ``arch="resnet18"``, ``"ResNet34"``, ``"resnet50"`` or ``"resnet101"``; with another ``width``, if ``arch`` is
      such a network of the library.
    - ``.shaeiri.pth``: what MNIST/test.py and CIFAR10/test.py of Shaeiri et al. 2020 load in place of their own files,
      for :class:`rampart.networks.MNISTCNN` and :class:`rampart.networks.ResNet50`.

    Tensors have the network's names, without the prefixes of ``torch.compile`` and ``DataParallel``; in the last two
    formats they have the library's names, in the older format of ``torch.save``, which every version of PyTorch reads.

    Args:
        network: The network to write; not changed.
        path: Path of a new file; its ending selects the format.
        image_shape: ``(C, H, W)`` of the input images, recorded in ONNX; the network's ``image_shape`` if None.

    Raises:
        ValueError: If the ending is unknown, the weights are not finite, the format has no such network, or it is ONNX
            and the images' shape is unknown.
        FileExistsError: If the file exists.
        ImportError: If the format is ONNX and its packages are not installed.
    """
    path = Path(path)
    check_export(network, [path], image_shape)
    network = _unwrap(network)
    check_finite_weights(network, type(network).__name__)
    content = WRITERS[_find_ending(path)](network, image_shape or getattr(network, "image_shape", None))
    with path.open("xb") as file:
        file.write(content)


def check_export(network: nn.Module, paths: Sequence[Path], image_shape: ImageShape | None = None) -> None:
    """Check exports before the first file is written.

    Args:
        network: The network to write; not changed.
        paths: Paths of the files to write.
        image_shape: See :func:`export_network`.

    Raises:
        ValueError: If an ending is unknown, a format has no such network, or a file is ONNX and the images' shape is
            unknown or the network fails on it.
        FileExistsError: If one of the files exists.
    """
    network = _unwrap(network)
    for path in paths:
        ending = _find_ending(path)
        if ending in LAYOUTS:
            LAYOUTS[ending](network, _collect_weights(network))
        if path.exists():
            raise FileExistsError(f"{path} exists and is not overwritten: give another name")
    shape = image_shape or getattr(network, "image_shape", None)
    if any(path.suffix == ".onnx" for path in paths):
        if shape is None:
            raise ValueError(
                f"image_shape must be given for ONNX, as {type(network).__name__} has no image_shape: "
                "(channels, height, width), such as [3, 32, 32]"
            )
        try:
            with _eval_mode(network), torch.no_grad():
                network(_example_images(network, shape))
        except RuntimeError as error:  # The exporter would report this in many lines.
            raise ValueError(f"image_shape {list(shape)} does not suit {type(network).__name__}: {error}") from error


def name_file(name: str, file_format: ExportFormat) -> str:
    """Return the name of a file in a format, such as ``network.pth``."""
    return name + ENDINGS[file_format]


def _find_ending(path: Path) -> str:
    for ending in sorted(WRITERS, key=len, reverse=True):
        if path.name.endswith(ending) and path.name != ending:
            return ending
    raise ValueError(f"an export's name must end in {', '.join(WRITERS)}, got {path.name!r}")


def _unwrap(network: nn.Module) -> nn.Module:
    if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return _unwrap(network.module)
    inner = getattr(network, "_orig_mod", None)
    return network if inner is None else _unwrap(inner)


def _collect_weights(network: nn.Module) -> dict[str, Tensor]:
    state = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}


def _encode_pth(network: nn.Module, _image_shape: ImageShape | None) -> bytes:
    buffer = io.BytesIO()
    torch.save(_collect_weights(network), buffer)
    return buffer.getvalue()


def _encode_layout(arrange: Layout) -> Encoder:
    def encode(network: nn.Module, _image_shape: ImageShape | None) -> bytes:
        buffer = io.BytesIO()
        torch.save(arrange(network, _collect_weights(network)), buffer, _use_new_zipfile_serialization=False)
        return buffer.getvalue()

    return encode


def _encode_safetensors(network: nn.Module, _image_shape: ImageShape | None) -> bytes:
    # safetensors' save_file writes files that only their owner may read.
    return save(_collect_weights(network))


def _encode_onnx(network: nn.Module, image_shape: ImageShape | None) -> bytes:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"ONNX needs a package that is not installed ({error.name}): pip install '.[onnx]'"
        ) from error
    assert image_shape is not None
    with _eval_mode(network), contextlib.redirect_stdout(io.StringIO()):  # the exporter prints its progress
        program = torch.onnx.export(
            plain_form(network),
            (_example_images(network, image_shape),),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


@contextlib.contextmanager
def _eval_mode(network: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _example_images(network: nn.Module, image_shape: ImageShape) -> Tensor:
    return torch.zeros(2, *image_shape, device=next(network.parameters()).device)


ENDINGS: dict[ExportFormat, str] = {
    "pth": ".pth",
    "safetensors": ".safetensors",
    "onnx": ".onnx",
    "robustness": ".robustness.pt",
    "shaeiri": ".shaeiri.pth",
}
# Formats that not every network has, and the functions that arrange its weights.
LAYOUTS: dict[str, Layout] = {".robustness.pt": robustness_checkpoint, ".shaeiri.pth": shaeiri_weights}
WRITERS: dict[str, Encoder] = {
    ".pth": _encode_pth,
    ".safetensors": _encode_safetensors,
    ".onnx": _encode_onnx,
    **{ending: _encode_layout(arrange) for ending, arrange in LAYOUTS.items()},
}
