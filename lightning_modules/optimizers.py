"""The optimizer of a network, with weight decay on all parameters or on weights alone."""

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import nn
from torch.optim import Optimizer

OptimizerFactory: TypeAlias = Callable[[Any], Optimizer]


def build_optimizer(factory: OptimizerFactory, network: nn.Module, decay_norm_and_bias: bool) -> Optimizer:
    """Build the optimizer of a network's parameters.

    Args:
        factory: Function that builds it from parameters, or from groups of them.
        network: Network to train.
        decay_norm_and_bias: If False, parameters of fewer than two dimensions are a second group without weight
            decay: biases, and the scales and shifts of normalisation layers.

    Raises:
        ValueError: If a setting of the optimizer is out of its range.
    """
    parameters: Any = network.parameters()
    if not decay_norm_and_bias:
        weights, others = ([p for p in network.parameters() if (p.ndim > 1) == many] for many in (True, False))
        groups: list[dict[str, Any]] = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
        parameters = [group for group in groups if group["params"]]
    try:
        return factory(parameters)
    except ValueError as error:  # torch names no option: "Invalid learning rate: -1.0"
        raise ValueError(f"model.optimizer can't be built: {error}") from error
