"""Checks of images, labels, weights and logits before and after attacks, and how images are batched."""

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rampart.attacks import PGD
from rampart.evaluation import WorstCaseSearch, in_memory
from rampart.evaluation.clean_pass import run_clean_pass
from rampart.evaluation.image_source import visit_batches
from tests.rampart.evaluation.test_worst_case import Counting, Threshold, case


def changed(index: int, change: Callable[[Tensor, Tensor], None]) -> tuple[Tensor, Tensor]:
    _, images, labels = case()
    images, labels = images.clone(), labels.clone()
    change(images[index:], labels[index:])
    return images, labels


def nan_pixel(images: Tensor, _: Tensor) -> None:
    images[0, 0, 0, 0] = torch.nan


def too_bright(images: Tensor, _: Tensor) -> None:
    images[0, 0, 0, 0] = 1.5


def label(value: int) -> Callable[[Tensor, Tensor], None]:
    def set_it(_: Tensor, labels: Tensor) -> None:
        labels[0] = value

    return set_it


@pytest.mark.parametrize("index", [0, 35])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nan_pixel, r"images must be in \[0, 1\] without NaN"),
        (too_bright, r"images must be in \[0, 1\]"),
        (label(2), r"labels must be in \[0, 2\)"),
        (label(-1), r"labels must be in \[0, 2\), .*got -1"),
        (label(-100), r"got -100"),
    ],
)
def test_an_invalid_image_or_label_is_refused_before_any_attack(
    index: int, change: Callable[[Tensor, Tensor], None], message: str
) -> None:
    counting = Counting()
    source = in_memory(*changed(index, change))
    batch = 1 + index // 10
    with pytest.raises(ValueError, match=rf"{message}.*\(batch {batch} of the test images\)"):
        WorstCaseSearch(Threshold(), source, [counting], [0.1], batch_size=10).run()
    assert counting.attacked == []


class Breaks(Threshold):
    """Returns NaN or infinite logits for images that are brighter than a level."""

    def __init__(self, level: float, value: float) -> None:
        super().__init__()
        self.level, self.value = level, value

    def forward(self, images: Tensor) -> Tensor:
        bright = images.flatten(1).amax(1) > self.level
        return super().forward(images).where(~bright[:, None], self.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_clean_logits_that_are_not_finite_are_refused_with_the_index(value: float) -> None:
    _, images, labels = case()
    counting, source = Counting(), in_memory(images, labels)
    with pytest.raises(ValueError, match=r"NaN or infinite on the clean images of batch 4, for 2 of 10 .*index 38, 39"):
        WorstCaseSearch(Breaks(0.85, value), source, [counting], [0.1], batch_size=10).run()
    assert counting.attacked == []


class Brightens(Counting):
    name = "brightens"

    def __call__(self, model: object, images: Tensor, *_: object, **__: object) -> Tensor:
        return images + 0.09


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_after_an_attack_are_refused(value: float) -> None:
    _, images, labels = case()
    with pytest.raises(ValueError, match=r"NaN or infinite after brightens at eps 0\.1 on batch 4, for .* \(index 3"):
        WorstCaseSearch(Breaks(0.9, value), in_memory(images, labels), [Brightens()], [0.1], batch_size=10).run()
    with pytest.raises(ValueError, match=r"NaN or infinite after PGD-2 at eps 0\.1 on batch 4"):
        WorstCaseSearch(Breaks(0.9, value), in_memory(images, labels), [PGD(steps=2)], [0.1], batch_size=10).run()


def linear(parameter: float = 1.0, buffer: float = 1.0) -> nn.Module:
    dense, norm = nn.Linear(16, 2), nn.BatchNorm1d(2)
    dense.weight.data[1, 2] = parameter
    assert norm.running_mean is not None
    norm.running_mean[0] = buffer
    return nn.Sequential(nn.Flatten(), dense, norm).eval()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (linear(parameter=torch.nan), "1.weight"),
        (linear(parameter=-torch.inf), "1.weight"),
        (linear(buffer=torch.nan), "2.running_mean"),
    ],
)
def test_weights_that_are_not_finite_are_refused_by_name(model: nn.Module, name: str) -> None:
    _, images, labels = case()
    with pytest.raises(ValueError, match=rf"weights are NaN or infinite, the first in {name}"):
        run_clean_pass(model, in_memory(images, labels), 10)


