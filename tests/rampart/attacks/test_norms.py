import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rampart.attacks import NORMS, NormName

NAMES: list[NormName] = ["Linf", "L2"]
SHAPES = [(3, 1, 28, 28), (2, 3, 8, 8), (4, 5)]


def length(delta: Tensor, norm: NormName) -> Tensor:
    flat = delta.double().flatten(1)
    return flat.abs().amax(1) if norm == "Linf" else flat.norm(dim=1)


@settings(max_examples=150, deadline=None)
@given(
    norm=st.sampled_from(NAMES),
    shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    eps=st.one_of(st.floats(0, 1), st.sampled_from([1e-9, 1e-6, 2 / 255, 8 / 255, 0.1, 0.3, 0.4, 1.0])),
    far=st.sampled_from([1e-6, 0.1, 1.0, 1e6]),
    seed=st.integers(0, 10_000),
)
def test_projection_and_start_stay_inside_ball_and_box(
    norm: NormName, shape: tuple[int, ...], dtype: torch.dtype, eps: float, far: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(shape, generator=generator, dtype=dtype)
    images[0] = images[0].round()
    adv = images + far * torch.randn(shape, generator=generator, dtype=dtype)
    projected = NORMS[norm].project(adv, images, eps)
    start = NORMS[norm].random_start(images, eps, generator)
    for result in (projected, start):
        assert result.dtype == dtype
        assert result.min() >= 0
        assert result.max() <= 1
        # In float64, and in the images' own dtype, as a user would compute it.
        assert length(result.double() - images.double(), norm).max().item() <= eps
        assert length(result - images, norm).max().item() <= eps * (1 + 1e-7)
    again = NORMS[norm].project(projected, images, eps)
    assert (again - projected).abs().max() <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("norm", NAMES)
def test_projection_keeps_points_inside_the_ball(norm: NormName) -> None:
    images = torch.full((2, 1, 4, 4), 0.5)
    inside = images + 0.01
    torch.testing.assert_close(NORMS[norm].project(inside, images, 0.1), inside)


@pytest.mark.parametrize("norm", NAMES)
def test_all_methods_work_per_image(norm: NormName) -> None:
    images, adv = torch.rand(6, 1, 5, 5), torch.rand(6, 1, 5, 5) * torch.logspace(-2, 3, 6).view(-1, 1, 1, 1)
    for method in (lambda a, x: NORMS[norm].project(a, x, 0.3), lambda a, _: NORMS[norm].steepest_step(a, 0.1)):
        whole = method(adv, images)
        alone = torch.cat([method(adv[i : i + 1], images[i : i + 1]) for i in range(6)])
        torch.testing.assert_close(whole, alone)


@pytest.mark.parametrize("norm", NAMES)
def test_steepest_step_has_its_length_and_is_zero_at_zero(norm: NormName) -> None:
    grad = torch.randn(3, 1, 6, 6) * torch.tensor([1.0, 1e-30, 0.0]).view(-1, 1, 1, 1)
    step = NORMS[norm].steepest_step(grad, 0.25)
    torch.testing.assert_close(length(step, norm), torch.tensor([0.25, 0.25, 0.0], dtype=torch.float64))
    assert (step[2] == 0).all()


@pytest.mark.parametrize("norm", NAMES)
def test_random_starts_fill_the_ball_and_follow_the_generator(norm: NormName) -> None:
    images = torch.full((4000, 1, 2, 2), 0.5)
    start = NORMS[norm].random_start(images, 0.2, torch.Generator().manual_seed(1))
    again = NORMS[norm].random_start(images, 0.2, torch.Generator().manual_seed(1))
    other = NORMS[norm].random_start(images, 0.2, torch.Generator().manual_seed(2))
    assert torch.equal(start, again)
    assert not torch.equal(start, other)
    # In a four-dimensional ball a uniform point is within radius r with probability (r / eps)^4.
    lengths = length(start - images, norm) / 0.2
    for radius in (0.5, 0.8, 0.95):
        assert (lengths < radius).double().mean().item() == pytest.approx(radius**4, abs=0.03)
