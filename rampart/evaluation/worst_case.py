"""Worst case of each image over several attacks and eps, cached per batch."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import torch
from torch import Tensor, nn

from rampart.attacks import Attack, Eps, format_eps, parse_eps
from rampart.attacks.input_gradient import predict
from rampart.attacks.random import make_generator
from rampart.evaluation.cache import ResultCache
from rampart.evaluation.certification import Certifier
from rampart.evaluation.clean_pass import CleanPass, run_clean_pass
from rampart.evaluation.code_hash import hash_code
from rampart.evaluation.image_source import Source, visit_batches
from rampart.evaluation.network_checks import finite_logits
from rampart.evaluation.progress_listener import ProgressListener
from rampart.evaluation.results import Certificates, Example, Stage, WorstCase, choose_examples
from rampart.evaluation.run_attack import (
    attack_subset,
    check_adversarial,
    check_attack_runs,
    is_valid_result,
    isolated_random_state,
)
from rampart.files.provenance import fingerprint
from rampart.files.whole_file import write_whole


class _Batch(NamedTuple):
    number: int
    name: str
    start: int
    images: Tensor
    labels: Tensor


class WorstCaseSearch:
    """Run attacks one after the other, each on the images that no earlier one fooled (as AutoAttack does).

    Misclassified clean images are not attacked. An image that is fooled at one eps counts as fooled at every larger
    eps, since the larger ball contains the same point. A batch goes through all attacks before the next one begins, so
    memory holds one batch. Random numbers depend on seed, attack, eps and batch alone.

    Each attack's result on a batch is cached at once. The folder's name is a hash of everything that decides the
    result; the file's name contains a hash of the images. The same search, started again, reads the cached results and
    computes the rest: an interrupted search resumes, a search over more images repeats no full batch, and several
    processes with one cache folder share the batches, where the file system supports locks.

    The source is read twice, to check the images and to attack them, and a third time if other processes computed some
    batches, to collect their results.

    Args:
        model: Maps images to logits ``(N, C)``; in eval mode.
        source: Source of images ``(N, ...)``, float, in [0, 1], and labels ``(N,)``, int64.
        attacks: The attacks in the order of the runs, the cheapest first.
        eps: Radii on the pixel scale, above 0, rising.
        cache_dir: Folder of cached results, shared by all searches; created if needed. If None, nothing is cached.
        batch_size: Images per batch.
        seed: Seed of the random numbers.
        num_images: Number of images, from the first on; all if None.
        certifier: Bounds the network for certificates; none are computed if None, or if it can't.

    Attributes:
        norm: Norm of the attacks and of eps.

    Raises:
        ValueError: If there are no attacks or no eps, eps does not rise, two attacks have the same name, or their norms
            differ.
    """

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        attacks: Sequence[Attack],
        eps: Sequence[Eps],
        cache_dir: Path | None = None,
        batch_size: int = 250,
        seed: int = 0,
        num_images: int | None = None,
        certifier: Certifier | None = None,
    ) -> None:
        names = [attack.name for attack in attacks]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"attacks must be at least one, with distinct names, got {', '.join(names) or 'none'}")
        if len(norms := {attack.norm for attack in attacks}) > 1:
            raise ValueError(f"attacks must have one norm, which is that of eps, got {', '.join(sorted(norms))}")
        self.norm = attacks[0].norm
        self.eps = [parse_eps(value, self.norm) for value in eps]
        if not self.eps or self.eps[0] == 0 or any(low >= high for low, high in pairwise(self.eps)):
            raise ValueError(f"eps must be at least one, above 0 and rising, got {list(eps)}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model, self.source, self.attacks, self._cache_dir = model, source, list(attacks), cache_dir
        self.batch_size, self.seed, self.num_images = batch_size, seed, num_images
        self.certifier = certifier
        self._listener = ProgressListener()

    @cached_property
    def clean_pass(self) -> CleanPass:
        """Result of the first pass, which also checks that every attack can run.

        Raises:
            ValueError: If an image, a label, the weights or a logit is invalid, or an attack fails.
        """
        clean_pass = run_clean_pass(
            self.model, self.source, self.batch_size, self.num_images, self._listener.on_images_checked
        )
        if len(clean_pass.probe.indices):  # Attacks shrink a batch, in the end to one image.
            predict(self.model, clean_pass.probe.images[:1])
            if self.certifier is not None:
                self.certifier.check(self.model, clean_pass.probe.images[:8], self.norm)
        for attack in self.attacks:
            check_attack_runs(attack, self.model, clean_pass.probe.images[:8], clean_pass.probe.labels[:8], self.eps[0])
        return clean_pass

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the result: hashes of weights, images, code and predictions, and all settings."""
        return {
            "weights": fingerprint(*self.model.state_dict().values()),
            "network": repr(self.model),
            "predictions": self.clean_pass.predictions,
            "images": hashlib.sha256("".join(self.clean_pass.hashes).encode()).hexdigest(),
            "code": hash_code(self.attacks),
            "attacks": [attack.settings() for attack in self.attacks],
            "norm": self.norm,
            "eps": self.eps,
            "batch_size": self.batch_size,
            "seed": self.seed,
        } | ({"skip_certified": True} if self.certifier is not None and self.certifier.skip_certified else {})

    @cached_property
    def cache(self) -> ResultCache:
        """Cached results of this search."""
        # Not by the hash of all images: a search over more images adds files to the same folder.
        shared = {name: value for name, value in self.identity.items() if name != "images"}
        text = json.dumps(shared, indent=2, default=str) + "\n"
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        cache = ResultCache(None if self._cache_dir is None else self._cache_dir / name)
        if cache.folder is not None and not (cache.folder / "search.json").exists():
            write_whole(cache.folder / "search.json", text)
        return cache

    @property
    def num_batches(self) -> int:
        """Number of batches, the last of which may be smaller."""
        return len(self.clean_pass.hashes)

    def run(self, listener: ProgressListener | None = None) -> WorstCase:
        """Compute all results that are not cached, and wait for batches that other processes are computing.

        Args:
            listener: Hooks to call as the search proceeds; none if None.

        Raises:
            ValueError: If an image, a label, the weights or a logit is invalid, if the images change between passes, or
                if an attack fails or leaves the ball or the box.
        """
        self._listener = listener or self._listener
        parts: dict[int, WorstCase] = {}
        examples: list[Example] = []
        self._pass(parts, examples, wait=False)
        if len(parts) < self.num_batches:
            self._listener.on_wait_for_others(self.num_batches - len(parts))
            self._pass(parts, examples, wait=True)
        return replace(WorstCase.join([parts[number] for number in range(self.num_batches)]), examples=examples)

    def _pass(self, parts: dict[int, WorstCase], examples: list[Example], wait: bool) -> None:
        """Read the source once, and add the results of all batches that no other process has locked."""
        clean_pass, seen = self.clean_pass, 0

        def visit(number: int, images: Tensor, labels: Tensor) -> None:
            nonlocal seen
            seen += 1
            name = fingerprint(images, labels)[:16]
            if clean_pass.hashes[number : number + 1] != [name]:
                raise ValueError(_describe_change(number))
            if number in parts or (lock := self.cache.lock(number, wait)) is None:
                return
            with lock:
                part = self._worst_case(_Batch(number, name, clean_pass.starts[number], images, labels))
            self._listener.on_batch_end(number, part)
            # Only a few examples of all batches are kept: memory must not grow with the data set.
            examples[:] = choose_examples([*examples, *part.examples])
            parts[number] = replace(part, examples=[])

        visit_batches(self.source, visit, self.batch_size, self.num_images)
        if seen < self.num_batches:
            raise ValueError(_describe_change(seen))

    def _worst_case(self, batch: _Batch) -> WorstCase:
        """Return the results of all attacks on a batch."""
        labels = batch.labels.cpu()
        clean = self.clean_pass.clean_class[batch.start : batch.start + len(labels)]
        part = WorstCase(
            labels=labels,
            clean_class=clean,
            eps=torch.where(clean == labels, torch.inf, 0.0).double(),
            attack=torch.full_like(labels, -1),
            adv_class=clean.clone(),
            stages=[],
        )
        part = replace(part, certificates=self._certify(batch, clean == labels))
        for eps in self.eps:
            for number, attack in enumerate(self.attacks):
                robust, seconds = self._select(part, eps, number).nonzero().squeeze(1), 0.0
                if len(robust) > 0:
                    self._listener.on_stage_start(batch.number, number, eps, len(robust), len(labels))
                    found = self._run_attack(attack, eps, batch, robust)
                    fooled = found["index"].cpu()
                    part.eps[fooled], part.attack[fooled] = eps, number
                    part.adv_class[fooled] = found["adv_class"].cpu()
                    seconds = float(found["seconds"])
                    part.examples[:] = choose_examples([*part.examples, *_examples(batch, found, eps, number)])
                part.stages.append(Stage(attack.name, eps, len(robust), part.count_robust(eps), seconds))
        return part

    def _select(self, part: WorstCase, eps: float, attack: int) -> Tensor:
        """Return a mask of the images to attack: the robust ones, without those whose certificate makes it needless."""
        robust = torch.isinf(part.eps)
        skip = attack > 0 and self.certifier is not None and self.certifier.skip_certified
        return robust & (part.certificates.radius < eps) if skip and part.certificates is not None else robust

    def _certify(self, batch: _Batch, correct: Tensor) -> Certificates | None:
        if self.certifier is None or self.certifier.reason is not None:
            return None
        self._listener.on_certify(batch.number)
        name = f"{batch.number:05}-{batch.name}"
        active = correct.to(batch.labels.device)
        return self.certifier.certify(batch.images, batch.labels, active, self.eps, self.cache, name)

    def _run_attack(self, attack: Attack, eps: float, batch: _Batch, robust: Tensor) -> dict[str, Tensor]:
        """Return an attack's result on a batch, from the cache if it is there and valid.

        Args:
            attack: The attack.
            eps: Pixel scale.
            batch: The batch.
            robust: ``(M,)``, int64, rising: zero-based indices of the images to attack in the batch.

        Returns:
            ``index``, ``adv`` and ``adv_class`` of the images that the attack fooled, and its wall time ``seconds``.
        """
        name = f"{eps!r}-{quote(attack.name, safe='')}-{batch.number:05}-{batch.name}"
        read = self.cache.read(name, str(batch.images.device))
        if read is not None and is_valid_result(read, self.model, batch.images, batch.labels, robust, eps, attack.norm):
            return read
        index = robust.to(batch.labels.device)
        images, labels = batch.images[index], batch.labels[index]
        seed = make_generator("cpu", "worst case", self.seed, eps, attack.name, batch.number).initial_seed()
        stage = f"{attack.name} at eps {format_eps(eps)} on batch {batch.number + 1}"
        start = time.perf_counter()
        try:
            adv = attack_subset(attack, self.model, batch.images, batch.labels, index, eps, seed)
        except ValueError as error:
            raise ValueError(f"{stage}: {error}") from error
        except (AttributeError, LookupError, TypeError) as error:  # A custom attack may raise anything.
            raise ValueError(f"{stage}: {type(error).__name__}: {error}") from error
        seconds = time.perf_counter() - start
        check_adversarial(adv, images, eps, attack)
        adv = adv.detach()
        with isolated_random_state(seed, images.device):
            classes = finite_logits(self.model, adv, batch.start + robust, f"after {stage}").argmax(1)
        fooled = classes != labels
        found = {
            "index": index[fooled],
            "adv": adv[fooled].contiguous(),
            "adv_class": classes[fooled],
            "seconds": torch.tensor(seconds),
        }
        self.cache.write(name, found)
        return found


def _examples(batch: _Batch, found: dict[str, Tensor], eps: float, attack: int) -> list[Example]:
    examples = [Example(batch.start + index, eps, attack, batch.images[index], adv)
                for index, adv in zip(found["index"].tolist(), found["adv"], strict=True)]  # fmt: skip
    # Copied, since a view would keep the whole batch in memory.
    return [replace(e, image=e.image.cpu().clone(), adv=e.adv.cpu().clone()) for e in choose_examples(examples)]


def _describe_change(number: int) -> str:
    return (
        f"the test data change from one pass to the next (from batch {number + 1} on), so results could not be "
        "matched to images: remove shuffling, random transforms and loaders that can be read only once"
    )
