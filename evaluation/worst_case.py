"""The worst case of each image over attacks and eps, in batches that are never attacked twice."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attacks import Attack, Eps, parse_eps
from attacks.draws import generator_for
from evaluation.provenance import fingerprint


@dataclass(frozen=True)
class Stage:
    """What stands after an attack at an eps, and after all before it.

    Attributes:
        attack: The attack's name.
        eps: Pixel scale.
        attacked: Number of images it met: those that nothing before had fooled.
        standing: Number of images that still stood afterwards.
        seconds: Wall time of its batches, added up, whenever and wherever they were made.
    """

    attack: str
    eps: float
    attacked: int
    standing: int
    seconds: float = field(compare=False)


@dataclass(frozen=True)
class WorstCase:
    """What each image withstood.

    Attributes:
        labels: ``(N,)``, int64.
        clean: ``(N,)``, int64: the answers to the images as they are.
        eps: ``(N,)``, float64: the smallest eps of the grid at which the image was fooled; 0 where it is answered
            wrongly as it is, infinity where it stands throughout.
        attack: ``(N,)``, int64: the number of the attack that fooled it; -1 where none did.
        adv: ``(N, ...)``: the fooling image, or the image itself.
        adv_class: ``(N,)``, int64: the answer to it.
        stages: In the order in which they ran.
    """

    labels: Tensor
    clean: Tensor
    eps: Tensor
    attack: Tensor
    adv: Tensor
    adv_class: Tensor
    stages: list[Stage]

    def standing(self, eps: float) -> int:
        """Number of images that are answered rightly as they are and under every attack up to ``eps``."""
        return int((self.eps > eps).sum())

    @classmethod
    def of(cls, parts: Sequence["WorstCase"]) -> "WorstCase":
        """Parts that met the same attacks, as one."""
        tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in _TENSORS}
        stages = [
            Stage(
                attack=stages[0].attack,
                eps=stages[0].eps,
                attacked=sum(stage.attacked for stage in stages),
                standing=sum(stage.standing for stage in stages),
                seconds=sum(stage.seconds for stage in stages),
            )
            for stages in zip(*(part.stages for part in parts), strict=True)
        ]
        return cls(**tensors, stages=stages)


_TENSORS = ("labels", "clean", "eps", "attack", "adv", "adv_class")


class WorstCaseSearch:
    """Attack images one attack after the other, each time those that still stand (as AutoAttack does).

    An image that is fooled at an eps counts as fooled at every larger one, whose ball holds the same point. A batch
    goes through all attacks before the next one begins. What an attack gave is stored at once, in a folder that is
    named after all that decides it, under the images' own hash; the same search, begun again, takes from there what is
    finished and makes the rest. So one that was killed ends as if it had not been, one over more images repeats no
    full batch, and several processes that search in one folder share the batches among them, where the file system
    has locks. The random draws depend on seed, attack, eps and batch alone.

    Args:
        model: Maps images to logits ``(N, C)``; in eval mode.
        images: ``(N, ...)``, float, in [0, 1].
        labels: ``(N,)``, int64.
        attacks: In order, the cheapest first.
        eps: Rising, pixel scale, above 0.
        store: Holds the folders of all searches; made if need be. None keeps nothing.
        batch_size: Images of a batch.
        seed: Of the random draws.

    Attributes:
        identity: What decides the result: SHA-256 of the model's weights, the images and the code, what the model
            answers (its own code may change), and all settings.

    Raises:
        ValueError: If the attacks or eps are none, eps does not rise, two attacks have one name, or norms differ.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        attacks: Sequence[Attack],
        eps: Sequence[Eps],
        store: Path | None = None,
        batch_size: int = 250,
        seed: int = 0,
    ) -> None:
        names = [attack.name for attack in attacks]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"attacks must be at least one, with distinct names, got {', '.join(names) or 'none'}")
        if len(norms := {attack.norm for attack in attacks}) > 1:
            raise ValueError(f"attacks must be of one norm, as eps is, got {', '.join(sorted(norms))}")
        self.eps = [parse_eps(value, attacks[0].norm) for value in eps]
        if not self.eps or self.eps[0] == 0 or any(low >= high for low, high in pairwise(self.eps)):
            raise ValueError(f"eps must be at least one, above 0 and rising, got {list(eps)}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model, self.images, self.labels = model, images, labels
        self.attacks, self.batch_size, self.seed = list(attacks), batch_size, seed
        self.identity = {
            "weights": fingerprint(*model.state_dict().values()),
            "network": repr(model),
            "answers": self._answers(images[:batch_size]),
            "images": fingerprint(images, labels),
            "code": _code_fingerprint(),
            "attacks": [attack.settings() for attack in attacks],
            "eps": self.eps,
            "batch_size": batch_size,
            "seed": seed,
        }
        # More images of the same kind are more files of the same folder.
        shared = {name: value for name, value in self.identity.items() if name != "images"}
        text = json.dumps(shared, indent=2, default=str) + "\n"
        self.folder = None if store is None else store / hashlib.sha256(text.encode()).hexdigest()[:16]
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "search.json").exists():
                (self.folder / "search.json").write_text(text)

    def run(self, progress: Callable[[int, WorstCase], None] = lambda _at, _part: None) -> WorstCase:
        """Make what is not finished, and wait for what other processes are making.

        Args:
            progress: Is told of each batch, made or read: its number, from zero, and what its images withstood.
        """
        parts: dict[int, WorstCase] = {}
        while len(parts) < self.batches:
            known = len(parts)
            for at in range(self.batches):
                if at in parts or (claim := self._claim(at)) is None:
                    continue
                with claim:
                    parts[at] = self._withstood(at)
                progress(at, parts[at])
            if len(parts) == known:
                time.sleep(1)  # Others are at work on all that is left.
        return WorstCase.of([parts[at] for at in range(self.batches)])

    @property
    def batches(self) -> int:
        """Number of batches."""
        return -(-len(self.labels) // self.batch_size)

    def _claim(self, at: int) -> contextlib.AbstractContextManager[object] | None:
        """What keeps other processes from a batch until it is left, or this process dies; None if another has it."""
        if self.folder is None:
            return contextlib.nullcontext()
        try:
            return FileLock(self.folder / f"{at:05}.lock").acquire(blocking=False)
        except Timeout:
            return None

    def _withstood(self, at: int) -> WorstCase:
        """What the images of a batch withstand."""
        batch = slice(at * self.batch_size, (at + 1) * self.batch_size)
        images, labels = self.images[batch], self.labels[batch]
        name = f"{at:05}-{fingerprint(images, labels)[:16]}"
        clean = self._classes(images)
        part = WorstCase(
            labels=labels,
            clean=clean,
            eps=torch.where(clean == labels, torch.inf, 0.0).double(),
            attack=torch.full_like(labels, -1),
            adv=images.clone(),
            adv_class=clean.clone(),
            stages=[],
        )
        for eps in self.eps:
            for number, attack in enumerate(self.attacks):
                index, seconds = torch.isinf(part.eps).nonzero().squeeze(1), 0.0
                if len(index) > 0:
                    found = self._attacked(attack, eps, at, name, index)
                    fooled = found["index"]
                    part.eps[fooled], part.attack[fooled] = eps, number
                    part.adv[fooled], part.adv_class[fooled] = found["adv"], found["adv_class"]
                    seconds = float(found["seconds"])
                part.stages.append(Stage(attack.name, eps, len(index), part.standing(eps), seconds))
        return part

    def _attacked(self, attack: Attack, eps: float, at: int, name: str, index: Tensor) -> dict[str, Tensor]:
        """Which images of a batch an attack fools, and with what: read if it is there, else made and written.

        Args:
            attack: The attack.
            eps: Pixel scale.
            at: The batch's number.
            name: The batch's name in file names.
            index: ``(M,)``, int64: which images of the batch it meets.
        """
        path = None if self.folder is None else self.folder / f"{eps!r}-{attack.name}-{name}.safetensors"
        if path is not None and path.is_file():
            with contextlib.suppress(SafetensorError):  # A damaged file is made anew.
                return load_file(path, device=str(self.images.device))
        first = at * self.batch_size
        images, labels = self.images[first + index], self.labels[first + index]
        generator = generator_for(self.images.device, "worst case", self.seed, eps, attack.name, at)
        start = time.perf_counter()
        adv = attack(self.model, images, labels, eps, generator=generator)
        seconds = time.perf_counter() - start
        check_inside(adv, images, eps, attack)
        classes = self._classes(adv)
        fooled = classes != labels
        found = {
            "index": index[fooled],
            "adv": adv[fooled].contiguous(),
            "adv_class": classes[fooled],
            "seconds": torch.tensor(seconds),
        }
        if path is not None:
            unfinished = path.with_suffix(".unfinished")
            save_file(found, unfinished)
            unfinished.replace(path)  # whole or not at all
        return found

    def _answers(self, images: Tensor) -> str:
        """What the model makes of images, in digits that a machine's rounding does not reach."""
        with torch.no_grad():
            logits = self.model(images)
        return f"{fingerprint(logits.argmax(1))[:16]}, {logits.abs().mean().item():.4g}"

    def _classes(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            classes: Tensor = self.model(images).argmax(1)
        return classes


def check_inside(adv: Tensor, images: Tensor, eps: float, attack: Attack) -> None:
    """Refuse what an attack must not return.

    Raises:
        ValueError: If an image is outside the ball or the box by more than rounding, or not a number.
    """
    delta = (adv - images).flatten(1)
    lengths = delta.abs().amax(1) if attack.norm == "Linf" else torch.linalg.vector_norm(delta, dim=1)
    inside = (lengths <= eps * (1 + 1e-5) + 1e-6) & ((adv >= 0) & (adv <= 1)).flatten(1).all(1)
    if not bool(inside.all()):
        raise ValueError(
            f"{attack.name} returned {int((~inside).sum())} images outside the ball of eps {eps:g} or the box [0, 1]: "
            "the attack is broken, no number is reported"
        )


def _code_fingerprint() -> str:
    """SHA-256 of the code that a fooled image depends on, so that no result outlives the attack that made it."""
    root = Path(__file__).parent.parent
    files = [*sorted(root.glob("attacks/*.py")), *sorted(root.glob("networks/*.py")), Path(__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
