import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rampart.attacks import APGD, PGD, Attack, Eps, Model
from rampart.evaluation import ProgressListener, Source, WorstCase, WorstCaseSearch, in_memory

WEAK, STRONG = PGD(steps=1), PGD(steps=10, restarts=2)


class Threshold(nn.Module):
    """Predicts class 1 for a mean pixel above 0.5: its distance from 0.5 is the smallest eps that fools the model."""

    def forward(self, images: Tensor) -> Tensor:
        score = 100 * (images.flatten(1).mean(1) - 0.5)
        return torch.stack([-score, score], 1)


class Parts(ProgressListener):
    """Keeps the result of each batch."""

    def __init__(self) -> None:
        self.of: dict[int, WorstCase] = {}

    def on_batch_end(self, batch: int, part: WorstCase) -> None:
        self.of[batch] = part


def model_and_source(n: int = 40) -> tuple[nn.Module, Source]:
    model, images, labels = case(n)
    return model, in_memory(images, labels)


def case(n: int = 40) -> tuple[nn.Module, Tensor, Tensor]:
    levels = torch.linspace(0.12, 0.88, n)
    images = levels.view(-1, 1, 1, 1).expand(n, 1, 4, 4).clone()
    labels = (levels > 0.5).long()
    labels[3] = 1  # misclassified clean
    return Threshold(), images, labels


def same(one: WorstCase, other: WorstCase) -> bool:
    tensors = ("labels", "clean_class", "eps", "attack", "adv_class")
    if [example.index for example in one.examples] != [example.index for example in other.examples]:
        return False
    adv = all(torch.equal(a.adv, b.adv) for a, b in zip(one.examples, other.examples, strict=True))
    return adv and one.stages == other.stages and all(torch.equal(getattr(one, x), getattr(other, x)) for x in tensors)


def test_each_image_has_the_smallest_eps_of_the_grid_that_fools_it() -> None:
    model, images, labels = case()
    grid = [0.1, 0.2, 0.3]
    parts = Parts()
    found = WorstCaseSearch(model, in_memory(images, labels), [WEAK, STRONG], grid, batch_size=7).run(parts)
    adv = images.clone()
    for example in (example for part in parts.of.values() for example in part.examples):
        assert torch.equal(example.image, images[example.index])
        adv[example.index] = example.adv
    distance = (images.flatten(1).mean(1) - 0.5).abs()
    for i in range(len(images)):
        first = next((eps for eps in grid if eps > distance[i]), float("inf"))
        assert found.eps[i] == (0 if i == 3 else first)
        delta = (adv[i] - images[i]).abs().max()
        assert delta <= (0 if i == 3 or first == float("inf") else first)
    fooled = found.attack >= 0
    assert torch.equal(fooled, torch.isfinite(found.eps) & (found.eps > 0))
    with torch.no_grad():
        assert torch.equal(model(adv).argmax(1), found.adv_class)
    assert torch.equal(found.adv_class == labels, torch.isinf(found.eps))


def test_stages_count_attacked_and_robust_images() -> None:
    model, images, labels = case()
    parts = Parts()
    search = WorstCaseSearch(model, in_memory(images, labels), [WEAK, STRONG], [0.1, 0.3], batch_size=9)
    found = search.run(parts)
    assert list(parts.of) == list(range(search.num_batches)) == [0, 1, 2, 3, 4]
    assert same(WorstCase.join(list(parts.of.values())), found)
    stages = found.stages
    assert [(stage.attack, stage.eps) for stage in stages] == [
        ("PGD-1", 0.1), ("PGD-10x2", 0.1), ("PGD-1", 0.3), ("PGD-10x2", 0.3),
    ]  # fmt: skip
    assert stages[0].attacked == 39
    assert [stage.attacked for stage in stages[1:]] == [stage.robust for stage in stages[:-1]]
    assert stages[1].robust == found.count_robust(0.1)
    assert stages[3].robust == found.count_robust(0.3)
    assert found.count_robust(0) == 39


