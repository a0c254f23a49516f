"""Comparison with published numbers: recorded results agree, and a disagreement is reported."""

import copy
import csv
import json
from typing import Any

import pytest

from benchmarks.published import CASES, find_problems
from tests.conftest import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "published"


def recorded(case: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((RESULTS / f"{case}.json").read_text())["rampart"]["report"]
    return report


@pytest.mark.parametrize("case", CASES)
def test_recorded_numbers_agree_with_the_published_ones(case: str) -> None:
    report = recorded(case)
    assert report["images"] == 10_000
    assert find_problems(CASES[case], report) == []
    with (RESULTS / f"{case}.csv").open(newline="") as file:
        robust = sum(row["fooled_by"] == "" and row["label"] == row["clean_prediction"] for row in csv.DictReader(file))
    assert robust == report["robust"][0]["count"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("change", [-0.02, 0.02])
def test_disagreement_is_reported(case: str, change: float) -> None:
    report = copy.deepcopy(recorded(case))
    report["robust"][0]["accuracy"] += change
    assert len(find_problems(CASES[case], report)) == 1
    report["clean"]["accuracy"] -= 0.01
    assert len(find_problems(CASES[case], report)) == 2
