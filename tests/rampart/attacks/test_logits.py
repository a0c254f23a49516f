from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rampart.attacks import PGD, AtImage
from rampart.attacks.logits import compute_logits

IMAGES = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])
Outputs = namedtuple("Outputs", ["logits", "aux_logits"])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


class Returning(nn.Module):
    """Returns a network's logits in another form."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.inner, self.change = network(), change

    def forward(self, images: Tensor) -> Any:
        return self.change(self.inner(images))


class InPlace(nn.Module):
    """Normalises its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.inner(images.sub_(0.5).mul_(2))
        return out


class OutOfPlace(InPlace):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.clone())


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: logits,
        lambda logits: (logits,),
        lambda logits: {"logits": logits, "loss": None},
        lambda logits: SimpleNamespace(logits=logits),
        lambda logits: Outputs(logits, logits.sum(1)),
        lambda logits: logits.double(),
    ],
)
def test_logits_in_a_tuple_of_one_or_by_name_are_found(change: Any) -> None:
    logits = compute_logits(Returning(change), IMAGES)
    assert torch.equal(logits.float(), network()(IMAGES))
    assert logits.requires_grad


def test_half_logits_become_float32() -> None:
    assert compute_logits(Returning(lambda logits: logits.bfloat16()), IMAGES).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: (logits, logits), r"must return logits of shape \(4, classes\) for 4 images, got a tuple of 2"),
        (lambda logits: {"out": logits}, "got a dict with the keys out: wrap it"),
        (lambda logits: None, "got a NoneType: wrap it"),
        (lambda logits: logits[:2], r"got shape \(2, 3\)"),
        (lambda logits: logits[:, 0], r"got shape \(4,\)"),
        (lambda logits: logits[:, :, None, None], r"got shape \(4, 3, 1, 1\)"),
        (lambda logits: logits.argmax(1, keepdim=True), r"got shape \(4, 1\), int64"),
        (lambda logits: logits[:, :1], r"at least two logits per image.* got shape \(4, 1\)"),
        (lambda logits: logits @ torch.ones(2, 2), r"failed on images of shape \(4, 1, 4, 4\) float32: mat1 and mat2"),
    ],
)
def test_other_outputs_raise_with_one_line(change: Any, message: str) -> None:
    for call in (compute_logits, lambda model, images: PGD(steps=2)(model, images, LABELS, 0.1)):
        with pytest.raises(ValueError, match=message) as caught:
            call(Returning(change), IMAGES)
        assert "\n" not in str(caught.value)


def test_a_failing_function_is_named() -> None:
    def broken(images: Tensor) -> Tensor:
        return images

    with pytest.raises(ValueError, match=r"^broken must return logits"):
        compute_logits(broken, IMAGES)


def test_an_out_of_memory_error_keeps_its_type() -> None:
    def full(images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        compute_logits(full, IMAGES)


def test_a_network_that_changes_its_input_in_place_leaves_the_images_unchanged() -> None:
    before, same = IMAGES.clone(), OutOfPlace()
    assert torch.equal(compute_logits(InPlace(), IMAGES), compute_logits(same, IMAGES))
    adv = PGD(steps=3, start=AtImage())(InPlace(), IMAGES, LABELS, 0.1)
    assert torch.equal(adv, PGD(steps=3, start=AtImage())(same, IMAGES, LABELS, 0.1))
    assert torch.equal(IMAGES, before)