def test_an_infinite_mask_among_the_buffers_is_allowed() -> None:
    model, images, labels = case()
    model.register_buffer("mask", torch.tensor(-torch.inf))
    assert run_clean_pass(model, in_memory(images, labels), 10).clean_class.shape == (40,)


def test_no_images_or_too_few_are_refused() -> None:
    model, images, labels = case()
    with pytest.raises(ValueError, match="the test data hold no images"):
        run_clean_pass(model, in_memory(images[:0], labels[:0]), 10)
    with pytest.raises(ValueError, match="from 1 to the test images' number, 40, got 41"):
        run_clean_pass(model, in_memory(images, labels), 10, num_images=41)


def test_clean_pass_returns_starts_hashes_predictions_and_correct_images() -> None:
    model, images, labels = case()
    clean_pass = run_clean_pass(model, in_memory(images, labels), 15, num_images=38)
    assert clean_pass.starts == [0, 15, 30]
    assert len(clean_pass.hashes) == 3
    assert torch.equal(clean_pass.labels, labels[:38])
    assert (clean_pass.clean_class != clean_pass.labels).nonzero().squeeze(1).tolist() == [3]
    assert clean_pass.probe.indices.tolist() == [index for index in range(38) if index != 3]
    assert torch.equal(clean_pass.probe.images, images[clean_pass.probe.indices])


def test_a_network_that_fails_is_named_with_its_error() -> None:
    class Fails(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return {"another": images}["key"]

    _, images, labels = case()
    with pytest.raises(ValueError, match=r"Fails failed on images of shape \(10, 1, 4, 4\): KeyError: 'key'"):
        run_clean_pass(Fails(), in_memory(images, labels), 10)


def test_memory_holds_a_few_batches_and_not_the_data_set() -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def source(visit: Callable[[Tensor, Tensor], None]) -> None:
        nonlocal most
        for _ in range(30):
            _, images, labels = case(10)
            alive.add(images)
            most = max(most, len(alive))
            visit(images, labels)

    found = WorstCaseSearch(Threshold(), source, [PGD(steps=2)], [0.1], batch_size=20).run()
    assert len(found.labels) == 300
    assert most <= 4
    assert len(found.examples) == 20


@pytest.mark.parametrize("sizes", [[40], [7, 30, 3], [1] * 40])
def test_batches_have_one_size_whatever_the_size_of_the_loaders(sizes: list[int]) -> None:
    _, images, labels = case()

    def source(visit: Callable[[Tensor, Tensor], None]) -> None:
        for part, of in zip(images.split(sizes), labels.split(sizes), strict=True):
            try:
                visit(part, of)
            except StopIteration:
                return

    for limit, expected in ((None, [16, 16, 8]), (20, [16, 4]), (16, [16])):
        seen: list[tuple[int, Tensor, Tensor]] = []
        visit_batches(source, lambda *batch, seen=seen: seen.append(batch), 16, limit)
        assert [len(of) for _, _, of in seen] == expected
        assert [number for number, _, _ in seen] == list(range(len(expected)))
        assert torch.equal(torch.cat([part for _, part, _ in seen]), images[:limit])


def test_images_of_another_shape_start_a_new_batch() -> None:
    def source(visit: Callable[[Tensor, Tensor], None]) -> None:
        for side in (2, 2, 3):
            visit(torch.rand(3, 1, side, side), torch.zeros(3, dtype=torch.int64))

    shapes: list[tuple[int, ...]] = []
    visit_batches(source, lambda _number, images, _labels: shapes.append(tuple(images.shape)), 4)
    assert shapes == [(4, 1, 2, 2), (2, 1, 2, 2), (3, 1, 3, 3)]
