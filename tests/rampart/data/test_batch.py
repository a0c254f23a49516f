from collections import UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from rampart.data import Batch, TensorBatches, read_batch

IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([3, 0, 9, 1])
INDEX = torch.tensor([5, 6, 7, 8])


class Reversed(NamedTuple):
    label: Tensor
    image: Tensor


class Unnamed(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Sample:
    label: Tensor
    image: Tensor


@pytest.mark.parametrize(
    "batch",
    [
        (IMAGES, LABELS),
        [IMAGES, LABELS],
        Unnamed(IMAGES, LABELS),
        Reversed(LABELS, IMAGES),
        Sample(LABELS, IMAGES),
        UserDict({"pixel_values": IMAGES, "labels": LABELS}),
        (IMAGES.numpy(), LABELS.numpy()),
        (IMAGES, LABELS.tolist()),
        (IMAGES, LABELS, ["a.png", "b.png", "c.png", "d.png"]),
        {"text": ["a", "b", "c", "d"], "img": IMAGES, "label": LABELS},
        *({image: IMAGES, "y": LABELS} for image in ("image", "images", "input", "inputs", "x")),
        *({"image": IMAGES, label: LABELS} for label in ("label", "labels", "target", "targets")),
    ],
)
def test_every_form_gives_the_same_batch(batch: Any) -> None:
    images, labels, index = read_batch(batch)
    assert torch.equal(images, IMAGES)
    assert labels is not None
    assert torch.equal(labels, LABELS)
    assert (images.dtype, labels.dtype, index) == (torch.float32, torch.int64, None)


@pytest.mark.parametrize(
    "labels",
    [
        *(LABELS.to(dtype) for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)),
        LABELS.float(),
        LABELS.half()[:, None],
        LABELS[:, None],
        torch.nn.functional.one_hot(LABELS, 10),
        torch.nn.functional.one_hot(LABELS, 10).double(),
        torch.nn.functional.one_hot(LABELS, 10).bool(),
    ],
)
def test_labels_of_every_accepted_form_become_classes(labels: Tensor) -> None:
    read = read_batch((IMAGES, labels)).labels
    assert read is not None
    assert read.dtype == torch.int64
    assert torch.equal(read, LABELS)


def test_an_index_is_kept_from_tuples_and_dictionaries() -> None:
    for batch in ((IMAGES, LABELS, INDEX.int()), {"image": IMAGES, "label": LABELS, "idx": INDEX}):
        index = read_batch(batch).index
        assert index is not None
        assert torch.equal(index, INDEX)


def test_a_batch_that_was_read_already_is_returned_unchanged() -> None:
    batch = read_batch((IMAGES, LABELS, INDEX))
    assert read_batch(batch) is batch
    assert read_batch(batch, dtype=torch.float64).images.dtype == torch.float64
    (of_tensors,) = TensorBatches(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), LABELS, batch_size=4)
    assert read_batch(of_tensors) is of_tensors
    with pytest.raises(ValueError, match=r"a batch must be \(images, labels\)"):
        read_batch(Batch(IMAGES, None, None))


@pytest.mark.parametrize("batch", [IMAGES, IMAGES.numpy(), (IMAGES,), {"image": IMAGES}])
def test_images_alone_are_a_batch_without_labels(batch: Any) -> None:
    assert read_batch(batch, labelled=False).labels is None
    with pytest.raises(ValueError, match=r"a batch must be \(images, labels\).*got"):
        read_batch(batch)


def test_images_become_float_in_the_unit_interval() -> None:
    gray = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    assert torch.equal(read_batch(gray, labelled=False).images, gray.float() / 255)
    assert torch.equal(read_batch(gray > 9, labelled=False).images, (gray > 9).float())
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(read_batch(IMAGES.to(dtype), labelled=False).images, IMAGES.to(dtype).float())
    double = IMAGES.double() + 1e-12
    assert torch.equal(read_batch(double, labelled=False).images, IMAGES)
    assert torch.equal(read_batch(double, labelled=False, dtype=torch.float64).images, double)
    assert torch.equal(read_batch(gray, False, torch.float64).images, gray.double() / 255)


def test_values_outside_the_unit_interval_by_rounding_are_clipped() -> None:
    off = torch.tensor([[-2e-7, 1 + 2e-7], [0.5, 1 + 9e-6]])
    assert torch.equal(read_batch(off, labelled=False).images, torch.tensor([[0, 1], [0.5, 1]]))
    assert read_batch((off * 1.0005).half(), labelled=False).images.max() == 1
    read_batch(IMAGES, labelled=False)
    assert off[0, 0] < 0  # The loader's tensor is unchanged.


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((IMAGES * 1.03 + 0.01, LABELS), r"images must be in \[0, 1\] without NaN, got 0\.\d+ to 1\.0\d{5}"),
        ((IMAGES.index_fill(0, INDEX[:0], 0) * torch.nan, LABELS), "without NaN, got nan"),
        ((torch.tensor([[1.00002, 0]]), LABELS[:1]), r"got 0 to 1\.00002"),
        ((IMAGES.mul(255).int(), LABELS), "float in .* or uint8, got torch.int32: divide them"),
        ((IMAGES[0, 0, 0], LABELS), r"images must be \(N, ...\).* got shape \(8,\)"),
        ((IMAGES[:0], LABELS[:0]), "N above 0"),
        ((IMAGES, LABELS[:3]), r"one for each of 4 images, or one-hot; got shape \(3,\), torch.int64"),
        ((IMAGES, torch.tensor(3)), r"one for each of 4 images, or one-hot; got shape \(\)"),
        ((IMAGES, LABELS.view(4, 1, 1).expand(4, 8, 8)), r"got shape \(4, 8, 8\)"),
        ((IMAGES, torch.full((4, 10), 0.1)), r"not soft or several; got shape \(4, 10\), torch.float32"),
        ((IMAGES, torch.ones(4, 10).long()), "not soft or several"),
        ((IMAGES, torch.zeros(4, 10)), "not soft or several"),
        ((IMAGES, LABELS + 0.5), "labels must be whole numbers.* torch.float32"),
        ((IMAGES, LABELS * torch.nan), "labels must be whole numbers"),
        ((IMAGES, ["cat", "dog", "cat", "dog"]), r"labels must be .*; got list of 4 str"),
        (
            {"img": IMAGES, "caption": ["a"] * 4},
            r"got dict of \(img: Tensor \(4, 1, 8, 8\) float32, caption: list of 4",
        ),
        ({"image": IMAGES, "x": IMAGES, "label": LABELS}, "one of the keys .*; got image and x"),
        ([(IMAGES, LABELS), (IMAGES, LABELS)], r"got list of \(tuple of 2 Tensor, tuple of 2 Tensor\)"),
        ({"a": (IMAGES, LABELS), "b": (IMAGES, LABELS)}, r"got dict of \(a: tuple of 2 Tensor, b: tuple of 2 Tensor\)"),
        ((["a.png"], LABELS), r"got tuple of \(list of 1 str, Tensor \(4,\) int64\)"),
        ("images", "got str"),
        (None, "got NoneType"),
        (7, "got int"),
    ],
)
def test_other_forms_are_refused_in_one_line_that_describes_them(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_batch(batch)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_numpy_strings_are_refused_as_labels() -> None:
    with pytest.raises(ValueError, match=r"labels must be .*; got ndarray"):
        read_batch((IMAGES, np.array(["a", "b", "c", "d"])))
