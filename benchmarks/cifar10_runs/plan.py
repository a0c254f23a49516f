"""The runs, the weights that each starts from, and the order of their training and evaluation."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """A shipped config with the weights that it starts from.

    Attributes:
        config: Name of the file in ``folder``, without its suffix.
        eps: Target eps: in 1/255 in this package, on the pixel scale in ``benchmarks.certified``.
        start: Config of the run whose weights this one starts from; None for random weights.
        options: Options of both commands.
        folder: Folder of the config in configs/.
        variant: Name of what ``options`` change, if several runs share a config.
    """

    config: str
    eps: float
    start: str | None = None
    options: tuple[str, ...] = ()
    folder: str = "cifar10"
    variant: str = ""

    @property
    def file(self) -> str:
        """Path of the config from the repository's root."""
        return f"configs/{self.folder}/{self.config}.yaml"


RESNET18 = ("--model.network=rampart.networks.ResNet18",)
"""For configs with the paper's ResNet-50, which start from a ResNet-18 here."""


GROUPS = {
    "twin": (
        Run("cpu_madry_8", 8),
        Run("cpu_extended_16", 16, "cpu_madry_8"),
        Run("cpu_extended_32", 32, "cpu_madry_8"),
        Run("cpu_iat_32", 32),
        Run("cpu_naive_32", 32),
    ),
    "madry": (Run("madry_8", 8),),
    "extended": (
        Run("extended_16", 16, "madry_8", RESNET18),
        Run("extended_32", 32, "madry_8", RESNET18),
        Run("iat_32", 32),
        Run("naive_32", 32),
    ),
    "fast": (Run("fast_16", 16), Run("fast_32", 32, "fast_16")),
    "chained": (Run("chained_8_16_32", 32),),
    "standard": (Run("standard", 8),),
}
BY_CONFIG = {run.config: run for group in GROUPS.values() for run in group}


@dataclass(frozen=True)
class Job:
    """A run with a seed."""

    run: Run
    seed: int

    @property
    def name(self) -> str:
        """Name of its files, such as ``fast_32-seed-0``."""
        variant = f"-{self.run.variant}" if self.run.variant else ""
        return f"{self.run.config}{variant}-seed-{self.seed}"

    @property
    def start(self) -> "Job | None":
        """The job whose weights this one starts from."""
        return None if self.run.start is None else Job(BY_CONFIG[self.run.start], self.seed)


def list_jobs(names: Iterable[str], seeds: Iterable[int], known: Iterable[Job] = ()) -> list[Job]:
    """Return the jobs, each after the one that it starts from; all runs of one seed before the next seed's.

    Args:
        names: Names of groups or configs.
        seeds: Seeds; every run is made with each.
        known: Jobs that others may start from although they are not in the list.

    Raises:
        ValueError: If a run starts from another that is neither named nor known.
    """
    runs = {run.config: run for name in names for run in GROUPS.get(name) or (BY_CONFIG[name],)}
    ordered: list[Run] = []
    for run in runs.values():
        start = runs.get(run.start or "")
        ordered += [each for each in (start, run) if each is not None and each not in ordered]
    jobs = [Job(run, seed) for seed in seeds for run in ordered]
    for job in jobs:
        if job.start is not None and job.start not in [*jobs, *known]:
            raise ValueError(
                f"{job.name} starts from {job.start.name}: add {job.run.start} to --runs, or give its weights by "
                f"--start {job.run.start}=FILE"
            )
    return jobs


@dataclass(frozen=True)
class Task:
    """A piece of work that waits for others.

    Attributes:
        name: Its name, for messages.
        call: The work.
        needs: Names of the tasks that must succeed before.
        after: Names of the tasks that must end before, successful or not.
    """

    name: str
    call: Callable[[], None]
    needs: Sequence[str] = ()
    after: Sequence[str] = ()


def run_tasks(tasks: Sequence[Task], at_once: int, stop: Callable[[], None]) -> dict[str, str]:
    """Run tasks, always the first of the list that is ready; return one line for each that failed or was left out.

    Args:
        tasks: Tasks; one must come after those that it needs.
        at_once: Largest number of tasks that run at the same time.
        stop: Ends the running tasks; called if this process is interrupted.
    """
    waiting, running, done = list(tasks), dict[Future[None], Task](), set[str]()
    problems: dict[str, str] = {}
    with ThreadPoolExecutor(at_once) as pool:
        try:
            while waiting or running:
                for task in list(waiting):
                    if failed := [name for name in task.needs if name in problems]:
                        problems[task.name] = f"left out, because {failed[0]} failed"
                        waiting.remove(task)
                    elif len(running) < at_once and {*task.needs, *task.after} <= done | problems.keys():
                        running[pool.submit(task.call)] = task
                        waiting.remove(task)
                for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                    task = running.pop(future)
                    error = future.exception()
                    if isinstance(error, Exception):
                        problems[task.name] = f"{type(error).__name__}: {error}"
                        print(f"{task.name}: {problems[task.name]}", flush=True)
                    elif error is not None:
                        raise error
                    else:
                        done.add(task.name)
        except BaseException:
            waiting.clear()
            stop()
            raise
    return problems
