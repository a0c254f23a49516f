"""The worst case of each image over attacks and eps, in batches that are never attacked twice."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attacks import Attack, Eps, parse_eps
from attacks.draws import generator_for


@dataclass(frozen=True)
class Stage:
    """What stands after an attack at an eps, and after all before it.

    Attributes:
        attack: The attack's name.
        eps: Pixel scale.
        attacked: Number of images it met: those that nothing before had fooled.
        standing: Number of images that still stood afterwards.
        seconds: Wall time of its batches, whenever they were made.
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


class WorstCaseSearch:
    """Attack images one attack after the other, each time those that still stand (as AutoAttack does).

    An image that is fooled at an eps counts as fooled at every larger one, whose ball holds the same point. What a
    batch gave is stored at once, in a folder that is named after all that decides it; the same search, begun again,
    takes from there what is finished and makes the rest, so one that was killed ends as if it had not been. The random
    draws of a batch depend on seed, attack, eps and batch alone.

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
        text = json.dumps(self.identity, indent=2, default=str) + "\n"
        self.folder = None if store is None else store / hashlib.sha256(text.encode()).hexdigest()[:16]
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "search.json").write_text(text)

    def run(self, progress: Callable[[Stage], None] = lambda _stage: None) -> WorstCase:
        """Make what is not finished.

        Args:
            progress: Is told of each stage that has ended.
        """
        blocks = torch.split(torch.arange(len(self.labels)), self.batch_size)
        clean = torch.cat([self._classes(self.images[block]) for block in blocks])
        result = WorstCase(
            labels=self.labels,
            clean=clean,
            eps=torch.where(clean == self.labels, torch.inf, 0.0).double(),
            attack=torch.full_like(self.labels, -1),
            adv=self.images.clone(),
            adv_class=clean.clone(),
            stages=[],
        )
        for eps in self.eps:
            for number, attack in enumerate(self.attacks):
                attacked, seconds = result.standing(eps), 0.0
                for at, block in enumerate(blocks):
                    index = block[torch.isinf(result.eps[block])]
                    if len(index) == 0:
                        continue
                    batch = self._batch(attack, eps, at, index)
                    fooled = batch["index"]
                    result.eps[fooled], result.attack[fooled] = eps, number
                    result.adv[fooled], result.adv_class[fooled] = batch["adv"], batch["adv_class"]
                    seconds += float(batch["seconds"])
                stage = Stage(attack.name, eps, attacked, result.standing(eps), seconds)
                result.stages.append(stage)
                progress(stage)
        return result

    def _batch(self, attack: Attack, eps: float, at: int, index: Tensor) -> dict[str, Tensor]:
        """What an attack fools of a batch: read if it is there, else made and written."""
        key = f"{eps!r}-{attack.name}-{at:05}"
        path = None if self.folder is None else self.folder / f"{key}.safetensors"
        if path is not None and path.is_file():
            return load_file(path)
        generator = generator_for(self.images.device, "worst case", self.seed, key)
        start = time.perf_counter()
        adv = attack(self.model, self.images[index], self.labels[index], eps, generator=generator)
        seconds = time.perf_counter() - start
        check_inside(adv, self.images[index], eps, attack)
        classes = self._classes(adv)
        fooled = classes != self.labels[index]
        batch = {
            "index": index[fooled],
            "adv": adv[fooled].contiguous(),
            "adv_class": classes[fooled],
            "seconds": torch.tensor(seconds),
        }
        if path is not None:
            unfinished = path.with_suffix(".unfinished")
            save_file(batch, unfinished)
            unfinished.replace(path)  # whole or not at all
        return batch

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


def fingerprint(*tensors: Tensor) -> str:
    """SHA-256 of tensors' values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _code_fingerprint() -> str:
    """SHA-256 of the code that a fooled image depends on, so that no result outlives the attack that made it."""
    root = Path(__file__).parent.parent
    files = [*sorted(root.glob("attacks/*.py")), *sorted(root.glob("networks/*.py")), Path(__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
