"""Warnings of runs with several processes."""

import warnings

import torch.distributed


def warn_on_rank_zero(message: str, stacklevel: int) -> None:
    """Warn in the process of rank 0 only, since all processes would give the same warning.

    Args:
        message: One line.
        stacklevel: As for ``warnings.warn``, seen from the caller.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not distributed or torch.distributed.get_rank() == 0:
        warnings.warn(message, stacklevel=stacklevel + 1)