class Counting(Attack):
    """Fools nothing, and records how many images it attacks."""

    norm = "Linf"
    name = "counting"

    def __init__(self) -> None:
        self.attacked: list[int] = []

    def __call__(
        self, model: Model, images: Tensor, labels: Tensor, eps: Eps, generator: torch.Generator | None = None
    ) -> Tensor:
        self.attacked.append(len(images))
        return images


def test_only_robust_images_are_attacked_again() -> None:
    model, images, labels = case()
    counting = Counting()
    found = WorstCaseSearch(model, in_memory(images, labels), [STRONG, counting], [0.3], batch_size=10).run()
    assert sum(counting.attacked) == found.count_robust(0.3)


class Killed(RuntimeError):
    pass


class Killable(Attack):
    """An attack that is killed at its n-th call; never if n is 0."""

    norm = "Linf"

    def __init__(self, attack: PGD, dies_at: int) -> None:
        self.attack, self.left = attack, dies_at

    @property
    def name(self) -> str:
        return self.attack.name

    def settings(self) -> dict[str, Any]:
        return self.attack.settings()

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise Killed
        return self.attack(*args, **kwargs)


@pytest.mark.parametrize("dies_at", [1, 2, 5, 8])
def test_a_killed_search_resumes_without_repeating_a_batch(tmp_path: Path, dies_at: int) -> None:
    model, images, labels = case()
    attacks, eps = [replace(WEAK, steps=2), STRONG], [0.1, 0.2]
    whole = WorstCaseSearch(model, in_memory(images, labels), attacks, eps, batch_size=8).run()
    killed = [Killable(attack, dies_at) for attack in attacks]
    with pytest.raises(Killed):
        WorstCaseSearch(model, in_memory(images, labels), killed, eps, tmp_path, batch_size=8).run()
    (folder,) = tmp_path.iterdir()
    written = {file: file.stat().st_mtime_ns for file in folder.glob("*.safetensors")}
    (folder / "0.1-PGD-2-00004.unfinished").write_bytes(b"half a batch")
    unkilled = [Killable(attack, 0) for attack in attacks]
    resumed = WorstCaseSearch(model, in_memory(images, labels), unkilled, eps, tmp_path, batch_size=8).run()
    assert same(whole, resumed)
    assert all(file.stat().st_mtime_ns == at for file, at in written.items())
    unused = [Killable(attack, 1) for attack in attacks]
    assert same(whole, WorstCaseSearch(model, in_memory(images, labels), unused, eps, tmp_path, batch_size=8).run())


def test_a_search_over_more_images_repeats_no_full_batch(tmp_path: Path) -> None:
    model, images, labels = case()
    attacks, eps = [WEAK, STRONG], [0.1, 0.2]
    WorstCaseSearch(model, in_memory(images[:20], labels[:20]), attacks, eps, tmp_path, batch_size=8).run()
    (folder,) = tmp_path.iterdir()
    written = {file: file.stat().st_mtime_ns for file in folder.glob("*.safetensors")}
    found = WorstCaseSearch(model, in_memory(images, labels), attacks, eps, tmp_path, batch_size=8).run()
    assert [folder] == list(tmp_path.iterdir())
    assert all(file.stat().st_mtime_ns == at for file, at in written.items())
    assert same(found, WorstCaseSearch(model, in_memory(images, labels), attacks, eps, batch_size=8).run())


def test_a_damaged_file_is_computed_again(tmp_path: Path) -> None:
    model, images, labels = case()
    searches = [
        WorstCaseSearch(model, in_memory(images, labels), [STRONG], [0.1], tmp_path, batch_size=20) for _ in range(2)
    ]
    whole = searches[0].run()
    assert searches[0].cache.folder is not None
    (next(searches[0].cache.folder.glob("*.safetensors"))).write_bytes(b"")
    assert same(whole, searches[1].run())


