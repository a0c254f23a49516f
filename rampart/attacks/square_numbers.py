"""Random whole numbers of Square, drawn for a whole batch so that they don't depend on which images are active."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rampart.attacks.random import get_share
from rampart.attacks.rows import reads_are_free

QUERIES_AT_ONCE = 64
"""Queries whose numbers are drawn at once on an accelerator, where one call takes as long as many numbers."""


class QueryNumbers:
    """Random numbers of each query of a run.

    On a CPU they are drawn query by query, on an accelerator for many queries with equal ends at once. So the two give
    different numbers, but neither depends on which images are active or on whether steps are recorded.

    Args:
        generator: Source of random numbers; the global one if None.
        batch: Number of images in the batch, N, those that are done included.
        counts: Numbers per image and query that have the same end, for each end.
        device: Device of the numbers.
    """

    def __init__(
        self, generator: torch.Generator | None, batch: int, counts: Sequence[int], device: torch.device
    ) -> None:
        queries = 1 if reads_are_free(device) else QUERIES_AT_ONCE
        self._generator, processes, self._rows = get_share(generator)
        self._numbers = torch.empty(queries, batch * processes, sum(counts), dtype=torch.int64, device=device)
        self._parts = torch.split(self._numbers, list(counts), 2)
        self._ends, self._used = [0], 0

    def draw(self, ends: list[int]) -> Tensor:
        """Return the numbers of the next query; ``(N, K)``, int64, valid until the next call.

        Args:
            ends: Numbers are from 0 to below their end, one for each count.
        """
        if ends != self._ends or self._used == len(self._numbers):
            for part, end in zip(self._parts, ends, strict=True):
                part.random_(0, end, generator=self._generator)
            self._ends, self._used = ends, 0
        self._used += 1
        return self._numbers[self._used - 1, self._rows]
