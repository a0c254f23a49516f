import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binomtest

from rampart.attacks import APGD, PGD, Square
from rampart.evaluation import Sign, Stage, WorstCaseSearch, build_report, format_table, in_memory, write_per_image
from rampart.evaluation.contradictions import find_contradictions, find_stage_contradictions
from rampart.evaluation.report import FORMAT, wilson_interval
from tests.rampart.evaluation.test_worst_case import STRONG, WEAK, case


def stage(attacked: int, robust: int) -> Stage:
    return Stage("PGD-1", 0.1, attacked, robust, 0.0)


def test_stages_that_only_lose_images_have_no_contradictions() -> None:
    assert find_stage_contradictions(10, 9, [stage(9, 9), stage(9, 4), stage(4, 0)]) == []


@pytest.mark.parametrize(
    ("clean", "stages", "message"),
    [
        (11, [], "11 of 10 clean images are classified correctly"),
        (5, [stage(5, 6)], "6 images are robust after PGD-1 at eps 0.1, but only 5 before"),
        (9, [stage(9, 3), stage(3, 4)], "4 images are robust after"),
        (9, [stage(9, 3), stage(9, 3)], "attacked 9 images, but only 3 were robust"),
    ],
)
def test_contradictions_between_stages_are_found(clean: int, stages: list[Stage], message: str) -> None:
    (problem,) = find_stage_contradictions(10, clean, stages)
    assert message in problem


PGD_20, PGD_200, PGD_20X5 = (a.settings() for a in (PGD(steps=20), PGD(steps=200), PGD(steps=20, restarts=5)))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(PGD_20, 0.1, 951)], "951 images are robust under PGD at eps 0.1, but only 950 are correctly classified"),
        ([(PGD_20, 0.0, 949)], "949 images are robust at eps 0, but 950 are correctly classified"),
        ([(PGD_20, 0.1, 700), (PGD_20, 0.2, 900)], "900 images are robust at eps 0.2, 700 at eps 0.1"),
        ([(PGD_20, 0.1, 700), (PGD_200, 0.1, 900)], "900 images are robust with 200 steps, 700 with 20"),
        ([(PGD_20, 0.1, 700), (PGD_20X5, 0.1, 900)], "900 images are robust with 5 restarts, 700 with 1"),
        (
            [(Square(queries=9).settings(), 0.1, 700), (Square(queries=90).settings(), 0.1, 900)],
            "900 images are robust with 90 queries, 700 with 9",
        ),
        (
            [(APGD(targets=1).settings(), 0.1, 700), (APGD(targets=9).settings(), 0.1, 900)],
            "900 images are robust with 9 targets, 700 with 1",
        ),
    ],
)
def test_attacks_in_the_wrong_order_are_found(rows: Any, message: str) -> None:
    assert find_contradictions(rows, clean=950) == [message]
    assert find_contradictions(rows[::-1], clean=950) == [message]


def test_attacks_in_the_right_order_and_chance_are_no_contradictions() -> None:
    rows = [(PGD_20, 0.0, 950), (PGD_20, 0.1, 900), (PGD_200, 0.1, 903), (PGD_20X5, 0.1, 890), (PGD_20, 0.2, 500)]
    assert find_contradictions(rows, clean=950) == []
    assert find_contradictions([(PGD_200, 0.1, 500), (Square().settings(), 0.1, 900)], clean=950) == []


@pytest.mark.parametrize(("count", "total"), [(0, 50), (50, 50), (1, 1), (8470, 10_000)])
def test_interval_is_wilsons(count: int, total: int) -> None:
    oracle = binomtest(count, total).proportion_ci(method="wilson")
    assert wilson_interval(count, total) == pytest.approx((oracle.low, oracle.high), abs=1e-6)


def test_report_holds_counts_identity_and_origin() -> None:
    model, images, labels = case()
    search = WorstCaseSearch(model, in_memory(images, labels), [WEAK, STRONG], [0.1, 0.3])
    found = search.run()
    report = json.loads(json.dumps(build_report(search, found, [Sign("softmax", "why", [3, 4])])))
    assert report["format"] == FORMAT
    assert report["images"] == 40
    assert [stage["robust"] for stage in report["stages"]] == [stage.robust for stage in found.stages]
    assert report["clean"]["count"] == 39
    assert [(row["eps"], row["count"]) for row in report["robust"]] == [
        (eps, int((found.eps > eps).sum())) for eps in (0.1, 0.3)
    ]
    low, high = report["robust"][1]["interval_95"]
    assert low < report["robust"][1]["accuracy"] < high
    distance = (images.flatten(1).mean(1) - 0.5).abs()
    correct = torch.cat([distance[:3], distance[4:]]).sort().values
    assert report["median_fooling_eps"] == next(eps for eps in (0.1, 0.3) if eps > correct[19])
    assert report["search"]["attacks"][0]["steps"] == 1
    assert len(report["search"]["weights"]) == 64
    assert report["made_on"]["versions"]["torch"]
    assert report["signs"] == [{"name": "softmax", "message": "why", "images": [3, 4]}]
    table = format_table(report)
    assert f"worst case at eps 0.3: {100 * report['robust'][1]['accuracy']:.2f}%" in table
    assert "warning: softmax: why" in table
    head, _, clean, first, *_ = table.splitlines()
    assert head.split()[:4] == ["attack", "eps", "attacked", "robust"]
    assert clean.split() == ["clean", "39", "97.50"]
    assert first.split() == ["PGD-1", "0.1", "39", str(found.stages[0].robust), f"{2.5 * found.stages[0].robust:.2f}"]


def test_contradictory_numbers_are_refused() -> None:
    model, images, labels = case()
    search = WorstCaseSearch(model, in_memory(images, labels), [WEAK], [0.1])
    found = search.run()
    found.stages[0] = Stage("PGD-1", 0.1, 39, 40, 0.0)
    with pytest.raises(ValueError, match="the evaluation is broken, no number is reported: 40 images are robust after"):
        build_report(search, found, [])


def test_csv_has_one_row_per_image(tmp_path: Path) -> None:
    model, images, labels = case()
    found = WorstCaseSearch(model, in_memory(images, labels), [WEAK, STRONG], [0.1, 0.3]).run()
    write_per_image(tmp_path / "rows.csv", found, ["PGD-1", "PGD-10x2"], "Linf", [0.1, 0.3])
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert [int(row["index"]) for row in rows] == list(range(40))
    for i, row in enumerate(rows):
        assert int(row["label"]) == labels[i]
        fooled = math.isfinite(found.eps[i])
        assert (row["fooled_at_eps"] != "") == fooled
        assert (row["fooled_by"] in ("PGD-1", "PGD-10x2")) == (fooled and i != 3)
        assert (int(row["adv_prediction"]) != labels[i]) == fooled
