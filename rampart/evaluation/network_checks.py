"""Checks of the network under evaluation: its weights, and the logits that it returns."""

from torch import Tensor, nn

from rampart.attacks.input_gradient import predict
from rampart.files.finite import first_nonfinite


def check_weights(network: nn.Module) -> None:
    """Check that a network's weights are finite.

    Raises:
        ValueError: If a parameter is NaN or infinite, or a buffer NaN; the message names the first.
    """
    if name := first_nonfinite(network):
        raise ValueError(
            f"the network's weights are NaN or infinite, the first in {name}: the training that made them failed; use "
            "a checkpoint from before"
        )


def finite_logits(network: nn.Module, images: Tensor, indices: Tensor, where: str) -> Tensor:
    """Return the logits ``(N, C)`` of images, in float32 or float64, and check that they are finite.

    Args:
        network: Maps images to logits.
        images: ``(N, ...)``.
        indices: ``(N,)``, int64: zero-based index of each image in the data set, for the error.
        where: Description of the images for the error, such as ``"after PGD-40 at eps 0.3 on batch 2"``.

    Raises:
        ValueError: If the network fails, returns anything but logits, or a logit that is NaN or infinite.
    """
    try:
        logits = predict(network, images)
    except ValueError:
        raise
    except Exception as error:  # The network may be any code. The text of a KeyError is the key alone.
        name, kind = type(network).__name__, type(error).__name__
        raise ValueError(f"{name} failed on images of shape {tuple(images.shape)}: {kind}: {error}") from error
    wrong = (~logits.isfinite().all(1)).nonzero().squeeze(1).cpu()
    if len(wrong):
        first = ", ".join(str(index) for index in indices.cpu()[wrong][:5].tolist())
        raise ValueError(
            f"the network's logits are NaN or infinite {where}, for {len(wrong)} of {len(images)} images "
            f"(index {first}{', ...' if len(wrong) > 5 else ''}): no number is reported"
        )
    return logits
