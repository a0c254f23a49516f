"""Random generators seeded by their purpose, independent of global state, and the seed of a run."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


def make_generator(device: torch.device | str, *purpose: str | int | float) -> torch.Generator:
    """Return a generator that depends only on its purpose, such as ``("train", seed, rank, step)``.

    A resumed run thus repeats the random numbers of an uninterrupted one, and ranks differ. The global random state is
    not used or changed.

    Args:
        device: Device of the random numbers.
        purpose: Values whose ``repr`` is hashed to the seed.
    """
    return torch.Generator(device).manual_seed(_seed(purpose))


class SharedGenerator(torch.Generator):
    """Generator of a process whose batch is rows ``rank::world_size`` of a batch that several processes share.

    :func:`draw_uniform`, :func:`draw_normal` and :func:`draw_below` return this process's rows of random numbers for
    the whole batch. Together the processes get the numbers that one process with the whole batch gets; each generates
    ``world_size`` times as many as it needs. Code that uses it directly gets other random numbers in each process.

    Args:
        device: Device of the random numbers.
        rank: Zero-based rank of this process.
        world_size: Number of processes.
        purpose: See :func:`make_generator`; the same in all processes.

    Attributes:
        whole: Generator of the whole batch, equal in all processes.
    """

    def __new__(cls, device: torch.device | str, *_: Any) -> "SharedGenerator":
        """Allocate a generator on a device."""
        return super().__new__(cls, device)  # type: ignore[call-arg]  # of object in torch's stubs

    def __init__(self, device: torch.device | str, rank: int, world_size: int, *purpose: str | int | float) -> None:
        self.rank, self.world_size, self.whole = rank, world_size, make_generator(device, *purpose)
        self.manual_seed(_seed(("rank", rank, *purpose)))

    def get_state(self) -> Tensor:
        """Return the states of this generator and of ``whole``, one after the other, ``(B,)``, uint8."""
        return torch.cat([super().get_state(), self.whole.get_state()])

    def set_state(self, new_state: Tensor) -> "SharedGenerator":
        """Restore the states that :meth:`get_state` returned, and return the generator."""
        own, whole = (part.clone() for part in new_state.chunk(2))  # torch reads a view from its storage's start
        super().set_state(own)
        self.whole.set_state(whole)
        return self


class Share(NamedTuple):
    """A process's share of a batch.

    Attributes:
        generator: Generator of the whole batch; the global one if None.
        processes: Number of processes that share the batch.
        rows: Rows of this process.
    """

    generator: torch.Generator | None
    processes: int
    rows: slice


def get_share(generator: torch.Generator | None) -> Share:
    """Return the share of the batch that a generator is for: the whole batch, unless a :class:`SharedGenerator`."""
    if isinstance(generator, SharedGenerator):
        return Share(generator.whole, generator.world_size, slice(generator.rank, None, generator.world_size))
    return Share(generator, 1, slice(None))


def make_shared_generator(
    device: torch.device | str, rank: int, world_size: int, *purpose: str | int | float
) -> torch.Generator:
    """Return a :class:`SharedGenerator`, or a plain one if there is only one process."""
    if world_size == 1:
        return make_generator(device, *purpose)
    return SharedGenerator(device, rank, world_size, *purpose)


def derive_generator(generator: torch.Generator, name: str, number: int) -> torch.Generator:
    """Return a new generator by name, seed of a generator and number, for the same share of the batch."""
    whole, processes, _ = get_share(generator)
    assert whole is not None
    rank = getattr(generator, "rank", 0)
    return make_shared_generator(generator.device, rank, processes, name, whole.initial_seed(), number)


def draw_uniform(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return uniform random numbers in [0, 1), of the dtype and on the device of ``like``.

    Args:
        shape: Shape of the result; the first dimension is the batch.
        like: Any float tensor.
        generator: Source of random numbers, see :class:`SharedGenerator`; the global one if None.
    """
    return _draw(torch.rand, shape, generator, dtype=like.dtype, device=like.device)


def draw_normal(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return standard normal random numbers; see :func:`draw_uniform`."""
    return _draw(torch.randn, shape, generator, dtype=like.dtype, device=like.device)


def draw_below(
    end: int, shape: Sequence[int], device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Return random whole numbers in [0, end), int64; see :func:`draw_uniform`."""

    def draw(shape: Sequence[int], **settings: Any) -> Tensor:
        return torch.randint(end, list(shape), **settings)

    return _draw(draw, shape, generator, device=device)


def _draw(
    draw: Callable[..., Tensor], shape: Sequence[int], generator: torch.Generator | None, **settings: Any
) -> Tensor:
    whole, processes, rows = get_share(generator)
    numbers = draw((shape[0] * processes, *shape[1:]), generator=whole, **settings)
    return numbers if processes == 1 else numbers[rows].contiguous()


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
