import pytest
import torch
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from attacks import PGD, Square
from networks import MNISTCNN


def test_sides_are_the_published_ones() -> None:
    sides = {query: Square().side(query, 28, 28) for query in (0, 10, 11, 51, 201, 501, 1001, 2001, 4001)}
    assert sides == {0: 25, 10: 25, 11: 18, 51: 13, 201: 9, 501: 6, 1001: 4, 2001: 3, 4001: 2}
    assert Square().side(0, 5, 28) == 5
    assert Square(area=1e-9).side(0, 28, 28) == 1


def test_the_schedule_is_autoattacks() -> None:
    published = SquareAttack(None, p_init=0.8, n_queries=5000, eps=0.4, norm="Linf", resc_schedule=False)
    for query in range(5000):
        side = min(max(round((published.p_selection(query) * 32 * 32) ** 0.5), 1), 32)
        assert Square().side(query, 32, 32) == side


def test_flat_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Square needs images of shape \(N, C, H, W\), got \(\d, 4\)"):
        Square(queries=2)(nn.Linear(4, 3), torch.rand(2, 4), torch.arange(2), eps=0.1, generator=None)


class Quantised(nn.Module):
    """Has no gradient anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.network = MNISTCNN()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images * 8).round() / 8)
        return logits


def test_fools_a_model_without_gradients(images: Tensor) -> None:
    model = Quantised()
    labels = model(images).argmax(1)
    stubborn = PGD(steps=20, random_start=False)(model, images, labels, eps=0.3)
    assert (model(stubborn).argmax(1) == labels).all()
    adv = Square(queries=300)(model, images, labels, eps=0.3)
    assert (model(adv).argmax(1) != labels).sum() >= len(images) // 2


def test_pixels_are_at_the_ends_of_their_range_and_the_best_query_is_kept() -> None:
    seen: list[Tensor] = []

    class Firm(nn.Module):
        """Never fooled; darker images lower the right class's lead."""

        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return torch.stack([10 + images.flatten(1).mean(1), torch.zeros(len(images))], 1)

    images = torch.full((3, 2, 9, 9), 0.5)
    adv = Square(queries=60)(Firm(), images, torch.zeros(3, dtype=torch.long), eps=0.25)
    assert len(seen) == 61  # the answers to the images as they are, and the queries
    ends = (adv - images).abs()
    torch.testing.assert_close(ends, torch.full_like(ends, 0.25), atol=1e-6, rtol=0)
    tried = torch.stack([x.flatten(1).mean(1) for x in seen[1:]])  # (queries, N)
    torch.testing.assert_close(adv.flatten(1).mean(1), tried.amin(0))  # each image keeps its own best
    assert (tried[-1] < tried[0]).all()
