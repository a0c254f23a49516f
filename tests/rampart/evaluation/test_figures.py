from dataclasses import replace
from typing import Any

import pytest
import torch

from rampart.evaluation import WorstCase, WorstCaseSearch, in_memory, robustness_figure, worst_case_figures
from tests.rampart.evaluation.test_worst_case import STRONG, WEAK, case

GRID = [0.1, 0.2, 0.3]


@pytest.fixture
def found() -> WorstCase:
    model, images, labels = case()
    return WorstCaseSearch(model, in_memory(images, labels), [WEAK, STRONG], GRID).run()


def draw(found: WorstCase) -> dict[str, Any]:
    return worst_case_figures(found, GRID, 0.2, [(0.5, 1.0)] * 4)


def test_curve_starts_at_clean_accuracy_and_follows_the_counts(found: WorstCase) -> None:
    axes = draw(found)["curve"].axes[0]
    eps, accuracy = axes.lines[0].get_data()
    assert list(eps) == [0.0, *GRID]
    assert list(accuracy) == pytest.approx([100 * found.count_robust(value) / 40 for value in (0, *GRID)])
    assert len(axes.collections) == 4  # an interval each
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"target eps 0.2", "95% interval"}


def test_every_image_is_in_one_bar_of_the_radii(found: WorstCase) -> None:
    bars = [bar.get_height() for bar in draw(found)["radii"].axes[0].patches]
    assert bars == [1, *[int((found.eps == eps).sum()) for eps in GRID], int(found.eps.isinf().sum())]
    assert sum(bars) == 40


def whole(figure: Any) -> bool:
    """Return True if all titles are inside the figure."""
    figure.draw_without_rendering()
    titles = [figure._suptitle, *(axes.title for axes in figure.axes)]
    boxes = [title.get_window_extent() for title in titles if title is not None and title.get_text()]
    assert boxes
    return all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


@pytest.mark.parametrize("fooled", [1, 2, 12])
def test_no_title_is_cut_off(found: WorstCase, fooled: int) -> None:
    some = [replace(example, eps=8 / 255) for example in found.examples[:fooled]]
    figures = worst_case_figures(replace(found, examples=some), [8 / 255], 8 / 255)
    assert [name for name, figure in figures.items() if not whole(figure)] == []


def test_title_of_the_curve_fits_with_many_images() -> None:
    assert whole(robustness_figure([0.0, 0.4], [0.9, 0.8], 0.4, "the worst of all attacks", 100_000))


def test_the_confusion_counts_every_image_and_no_error_on_its_diagonal(found: WorstCase) -> None:
    axes = draw(found)["confusion"].axes[0]
    counts = [int(text.get_text()) for text in axes.texts]
    assert sum(counts) == 40
    assert counts[0] + counts[3] == found.count_robust(0.3)
    assert axes.images[0].get_array().diagonal().sum() == 0


def test_figures_show_the_first_and_the_last_fooled_images(found: WorstCase) -> None:
    figures, images = draw(found), case()[1]
    order = [
        i for eps in GRID for attack in (0, 1) for i in range(40) if found.eps[i] == eps and found.attack[i] == attack
    ]
    assert len(order) > 20
    advs = {example.index: example.adv for example in found.examples}
    assert list(advs) == [*order[:10], *order[-10:]]
    for name, chosen in (("easiest", order[:10]), ("hardest", order[-10:])):
        shown = [torch.as_tensor(axes.images[0].get_array()) for axes in figures[name].axes]
        for i, clean, adv in zip(chosen, shown[:10], shown[10:20], strict=True):
            assert torch.allclose(clean, images[i, 0])
            assert torch.allclose(adv, advs[i][0])
        low, high = min(found.eps[chosen]), max(found.eps[chosen])
        expected = f"eps {low:g} to {high:g}" if low < high else f"eps {low:g}"
        assert f"{expected} (green" in figures[name]._suptitle.get_text()


def test_few_fooled_images_are_shown_once(found: WorstCase) -> None:
    assert set(draw(replace(found, examples=found.examples[:8]))) == {"curve", "radii", "confusion", "easiest"}


@pytest.mark.parametrize("shape", [(16,), (4, 4), (2, 2, 4), (4, 2, 2)])
def test_images_of_other_shapes_are_not_drawn(found: WorstCase, shape: tuple[int, ...]) -> None:
    others = [replace(e, image=e.image.reshape(shape), adv=e.adv.reshape(shape)) for e in found.examples]
    assert set(draw(replace(found, examples=others))) == {"curve", "radii", "confusion"}


def test_colour_images_are_drawn() -> None:
    model, images, labels = case()
    found = WorstCaseSearch(model, in_memory(images.repeat(1, 3, 1, 1), labels), [WEAK], GRID).run()
    figure: Any = worst_case_figures(found, GRID, 0.2)["easiest"]
    assert figure.axes[0].images[0].get_array().shape == (4, 4, 3)


def test_no_images_are_shown_if_none_was_fooled(found: WorstCase) -> None:
    found.eps.copy_(torch.full_like(found.eps, torch.inf))
    assert set(draw(replace(found, examples=[]))) == {"curve", "radii", "confusion"}