def test_searches_with_one_folder_share_the_batches(tmp_path: Path) -> None:
    class Slow(Counting):
        def __call__(
            self, model: Model, images: Tensor, labels: Tensor, eps: Eps, generator: torch.Generator | None = None
        ) -> Tensor:
            time.sleep(0.05)
            return super().__call__(model, images, labels, eps, generator)

    model, images, labels = case()
    slow = [Slow(), Slow()]
    searches = [
        WorstCaseSearch(model, in_memory(images, labels), [each], [0.1], tmp_path, batch_size=4) for each in slow
    ]
    assert searches[0].cache.folder == searches[1].cache.folder
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(WorstCaseSearch.run, searches)
    assert same(one, other)
    assert sum(slow[0].attacked) + sum(slow[1].attacked) == 39  # none was attacked twice
    assert min(len(each.attacked) for each in slow) >= 2


@pytest.mark.parametrize("changes", [{"seed": 1}, {"eps": [0.2]}, {"attacks": [STRONG]}, {"batch_size": 4}])
def test_searches_with_different_settings_share_no_results(tmp_path: Path, changes: dict[str, Any]) -> None:
    model, images, labels = case(8)
    settings: dict[str, Any] = {"attacks": [WEAK], "eps": [0.1], "cache_dir": tmp_path}
    one = WorstCaseSearch(model, in_memory(images, labels), **settings)
    assert one.cache.folder == WorstCaseSearch(model, in_memory(images, labels), **settings).cache.folder
    assert one.cache.folder != WorstCaseSearch(model, in_memory(images, labels), **(settings | changes)).cache.folder
    assert one.cache.folder != WorstCaseSearch(model, in_memory(1 - images, labels), **settings).cache.folder
    assert one.cache.folder != WorstCaseSearch(nn.Sequential(model), in_memory(images, labels), **settings).cache.folder


class Loose(Attack):
    """Leaves the ball, or the box, with one image."""

    norm = "Linf"
    name = "loose"

    def __init__(self, change: float) -> None:
        self.change = change

    def __call__(
        self, model: Model, images: Tensor, labels: Tensor, eps: Eps, generator: torch.Generator | None = None
    ) -> Tensor:
        adv = images.clone()
        adv[0, 0, 0, 0] += self.change
        return adv


@pytest.mark.parametrize("change", [0.11, -0.13, float("nan")])
def test_an_attack_that_leaves_ball_or_box_is_refused(change: float) -> None:
    model, images, labels = case()
    with pytest.raises(ValueError, match=r"loose returned 1 images outside the ball of eps 0\.1"):
        WorstCaseSearch(model, in_memory(images, labels), [Loose(change)], [0.1]).run()
    with pytest.raises(ValueError, match=r"loose returned 1 images outside the ball of eps 0\.5 or the box"):
        WorstCaseSearch(model, in_memory(images, labels), [Loose(-0.2)], [0.5]).run()
    WorstCaseSearch(model, in_memory(images, labels), [Loose(0.05)], [0.1]).run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks": []}, "attacks must be at least one, with distinct names, got none"),
        ({"attacks": [WEAK, WEAK]}, "distinct names, got PGD-1, PGD-1"),
        ({"attacks": [WEAK, PGD(norm="L2")]}, "attacks must have one norm, .* got L2, Linf"),
        ({"eps": []}, "eps must be at least one"),
        ({"eps": [0, 0.1]}, "above 0 and rising"),
        ({"eps": [0.2, 0.1]}, "above 0 and rising"),
        ({"eps": [8]}, "did you mean 8/255"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    model, images, labels = case(4)
    settings: dict[str, Any] = {"attacks": [APGD()], "eps": [0.1]}
    with pytest.raises(ValueError, match=message):
        WorstCaseSearch(model, in_memory(images, labels), **(settings | changes))


def test_a_model_with_changed_code_is_evaluated_again(tmp_path: Path) -> None:
    class Inverted(Threshold):
        def forward(self, images: Tensor) -> Tensor:
            return -super().forward(images)

    class Sure(Threshold):
        def forward(self, images: Tensor) -> Tensor:
            return 7 * super().forward(images)

    model, images, labels = case()
    for changed in (Inverted(), Sure()):
        changed.__class__.__name__ = "Threshold"
        searches = [
            WorstCaseSearch(m, in_memory(images, labels), [WEAK], [0.1], cache_dir=tmp_path) for m in (model, changed)
        ]
        assert searches[0].identity["network"] == searches[1].identity["network"]
        assert searches[0].cache.folder != searches[1].cache.folder
