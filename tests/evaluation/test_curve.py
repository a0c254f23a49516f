import json

import pytest
import torch
from torch import Tensor

from attacks import PGD, Attack, Eps
from attacks.context import Model
from evaluation import fooling_eps, provenance
from tests.conftest import LinearModel


class Counting(PGD):
    """Records at which eps how many images were attacked."""

    calls: list[tuple[Eps, int]] = []  # noqa: RUF012 (a record, reset by the test)

    def __call__(  # type: ignore[override]
        self, model: Model, images: Tensor, labels: Tensor, eps: Eps, generator: torch.Generator | None = None
    ) -> Tensor:
        self.calls.append((eps, len(images)))
        return super().__call__(model, images, labels, eps, generator)


def test_smallest_eps_is_exact_on_a_linear_model_and_survivors_alone_go_on() -> None:
    # The score is the pixel sum minus 8; an image of pixels 0.5 + m falls once eps > m.
    class Centred(LinearModel):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) - torch.tensor([8.0, 0.0])

    margins = torch.tensor([-0.1, 0.05, 0.15, 0.25, 0.45])
    images = (0.5 + margins).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    labels = torch.zeros(5, dtype=torch.long)
    Counting.calls.clear()
    attack: Attack = Counting(steps=1, relative_step_size=1.0, random_start=False)
    smallest = fooling_eps(Centred(torch.ones(16)), images, labels, attack, [0.0, 0.1, 0.2, 0.3])
    assert smallest.tolist() == [0.0, 0.1, 0.2, 0.3, torch.inf]
    assert Counting.calls == [(0.0, 5), (0.1, 4), (0.2, 3), (0.3, 2)]


def test_a_grid_must_rise() -> None:
    with pytest.raises(ValueError, match="eps_grid must rise"):
        fooling_eps(LinearModel(torch.ones(4)), torch.rand(1, 4), torch.tensor([0]), PGD(), [0.1, 0.1])


def test_provenance_is_plain_data() -> None:
    where = json.loads(json.dumps(provenance()))
    assert where["versions"]["torch"] == torch.__version__.split("+", maxsplit=1)[0] or where["versions"]["torch"]
    assert where["threads"] == torch.get_num_threads()
