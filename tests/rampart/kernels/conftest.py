import warnings
from collections.abc import Iterator

import pytest
import torch

from rampart.kernels import recording
from tests.rampart.kernels.tape import Tape


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tape]]:
    """Record on the CPU; return the recorders that were made."""
    made: list[Tape] = []

    class Listed(Tape):
        def __init__(self, device: torch.device) -> None:
            super().__init__(device)
            made.append(self)

    monkeypatch.setitem(recording.RECORDERS, "cpu", Listed)
    recording._RECORDINGS.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield made
    recording._RECORDINGS.clear()
