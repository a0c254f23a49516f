"""Certified accuracy in validation and test: where it can be measured, and images that contradict it."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from rampart.attacks import NamedAttack, NormName, format_eps, parse_eps
from rampart.bounds import NoBoundError, check_bounded


def list_linf_eps(attacks: Iterable[NamedAttack]) -> list[float]:
    """Return the radii of the attacks in l-inf, rising."""
    return sorted({parse_eps(named.eps, "Linf") for named in attacks if named.attack.norm == "Linf"})


def can_certify(network: nn.Module, norm: NormName, certify: bool | None) -> bool:
    """Return True if certified accuracy can be measured: in l-inf, of a network with interval bounds.

    Args:
        network: The network, in any mode; not changed.
        norm: Norm of the target eps.
        certify: True raises an error if it can't be measured.

    Raises:
        ValueError: If ``certify`` is True, and the norm is not Linf or an operation of the network has no bound.
    """
    modes = [(module, module.training) for module in network.modules()]
    try:
        if norm != "Linf":
            raise NoBoundError(f"bounds are in the norm Linf, and model.attack has the norm {norm}")
        check_bounded(network.eval())
    except NoBoundError as error:
        if certify:
            raise ValueError(f"model.certify true is not possible: {error}; leave it out") from error
        return False
    finally:
        for module, mode in modes:
            module.training = mode
    return True


def check_robust(certified: Tensor, eps: float, robust: Sequence[tuple[NamedAttack, Tensor]], where: str) -> None:
    """Check that no attack within a certified radius has fooled a certified image.

    Args:
        certified: ``(N,)``, bool, the images certified at eps.
        eps: Radius on the pixel scale, in l-inf.
        robust: The attacks, each with ``(N,)``, bool, the images that are robust to it.
        where: Place of the images, such as ``"batch 2 of test"``, for the message.

    Raises:
        ValueError: If an image is certified and fooled, which shows that the bound or the evaluation is broken.
    """
    for named, mask in robust:
        inside = named.attack.norm == "Linf" and parse_eps(named.eps, "Linf") <= eps
        if inside and (count := int((certified & ~mask).sum())):
            raise ValueError(
                f"the evaluation is broken, no number is reported: {count} images of {where} are certified at eps "
                f"{format_eps(eps)} and fooled by {named.name}"
            )
