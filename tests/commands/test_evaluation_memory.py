"""Memory of an evaluation: that of some batches, whatever the number of images."""

import contextlib
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from commands.lightning_batches import run_on_test_batches
from datamodules import ImageSet, InMemoryDataModule
from lightning_modules import AdversarialClassifier
from rampart.attacks import APGD, PGD, Square
from rampart.evaluation import Source, WorstCaseSearch

IMAGE = 4 * 3 * 16 * 16
"""Bytes of an image in float32."""


class LiveBytes(TorchDispatchMode):
    """Count the bytes of all tensors that are made in the context and are alive.

    Attributes:
        peak: Largest number of bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._tensors = Counter[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for _, storage in _storages((args, kwargs))}
        for tensor, storage in _storages(result):
            if storage._cdata in self._tensors or storage._cdata not in given:
                self._add(tensor, storage._cdata, storage.nbytes())
        return result

    def _add(self, tensor: Tensor, storage: int, size: int) -> None:
        if self._tensors[storage] == 0:
            self._now += size
            self.peak = max(self.peak, self._now)
        self._tensors[storage] += 1
        weakref.finalize(tensor, self._remove, storage, size)

    def _remove(self, storage: int, size: int) -> None:
        self._tensors[storage] -= 1
        if self._tensors[storage] == 0:
            del self._tensors[storage]
            self._now -= size


def _storages(values: Any) -> list[tuple[Tensor, torch.UntypedStorage]]:
    tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
    return [(tensor, tensor.untyped_storage()) for tensor in tensors]


class Data(InMemoryDataModule):
    """Random images."""

    def __init__(self, size: int) -> None:
        super().__init__(eval_batch_size=7)
        self.size = size

    def read_train(self) -> ImageSet:
        raise NotImplementedError

    def read_test(self) -> ImageSet:
        images = torch.randint(256, (self.size, 3, 16, 16), generator=torch.Generator().manual_seed(0))
        return ImageSet(images.to(torch.uint8), torch.arange(self.size) % 10)


def evaluate(folder: Path, size: int, accelerator: str = "cpu", counting: Any = None) -> None:
    """Search through ``size`` images, in a context that counts if one is given."""
    torch.manual_seed(0)
    model = AdversarialClassifier(nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), eps=0.01).eval()
    trainer = Trainer(accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False)
    attacks = [PGD(steps=2), APGD(steps=2), Square(queries=3)]

    def search(source: Source) -> None:
        with counting or contextlib.nullcontext():
            found = WorstCaseSearch(model.network, source, attacks, [0.01], folder / str(size), batch_size=10).run()
        assert len(found.labels) == size

    run_on_test_batches(trainer, model, Data(size), search, folder / "lock", seed=0)


@pytest.fixture(autouse=True)
def _few_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rampart.evaluation.clean_pass.MAX_PROBED", 4)
    monkeypatch.setattr("rampart.evaluation.results.MAX_EXAMPLES", 2)


def test_memory_of_an_evaluation_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    few, many = LiveBytes(), LiveBytes()
    evaluate(tmp_path, 40, counting=few)
    evaluate(tmp_path, 130, counting=many)
    assert few.peak > 10 * IMAGE
    assert many.peak - few.peak < 90 * IMAGE / 4  # The results of each image are kept, about 50 bytes.


@pytest.mark.gpu
def test_memory_on_a_gpu_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    peaks = []
    for size in (40, 130):
        torch.cuda.reset_peak_memory_stats()
        evaluate(tmp_path, size, "gpu")
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] - peaks[0] < 90 * IMAGE / 2
