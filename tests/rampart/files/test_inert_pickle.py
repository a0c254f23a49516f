"""Objects beside the weights are kept as data, and nothing that a file names is imported or called."""

import argparse
import enum
import functools
import io
import logging
import operator
import pickle
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rampart.files import load_weights
from rampart.files.inert_pickle import CallRefused, Unbuilt, load


class Options:
    """As a script's own class of settings."""

    def __init__(self) -> None:
        self.eps, self.loss = 8 / 255, nn.CrossEntropyLoss()


class Kind(enum.Enum):
    ONE = 1


OBJECTS: dict[str, Any] = {
    "options": Options(),
    "namespace": argparse.Namespace(loss=torch.nn.functional.cross_entropy, data=Path("data")),
    "simple namespace": types.SimpleNamespace(eps=1),
    "optimizer": torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1),
    "schedule": torch.optim.lr_scheduler.StepLR(torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1), 3),
    "numpy number": np.float64(0.1),
    "numpy generator": np.random.default_rng(0),
    "pattern": re.compile("a+"),
    "partial function": functools.partial(max, 1),
    "getter": operator.itemgetter(1),
    "method": nn.Linear(2, 3).forward,
    "logger": logging.getLogger("train"),
    "range": range(3),
    "device": torch.device("cuda"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", OBJECTS)
def test_objects_beside_the_weights_are_kept_as_data(kind: str, legacy: bool, tmp_path: Path) -> None:
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    content = {"model": source.state_dict(), "args": OBJECTS[kind]}
    torch.save(content, tmp_path / "weights", _use_new_zipfile_serialization=not legacy)
    assert load_weights(target, tmp_path / "weights").key == "model"
    assert torch.equal(target.weight, source.weight)


def test_attributes_of_an_object_are_kept() -> None:
    options = load(io.BytesIO(pickle.dumps(Options())))
    assert type(options).__name__ == "Unbuilt"
    assert options["eps"] == 8 / 255
    assert isinstance(options["loss"], Unbuilt)


def test_a_call_of_foreign_code_is_refused() -> None:
    with pytest.raises(CallRefused, match=r"test_inert_pickle\.Kind"):
        load(io.BytesIO(pickle.dumps(Kind.ONE)))


def test_a_class_that_a_file_describes_is_not_built() -> None:
    # dill writes a class of a script as a call of _create_type; NEWOBJ then makes an object of it.
    assert "dill" not in sys.modules
    code = b"\x80\x02}X\x01\x00\x00\x00acdill._dill\n_create_type\n)R)\x81}X\x01\x00\x00\x00bK\x01sbs."
    content = load(io.BytesIO(code))
    assert content == {"a": {"b": 1}}
    assert isinstance(content["a"], Unbuilt)
    assert "dill" not in sys.modules
