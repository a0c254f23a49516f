"""The attack interface, and an attack paired with an eps."""

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from rampart.attacks.context import Model
from rampart.attacks.eps import Eps, NormName, format_eps, parse_eps
from rampart.attacks.losses import AttackLoss, LossName
from rampart.attacks.norms import per_image
from rampart.attacks.validation import check_active

AnyAttack = TypeVar("AnyAttack", bound="Attack")


class Attack(ABC):
    """Interface of attacks: immutable settings with a call that returns adversarial images.

    :func:`attack_active` attacks only some images of a batch. For it, the calls of this package's attacks have a
    further argument ``active``; a custom attack does not need one.
    """

    norm: NormName

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name for tables."""

    @property
    def starts_at_images(self) -> bool:
        """True if the first step starts at the clean images, where a divergence from them has no gradient."""
        return False

    @property
    def drops_fooled_images(self) -> bool:
        """True if the attack stops computing the loss of images once they are fooled."""
        return False

    def settings(self) -> dict[str, Any]:
        """Return the class name and all settings as plain values, for reports.

        Settings are the fields of a dataclass and the attributes of any other class. A setting that is itself a
        dataclass becomes a dictionary with its class name and fields; a function, its name.
        """
        return {"class": type(self).__qualname__, "norm": self.norm, **_plain_fields(self)}

    def with_settings(
        self: AnyAttack, steps: int | Literal["paper"] | None = None, step_size: Eps | None = None
    ) -> AnyAttack:
        """Return the same attack with another number or length of steps.

        Args:
            steps: Number of gradient steps; unchanged if None.
            step_size: Step length on the pixel scale, which replaces a relative step size; unchanged if None.

        Raises:
            TypeError: If the attack has no such setting.
            ValueError: If a setting is out of its range.
        """
        changes: dict[str, Any] = {} if steps is None else {"steps": steps}
        if step_size is not None:
            changes |= {"step_size": step_size}
            if hasattr(self, "relative_step_size"):
                changes |= {"relative_step_size": None}
        return self._replace(changes)

    def with_loss(self: AnyAttack, loss: LossName | AttackLoss) -> AnyAttack:
        """Return the same attack with another loss to maximise.

        Args:
            loss: The loss to maximise, a name or a function ``(logits, labels) -> (N,)``.

        Raises:
            TypeError: If the attack has no loss that can be replaced.
            ValueError: If the name of the loss is unknown.
        """
        return self._replace({"loss": loss})

    def _replace(self: AnyAttack, changes: dict[str, Any]) -> AnyAttack:
        known: set[str] = {field.name for field in fields(self) if field.init} if is_dataclass(self) else set()
        for name in changes:
            if name not in known:
                raise TypeError(
                    f"{type(self).__name__} has no {name} to set: leave it out, or use another attack, such as PGD"
                )
        return replace(self, **changes)  # type: ignore[type-var]

    @abstractmethod
    def __call__(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        eps: Eps,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return adversarial images inside the ball of radius ``eps`` and the box [0, 1].

        Args:
            model: Maps images to logits ``(N, C)``.
            images: ``(N, ...)``, float32 or float64, in [0, 1].
            labels: ``(N,)``, int64, in [0, C).
            eps: Radius on the pixel scale.
            generator: Source of random numbers, on the images' device; the global one if None.
        """


def _plain_fields(value: Any) -> dict[str, Any]:
    names = [field.name for field in fields(value)] if is_dataclass(value) else list(getattr(value, "__dict__", {}))
    return {name: _plain(getattr(value, name)) for name in names}


def _plain(value: Any) -> Any:
    if isinstance(value, Attack):
        return value.settings()
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__qualname__, **_plain_fields(value)}
    if type(value) in (list, tuple):
        return type(value)(_plain(item) for item in value)
    return getattr(value, "__qualname__", value)


def attack_active(
    attack: Attack,
    model: Model,
    images: Tensor,
    labels: Tensor,
    eps: Eps,
    generator: torch.Generator | None = None,
    active: Tensor | None = None,
) -> Tensor:
    """Attack some images of a batch and return the others unchanged.

    Random numbers are drawn for the whole batch, so an image's result does not depend on which others are active. An
    attack whose ``__call__`` has no ``active`` attacks the whole batch; only the results of active images are used.

    Args:
        attack: Any attack.
        model: Maps images to logits ``(N, C)``.
        images: ``(N, ...)``, float32 or float64, in [0, 1].
        labels: ``(N,)``, int64, in [0, C).
        eps: Radius on the pixel scale.
        generator: Source of random numbers, on the images' device; the global one if None. Use a new one for each
            call: the amount of random numbers used depends on how early images are fooled.
        active: ``(N,)``, bool, the images to attack; all if None.

    Raises:
        ValueError: If ``active`` has another shape, dtype or device. The attack may raise further errors.
    """
    given, labels = images.clone(), labels.clone()  # A custom attack may work in place.
    if active is None:
        return attack(model, given, labels, eps, generator=generator)
    check_active(active, images)
    if accepts_active(attack):
        accepting: Any = attack
        adv: Tensor = accepting(model, given, labels, eps, generator=generator, active=active)
        return adv
    if not bool(active.any()):
        return images
    adv = attack(model, given, labels, eps, generator=generator)
    return keep_active(adv, images, active)


def accepts_active(attack: Attack) -> bool:
    """Return True if the attack's call has the argument ``active``, or any keyword arguments."""
    parameters = inspect.signature(attack).parameters.values()
    return any(parameter.name == "active" or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def keep_active(adv: Tensor, images: Tensor, active: Tensor) -> Tensor:
    """Return the adversarial image where ``active`` is True, the clean image elsewhere."""
    return torch.where(per_image(active, images), adv, images)


@dataclass(frozen=True)
class NamedAttack:
    """An attack at one eps, as a row of a results table.

    Attributes:
        attack: The attack.
        eps: Radius on the pixel scale, such as ``0.3`` or ``"8/255"``.
        name: Row title; by default the attack's name and eps, such as ``PGD-200 @ 0.3``.

    Raises:
        ValueError: If eps is out of the norm's range.
    """

    attack: Attack
    eps: Eps
    name: str = ""

    def __post_init__(self) -> None:
        parse_eps(self.eps, self.attack.norm)
        if not self.name:
            fraction = format_eps(self.eps)
            eps = fraction if "/" in fraction else self.eps
            object.__setattr__(self, "name", f"{self.attack.name} @ {eps}")

    def __call__(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator | None = None,
        active: Tensor | None = None,
    ) -> Tensor:
        """Run the attack at its eps; see :func:`attack_active`."""
        return attack_active(self.attack, model, images, labels, self.eps, generator, active)
