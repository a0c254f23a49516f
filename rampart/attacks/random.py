"""Random generators seeded by their purpose, independent of global state, and the seed of a run."""

import hashlib
from typing import Any

import torch


def make_generator(device: torch.device | str, *purpose: str | int | float) -> torch.Generator:
    """Return a generator that depends only on its purpose, such as ``("train", seed, rank, step)``.

    A resumed run thus repeats the random numbers of an uninterrupted one, and ranks differ. The global random state is
    not used or changed.

    Args:
        device: Device of the random numbers.
        purpose: Values whose ``repr`` is hashed to the seed.
    """
    return torch.Generator(device).manual_seed(_seed(purpose))


def seed_torch(device: torch.device, *purpose: str | int | float) -> None:
    """Seed torch's global generators, on the host and the device, by a purpose alone.

    Dropout, custom loaders and custom augmentations use these generators.
    """
    seed = _seed(purpose)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":  # torch.manual_seed is slow: it searches all kinds of devices
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def _seed(purpose: tuple[str | int | float, ...]) -> int:
    return int.from_bytes(hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest(), "big", signed=True)


def run_seed(trainer: Any) -> int:
    """Return the seed of a trainer's run, or torch's initial seed if the run is not set up yet."""
    seed = getattr(trainer, "run_seed", None)
    return torch.initial_seed() if seed is None else int(seed)


def agree_on_run_seed(trainer: Any) -> None:
    """Set the same ``run_seed`` on the trainers of all processes.

    It is the seed that the command line set on the trainer, or else torch's initial seed in the process of rank 0.
    Later changes of torch's seed by user code do not change it.

    Args:
        trainer: A Lightning trainer whose processes are connected, as in the hook ``setup``. All must call this.
    """
    trainer.run_seed = trainer.strategy.broadcast(run_seed(trainer))


def resume_run_seed(trainer: Any, saved: object) -> None:
    """Set the seed of a resumed training run to that of its checkpoint; other commands keep their seed.

    Args:
        trainer: A Lightning trainer that is loading the checkpoint.
        saved: The seed in the checkpoint; None if an earlier version wrote it.

    Raises:
        ValueError: If the saved seed is not a whole number.
    """
    if saved is None or trainer is None or trainer.state.fn != "fit":
        return
    if type(saved) is not int:
        raise ValueError(f"the checkpoint's run_seed must be a whole number, got {saved!r}")
    trainer.run_seed = saved
