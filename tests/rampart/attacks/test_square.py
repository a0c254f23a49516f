import pytest
import torch
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from rampart.attacks import PGD, AtImage, NormName, Square
from rampart.attacks.square_numbers import QueryNumbers
from rampart.attacks.square_windows import L2Windows, LinfWindows, _bump
from rampart.networks import MNISTCNN
from tests.conftest import LinearModel


def test_sides_equal_those_of_the_published_code() -> None:
    sides = {query: Square().side(query, 28, 28) for query in (0, 10, 11, 51, 201, 501, 1001, 2001, 4001)}
    assert sides == {0: 25, 10: 25, 11: 18, 51: 13, 201: 9, 501: 6, 1001: 4, 2001: 3, 4001: 2}
    assert Square().side(0, 5, 28) == 5
    assert Square(area=1e-9).side(0, 28, 28) == 1


def test_the_schedule_is_that_of_autoattack() -> None:
    published = SquareAttack(None, p_init=0.8, n_queries=5000, eps=0.4, norm="Linf", resc_schedule=False)
    for query in range(5000):
        side = min(max(round((published.p_selection(query) * 32 * 32) ** 0.5), 1), 32)
        assert Square().side(query, 32, 32) == side


def test_sides_in_l2_equal_those_of_the_published_code() -> None:
    published = SquareAttack(None, p_init=0.8, n_queries=5000, eps=0.4, norm="L2", resc_schedule=False)
    for query in range(0, 5000, 7):
        side = max(round((published.p_selection(query) * 32 * 32) ** 0.5), 3)
        assert Square(norm="L2").side(query, 32, 32) == min(side + (side % 2 == 0), 32)
    assert Square(norm="L2").side(0, 2, 2) == 2


@pytest.mark.parametrize(("height", "width"), [(1, 3), (2, 3), (2, 5), (3, 5), (12, 25), (13, 25)])
def test_bumps_equal_those_of_the_published_code(height: int, width: int) -> None:
    published = SquareAttack(None, norm="L2")
    published.device = "cpu"
    expected = published.eta_rectangles(height, width)
    torch.testing.assert_close(_bump(height, width, expected), expected)


def test_an_l2_query_moves_length_as_in_algorithm_3() -> None:
    """Compared with a loop over images and channels."""
    images = torch.full((4, 3, 12, 10), 0.5).double()
    eps, side, windows = 0.4, 5, L2Windows()
    adv = 0.5 + 0.9 * (windows.start(images, eps, None) - 0.5)  # leaves a part of eps unused
    random = QueryNumbers(None, 4, windows.counts(3), images.device)
    numbers = random.draw(windows.ends(side, 12, 10))
    moved = windows.move(adv, windows.ball(images, eps), numbers, torch.tensor(side), {})
    eta = torch.cat([_bump(2, 5, images), -_bump(3, 5, images)])
    eta = eta / eta.norm()
    for n, (r1, s1, r2, s2, *signs, coin) in enumerate(numbers.tolist()):
        delta = (adv - images)[n].clone()
        unused = eps**2 - delta.norm() ** 2
        both = torch.zeros(12, 10, dtype=torch.bool)
        both[r1 : r1 + 5, s1 : s1 + 5] = both[r2 : r2 + 5, s2 : s2 + 5] = True
        for channel, sign in enumerate(signs):
            window = delta[channel, r1 : r1 + 5, s1 : s1 + 5]
            new = (2 * sign - 1) * (eta if coin else eta.T) + window / window.norm()
            new = new / new.norm() * (delta[channel][both].norm() ** 2 + unused / 3).sqrt()
            delta[channel, r2 : r2 + 5, s2 : s2 + 5] = 0
            delta[channel, r1 : r1 + 5, s1 : s1 + 5] = new
        assert delta.norm().item() == pytest.approx(eps)
        torch.testing.assert_close(moved[n] - images[n], delta, atol=1e-9, rtol=0)


