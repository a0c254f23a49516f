"""Progress of an evaluation, in one line of the terminal."""

import contextlib
import sys
import time
from types import TracebackType
from typing import Any, NamedTuple

from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from rampart.attacks import PGD, Attack, format_eps
from rampart.evaluation import ProgressListener, WorstCase, WorstCaseSearch

WIDTH = 79


class _Stage(NamedTuple):
    batch: int
    attack: int
    eps: float
    robust: int
    size: int
    began: float


class EvaluationProgress(ProgressListener):
    """Show the current batch and attack, the number of images that are still robust, and the time left.

    The time left is estimated from the seconds per image of each attack so far. For an attack that has not run yet, it
    is estimated from the time of a forward pass, as if no image were fooled. In a terminal the line is rewritten; in a
    log, a new line is written after each batch and every 20 seconds.

    Args:
        search: Search whose progress is shown.
        shown: Print the progress; nothing is printed if False.
    """

    def __init__(self, search: WorstCaseSearch, shown: bool) -> None:
        self._search, self._shown = search, shown
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._hook: RemovableHandle | None = None
        self._next = 0.0
        self._stage: _Stage | None = None
        self._planned = False
        self._calls = 0  # images classified in this stage
        self._per_call = 0.0  # seconds per classified image
        self._spent: dict[int, tuple[float, int]] = {}  # seconds and images by attack
        self._batches = self._seen = 0  # finished here; finished here or by other processes
        self._seconds = 0.0  # for the batches finished here

    def __enter__(self) -> "EvaluationProgress":
        if self._shown:
            with contextlib.suppress(RuntimeError):  # TorchScript modules accept no hooks.
                self._hook = self._search.model.register_forward_pre_hook(self._on_forward)
            if self._terminal:
                self._bar = tqdm(bar_format="{desc}", file=sys.stderr, leave=False)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._hook is not None:
            self._hook.remove()
        if self._bar is not None:
            self._bar.close()

    def on_images_checked(self, images: int) -> None:
        """Show the number of images that have been checked."""
        self._print(f"checking the test images: {images:,}")

    def on_stage_start(self, batch: int, attack: int, eps: float, robust: int, size: int) -> None:
        """Record the start of a stage, and the time of the one before."""
        now = time.monotonic()
        if (before := self._stage) and before.batch == batch and now - before.began > 0.1:
            seconds, images = self._spent.get(before.attack, (0.0, 0))
            self._spent[before.attack] = seconds + now - before.began, images + before.robust
        if not self._planned:
            self._print_plan()
            self._planned = True
        self._stage, self._calls = _Stage(batch, attack, eps, robust, size, now), 0
        self._print_stage()

    def on_certify(self, batch: int) -> None:
        """Show that the images of a batch are certified."""
        self._stage = None
        self._print(f"batch {batch + 1}/{self._search.num_batches}: certificates")

    def on_batch_end(self, batch: int, part: WorstCase) -> None:
        """Record each attack's time, also from the cache of an earlier run, and show the number of robust images."""
        for number in range(len(self._search.attacks)):
            stages = part.stages[number :: len(self._search.attacks)]
            seconds, images = self._spent.get(number, (0.0, 0))
            self._spent[number] = (
                seconds + sum(stage.seconds for stage in stages),
                images + sum(stage.attacked for stage in stages),
            )
        self._batches, self._seen = self._batches + 1, batch + 1
        self._seconds += sum(stage.seconds for stage in part.stages)
        if (found := part.certificates) is not None:
            self._seconds += found.seconds + sum(stage.seconds for stage in found.stages)
        robust = ", ".join(f"{part.count_robust(eps)} @ {format_eps(eps)}" for eps in self._search.eps)
        done = f"batch {batch + 1}/{self._search.num_batches}: robust of {len(part.labels)}: {robust}"
        if not self._terminal:
            self._print(f"{done}{self._format_time_left(self._estimate_later_batches(batch))}", always=True)

    def on_wait_for_others(self, batches: int) -> None:
        """Show that other processes compute the remaining batches."""
        self._print(f"waiting for other processes, which compute {batches} batches", always=True)

    def _print_plan(self) -> None:
        clean_pass = self._search.clean_pass
        correct = int((clean_pass.clean_class == clean_pass.labels).sum())
        total = len(clean_pass.labels)
        if self._shown and not self._terminal:
            kinds, sizes, batches = len(self._search.attacks), len(self._search.eps), self._search.num_batches
            plan = f"{kinds} attacks at {sizes} eps on {batches} batches"
            self._print(f"clean: {correct:,} of {total:,} images correct; {plan}", always=True)
        self._next = time.monotonic() + (0 if self._terminal else 3)

    def _on_forward(self, _network: Any, arguments: tuple[Any, ...]) -> None:
        if self._stage is None:
            return
        self._calls += len(arguments[0]) if arguments else 0
        elapsed = time.monotonic() - self._stage.began
        if self._calls and elapsed > 0.05:
            self._per_call = elapsed / self._calls
        self._print_stage()

    def _print_stage(self) -> None:
        if (stage := self._stage) and time.monotonic() >= self._next:
            attack = self._search.attacks[stage.attack]
            self._print(
                f"batch {stage.batch + 1}/{self._search.num_batches}: {attack.name} @ {format_eps(stage.eps)}, "
                f"{stage.robust} of {stage.size} robust{self._format_time_left(self._estimate_time_left(stage))}"
            )

    def _estimate_time_left(self, stage: _Stage) -> float:
        elapsed = time.monotonic() - stage.began
        left = max(self._estimate_attack(stage.attack, stage.eps, stage.robust) - elapsed, 0.0)
        for eps in self._search.eps:
            for number in range(len(self._search.attacks)):
                if (eps, number) > (stage.eps, stage.attack):
                    left += self._estimate_attack(number, eps, stage.robust)
        if self._batches:
            return left + self._estimate_later_batches(stage.batch)
        return left + self._count_later_batches(stage) * (elapsed + left)

    def _estimate_attack(self, attack: int, eps: float, images: int) -> float:
        seconds, attacked = self._spent.get(attack, (0.0, 0))
        if attacked:
            return images * seconds / attacked
        return images * estimate_forward_passes(self._search.attacks[attack], eps) * self._per_call

    def _count_later_batches(self, stage: _Stage) -> int:
        return self._search.num_batches - stage.batch - 1

    def _estimate_later_batches(self, batch: int) -> float:
        # If other processes compute batches too, this process's share of them is estimated from earlier batches.
        share = self._batches / max(self._seen, 1)
        return (self._search.num_batches - batch - 1) * share * self._seconds / max(self._batches, 1)

    def _format_time_left(self, seconds: float) -> str:
        if seconds <= 0:
            return ""
        for size, unit in ((3600.0, "h"), (60.0, "min")):
            if seconds >= 2 * size:
                return f", about {seconds / size:.{1 if unit == 'h' else 0}f} {unit} left"
        return f", about {max(seconds, 1):.0f} s left"

    def _print(self, text: str, always: bool = False) -> None:
        now = time.monotonic()
        if not self._shown or (now < self._next and not always):
            return
        self._next = now + (0.3 if self._terminal else 20)
        if self._bar is not None:
            self._bar.set_description_str(text[:WIDTH])
        else:
            print(text[:WIDTH], file=sys.stderr, flush=True)


def estimate_forward_passes(attack: Attack, eps: float) -> int:
    """Estimate the number of forward passes of an attack per robust image; 100 for an unknown attack."""
    if isinstance(attack, PGD):
        return attack.steps_at(eps) * attack.restarts
    settings = {name: value for name, value in attack.settings().items() if isinstance(value, int)}
    calls = settings.get("queries") or settings.get("steps") or 100
    return calls * settings.get("restarts", 1) * settings.get("targets", 1)
