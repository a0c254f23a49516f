"""Cached results: read only if valid, with the permissions that the umask allows."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rampart.attacks import PGD, NormName, Square
from rampart.evaluation import WorstCaseSearch, in_memory
from rampart.evaluation.run_attack import check_attack_runs, is_valid_result
from tests.rampart.evaluation.test_worst_case import STRONG, WEAK, Counting, case, same


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_have_the_permissions_that_the_umask_allows(tmp_path: Path, umask: int) -> None:
    model, images, labels = case()
    WorstCaseSearch(model, in_memory(images, labels), [STRONG], [0.1], tmp_path, batch_size=20).run()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".safetensors", ".json"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}


def outside_the_ball(found: dict[str, Tensor]) -> None:
    found["adv"][0] = 1


def outside_the_box(found: dict[str, Tensor]) -> None:
    found["adv"][0, 0, 0, 0] = -5


def nan_pixel(found: dict[str, Tensor]) -> None:
    found["adv"][0, 0, 0, 0] = torch.nan


def not_fooled(found: dict[str, Tensor]) -> None:
    found["adv_class"] = 1 - found["adv_class"]


def another_index(found: dict[str, Tensor]) -> None:
    found["index"][0] = 999


def negative_index(found: dict[str, Tensor]) -> None:
    found["index"][0] = -1


def repeated_index(found: dict[str, Tensor]) -> None:
    found["index"][0] = found["index"][1]


def not_attacked(found: dict[str, Tensor]) -> None:
    found["index"][0] = 3  # misclassified clean


def another_class(found: dict[str, Tensor]) -> None:
    found["adv_class"][0] = 7


def another_shape(found: dict[str, Tensor]) -> None:
    found["adv"] = found["adv"].flatten(1)


def another_type(found: dict[str, Tensor]) -> None:
    found["index"] = found["index"].float()


def another_key(found: dict[str, Tensor]) -> None:
    found["more"] = torch.zeros(1)


def missing_key(found: dict[str, Tensor]) -> None:
    del found["index"]


def nan_seconds(found: dict[str, Tensor]) -> None:
    found["seconds"] = torch.tensor(torch.nan)


@pytest.mark.parametrize(
    "corrupt",
    [
        outside_the_ball, outside_the_box, nan_pixel, not_fooled, another_index, negative_index, repeated_index,
        not_attacked, another_class, another_shape, another_type, another_key, missing_key, nan_seconds,
    ],
)  # fmt: skip
def test_an_invalid_file_is_computed_again(tmp_path: Path, corrupt: Callable[[dict[str, Tensor]], None]) -> None:
    model, images, labels = case()

    def search() -> WorstCaseSearch:
        return WorstCaseSearch(model, in_memory(images, labels), [STRONG], [0.1], tmp_path, batch_size=20)

    whole = search().run()
    (path, _) = sorted(tmp_path.rglob("*.safetensors"))
    valid = load_file(path)
    assert len(valid["index"]) >= 2
    found = {name: tensor.clone() for name, tensor in valid.items()}
    corrupt(found)
    with safe_open(path, "pt") as file:
        save_file(found, path, file.metadata())
    assert same(whole, search().run())
    made = load_file(path)
    assert all(torch.equal(made[name], valid[name]) for name in ("index", "adv", "adv_class"))


def test_a_copied_file_is_computed_again(tmp_path: Path) -> None:
    model, images, labels = case()
    whole = WorstCaseSearch(model, in_memory(images, labels), [STRONG], [0.1], tmp_path / "one", batch_size=20).run()
    WorstCaseSearch(model, in_memory(images, labels), [Counting()], [0.1], tmp_path / "other", batch_size=20).run()
    first, *_ = sorted((tmp_path / "other").rglob("*.safetensors"))
    for path in (tmp_path / "one").rglob("*.safetensors"):
        path.write_bytes(first.read_bytes())  # holds no fooled images, so nothing in it could be checked
    again = WorstCaseSearch(model, in_memory(images, labels), [STRONG], [0.1], tmp_path / "one", batch_size=20).run()
    assert same(whole, again)


def test_a_file_whose_image_fools_up_to_rounding_is_read() -> None:
    class Near(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([[1.00002, 1.0]]).expand(len(images), 2)

    image, label, index = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0]), torch.tensor([0])
    found = {"index": index, "adv": image, "adv_class": torch.tensor([1]), "seconds": torch.tensor(0.1)}
    norms: list[NormName] = ["Linf", "L2"]
    for norm in norms:
        assert is_valid_result(found, Near(), image, label, index, 0.1, norm)


def test_an_attack_that_cannot_run_is_refused_before_others_run() -> None:
    model, images, labels = case()
    counting = Counting()
    with pytest.raises(ValueError, match=r"Square-5000 can't attack these images .* \(N, C, H, W\)"):
        WorstCaseSearch(model, in_memory(images.flatten(1), labels), [counting, Square()], [0.1]).run()
    assert counting.attacked == []


def test_checking_attacks_keeps_the_random_state_and_skips_attacks_without_steps() -> None:
    model, images, labels = case()
    state = torch.get_rng_state()
    for attack in (WEAK, Counting(), PGD(steps="paper", step_size=0.01)):
        check_attack_runs(attack, model, images, labels, 0.1)
    assert torch.equal(state, torch.get_rng_state())