def test_an_linf_query_changes_one_window_per_channel_to_a_bound() -> None:
    images, windows = torch.rand(5, 3, 7, 9), LinfWindows()
    adv, ball = windows.start(images, 0.1, None), windows.ball(images, 0.1)
    numbers = QueryNumbers(None, 5, windows.counts(3), images.device).draw(windows.ends(4, 7, 9))
    expected = adv.clone()
    for n, (row, column, *signs) in enumerate(numbers.tolist()):
        for channel, sign in enumerate(signs):
            window = n, channel, slice(row, row + 4), slice(column, column + 4)
            expected[window] = ball[sign][window]
    assert torch.equal(windows.move(adv, ball, numbers, torch.tensor(4), {}), expected)
    assert torch.equal(windows.move(adv, ball, numbers, torch.tensor(0), {}), adv)


def test_l2_starts_have_the_length_eps_and_differ_between_images() -> None:
    images = torch.full((6, 2, 11, 13), 0.5)
    start = L2Windows().start(images, 0.3, None)
    torch.testing.assert_close((start - images).flatten(1).norm(dim=1), torch.full((6,), 0.3))
    assert len({tuple(one.sign().flatten().tolist()) for one in start - images}) == 6


@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (3, 2, 3, 4), (3, 1, 4, 3)])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_small_images_can_be_attacked(norm: NormName, shape: tuple[int, ...]) -> None:
    images, labels = torch.rand(shape), torch.zeros(3, dtype=torch.long)
    model = LinearModel(torch.ones(shape[1:]))
    adv = Square(queries=5, norm=norm)(model, images, labels, 0.1)
    assert (adv != images).flatten(1).any(1).all()


def test_name_has_norm_queries_and_restarts() -> None:
    assert [attack.name for attack in (Square(), Square(norm="L2"), Square(queries=9, restarts=2, norm="L2"))] == [
        "Square-5000", "Square-L2-5000", "Square-L2-9x2",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="norm must be one of Linf, L2, got 'L1'"):
        Square(norm="L1")  # type: ignore[arg-type]


def test_flat_images_raise() -> None:
    with pytest.raises(ValueError, match=r"Square needs images of shape \(N, C, H, W\), got \(\d, 4\)"):
        Square(queries=2)(nn.Linear(4, 3), torch.rand(2, 4), torch.arange(2), eps=0.1, generator=None)


class Quantised(nn.Module):
    """A network that rounds its input, so its gradient is zero everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.network = MNISTCNN()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images * 8).round() / 8)
        return logits


def test_square_fools_a_model_without_gradients(images: Tensor) -> None:
    model = Quantised()
    labels = model(images).argmax(1)
    by_gradient = PGD(steps=20, start=AtImage())(model, images, labels, eps=0.3)
    assert (model(by_gradient).argmax(1) == labels).all()
    adv = Square(queries=300)(model, images, labels, eps=0.3)
    assert (model(adv).argmax(1) != labels).sum() >= len(images) // 2


def test_pixels_change_by_eps_and_the_best_query_is_kept() -> None:
    seen: list[Tensor] = []

    class Firm(nn.Module):
        """A model that is never fooled. Darker images lower the right class's lead."""

        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return torch.stack([10 + images.flatten(1).mean(1), torch.zeros(len(images))], 1)

    images = torch.full((3, 2, 9, 9), 0.5)
    adv = Square(queries=60)(Firm(), images, torch.zeros(3, dtype=torch.long), eps=0.25)
    assert len(seen) == 61  # one pass for the clean images, and the queries
    ends = (adv - images).abs()
    torch.testing.assert_close(ends, torch.full_like(ends, 0.25), atol=1e-6, rtol=0)
    tried = torch.stack([x.flatten(1).mean(1) for x in seen[1:]])  # (queries, N)
    torch.testing.assert_close(adv.flatten(1).mean(1), tried.amin(0))  # each image keeps its own best
    assert (tried[-1] < tried[0]).all()
