"""Random numbers that depend on what they are for and on the seed of the run, and on nothing else."""

import hashlib
from typing import Any

import torch


def make_generator(device: torch.device | str, *purpose: str | int | float) -> torch.Generator:
    """A generator whose draws depend on a purpose alone, such as ``("train", seed, rank, step)``.

    A resumed run repeats the draws of an uninterrupted one, ranks differ, and the global random state stays as it is.

    Args:
        device: Of the draws.
        purpose: Its ``repr`` is hashed.
    """
    digest = hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big", signed=True))


def seed_torch(device: torch.device, *purpose: str | int | float) -> None:
    """Set torch's own random state, on the host and the device, to one that depends on a purpose alone.

    It is what dropout, and the loaders and augmentations of users draw from.
    """
    seed = make_generator("cpu", *purpose).initial_seed()
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":  # not torch.manual_seed, which is slow where it looks for all kinds of devices
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def run_seed(trainer: Any) -> int:
    """Return the seed of a trainer's run; torch's initial seed until the run is set up."""
    seed = getattr(trainer, "run_seed", None)
    return torch.initial_seed() if seed is None else int(seed)


def agree_on_run_seed(trainer: Any) -> None:
    """Give all processes of a run one seed, for the life of the trainer.

    It is the seed that the command line set on the trainer, or else torch's initial seed in the process of rank 0. The
    first agreement is final: what user code does to torch's seed afterwards changes nothing.

    Args:
        trainer: A Lightning trainer whose processes are connected, as in the hook ``setup``. All of them must call.
    """
    trainer.run_seed = trainer.strategy.broadcast(run_seed(trainer))


def resume_run_seed(trainer: Any, saved: object) -> None:
    """Take the seed of the checkpoint that a training run resumes; commands that only read weights keep theirs.

    Args:
        trainer: A Lightning trainer that is loading the checkpoint.
        saved: The seed in the checkpoint; None in those of earlier versions.

    Raises:
        ValueError: If the saved seed is not a whole number.
    """
    if saved is None or trainer is None or trainer.state.fn != "fit":
        return
    if type(saved) is not int:
        raise ValueError(f"the checkpoint's run_seed must be a whole number, got {saved!r}")
    trainer.run_seed = saved
