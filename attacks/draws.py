"""Random draws that depend on what they are for, and on nothing else."""

import hashlib

import torch


def generator_for(device: torch.device | str, *purpose: str | int | float) -> torch.Generator:
    """A generator whose draws depend on a purpose alone, such as ``("train", seed, rank, step)``.

    A resumed run repeats the draws of an uninterrupted one, ranks differ, and the global random state stays as it is.

    Args:
        device: Of the draws.
        purpose: Its ``repr`` is hashed.
    """
    digest = hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big", signed=True))
