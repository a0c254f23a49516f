"""A trained network as files that other programs read."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

ExportFormat: TypeAlias = Literal["pth", "safetensors", "onnx"]


def export_network(network: nn.Module, path: str | Path, image_shape: tuple[int, int, int]) -> None:
    """Write a network's weights, or for ONNX the network itself, to a new file.

    - ``.pth``: a plain state_dict, as ``torch.save`` writes it. Of :class:`networks.MNISTCNN` this is the format of
      Shaeiri et al. 2020: tensors ``conv1``, ``conv2``, ``fc1``, ``fc2``, which their MNIST/test.py loads.
    - ``.safetensors``: the same tensors in a file that can hold nothing else.
    - ``.onnx``: in eval mode; input ``images`` ``(N, C, H, W)`` in [0, 1], output ``logits`` ``(N, classes)``, any N.

    Args:
        network: Left as it is.
        path: Its suffix chooses the format.
        image_shape: ``(C, H, W)`` of the images that the network takes; ONNX records it.

    Raises:
        ValueError: If the suffix is none of these.
        FileExistsError: If the file exists.
        ImportError: If ONNX is asked for and its packages are not installed.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise ValueError(f"an export's name must end in {', '.join(WRITERS)}, got {path.name!r}")
    if path.exists():
        raise FileExistsError(f"{path} exists and is not overwritten: give another name")
    WRITERS[path.suffix](network, path, image_shape)


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in network.state_dict().items()}


def _write_pth(network: nn.Module, path: Path, _image_shape: tuple[int, int, int]) -> None:
    torch.save(_weights(network), path)


def _write_safetensors(network: nn.Module, path: Path, _image_shape: tuple[int, int, int]) -> None:
    save_file(_weights(network), path)


def _write_onnx(network: nn.Module, path: Path, image_shape: tuple[int, int, int]) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"ONNX needs a package that is not installed ({error.name}): pip install '.[onnx]'"
        ) from error
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        example = torch.zeros(2, *image_shape, device=next(network.parameters()).device)
        with contextlib.redirect_stdout(io.StringIO()):  # the exporter narrates
            torch.onnx.export(
                network,
                (example,),
                path,
                dynamo=True,
                external_data=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    finally:
        for module, training in modes.items():
            module.training = training


WRITERS: dict[str, Callable[[nn.Module, Path, tuple[int, int, int]], None]] = {
    ".pth": _write_pth,
    ".safetensors": _write_safetensors,
    ".onnx": _write_onnx,
}
