"""A small reader of ONNX files: convolutions, linear layers, ReLUs, sums and flattening become torch modules."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Sum(nn.Module):
    """Sum of two tensors, the end of a residual block."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the sum, with the shape that the two broadcast to."""
        return one + other


class OnnxNetwork(nn.Module):
    """Network of an ONNX file, in eval mode, without gradients of its weights.

    It computes in the file's order. Its layers take batches, whatever batch size the file states.

    Args:
        file: ONNX file whose weights are stored in it.

    Attributes:
        image_shape: Shape of one input, such as ``(3, 32, 32)``, as the file states it.

    Raises:
        ModuleNotFoundError: If the package onnx is not installed.
        ValueError: If the file has another operation or setting than those above, or several inputs or outputs.
    """

    def __init__(self, file: Path | str) -> None:
        try:
            import onnx
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("reading ONNX files needs onnx: pip install -e '.[onnx]'") from error
        super().__init__()
        graph = onnx.load(str(file)).graph
        weights = {tensor.name: torch.tensor(onnx.numpy_helper.to_array(tensor)) for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in weights]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise ValueError(f"{Path(file).name} must have one input and one output")
        self.image_shape = tuple(size.dim_value for size in inputs[0].type.tensor_type.shape.dim[1:])
        self._input, self._output = inputs[0].name, graph.output[0].name
        self._names = [([name for name in node.input if name not in weights], node.output[0]) for node in graph.node]
        self.layers = nn.ModuleList()
        for node in graph.node:
            settings = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            tensors = [weights[name] for name in node.input if name in weights]
            if len(tensors) + len(self._names[len(self.layers)][0]) != len(node.input):
                raise ValueError(f"{Path(file).name}: a weight of {node.op_type} is not in the file")
            self.layers.append(build_layer(node.op_type, tensors, settings))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, C)`` for images ``(N, *image_shape)``, in the input scale of the file."""
        values = {self._input: images}
        for layer, (inputs, output) in zip(self.layers, self._names, strict=True):
            values[output] = layer(*(values[name] for name in inputs))
        return values[self._output]


def build_layer(kind: str, weights: list[Tensor], settings: dict[str, Any]) -> nn.Module:
    """Return the module of an ONNX operation.

    Args:
        kind: Name of the operation, such as ``Conv``.
        weights: Its inputs that the file stores: weight and bias.
        settings: Its attributes.

    Raises:
        ValueError: If the operation or a setting is not supported.
    """
    if kind == "Conv" and len(weights) in (1, 2) and weights[0].ndim == 4:
        return _build_conv(weights, settings)
    if kind == "Gemm" and len(weights) == 2:
        return _build_linear(weights, settings)
    if kind == "Relu":
        return nn.ReLU()
    if kind == "Flatten" and settings.get("axis", 1) == 1:
        return nn.Flatten()
    if kind == "Add" and not weights:
        return Sum()
    raise ValueError(
        f"cannot read the ONNX operation {kind} with {len(weights)} weights and {settings}: "
        "Conv of images, Gemm, Relu, Flatten from axis 1 and Add of two layers can be read"
    )


def _build_conv(weights: list[Tensor], settings: dict[str, Any]) -> nn.Module:
    pads, group = list(settings.get("pads", [0] * 4)), settings.get("group", 1)
    if pads[:2] != pads[2:] or settings.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise ValueError(f"cannot read a convolution with different padding at both ends: {settings}")
    channels, inputs, *kernel = weights[0].shape
    layer = nn.Conv2d(
        inputs * group,
        channels,
        (kernel[0], kernel[1]),
        tuple(settings.get("strides", (1, 1))),
        tuple(pads[:2]),
        tuple(settings.get("dilations", (1, 1))),
        group,
        bias=len(weights) == 2,
    )
    return _fill(layer, weights)


def _build_linear(weights: list[Tensor], settings: dict[str, Any]) -> nn.Module:
    if settings.get("alpha", 1.0) != 1 or settings.get("beta", 1.0) != 1 or settings.get("transA", 0):
        raise ValueError(f"cannot read a Gemm with alpha, beta or transA: {settings}")
    weight = weights[0] if settings.get("transB", 0) else weights[0].T
    return _fill(nn.Linear(weight.shape[1], weight.shape[0]), [weight, weights[1]])


def _fill(layer: nn.Module, weights: list[Tensor]) -> nn.Module:
    layer.load_state_dict(dict(zip(("weight", "bias"), weights, strict=False)), strict=True)
    return layer
