import csv
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rampart.attacks import PGD
from rampart.evaluation import (
    Certifier,
    WorstCase,
    WorstCaseSearch,
    build_report,
    format_table,
    in_memory,
    render_html,
    worst_case_figures,
    write_per_image,
)
from tests.rampart.evaluation.test_worst_case import STRONG, WEAK, Threshold, case

GRID = [0.1, 0.3]


def search_for(certifier: Certifier | None, folder: Path | None = None, **settings: Any) -> WorstCaseSearch:
    model, images, labels = case()
    model.eval()
    arguments: dict[str, Any] = {"attacks": [WEAK, STRONG], "eps": GRID, "batch_size": 9} | settings
    return WorstCaseSearch(model, in_memory(images, labels), cache_dir=folder, certifier=certifier, **arguments)


def certifier_of(network: nn.Module | None = None, required: bool = False) -> Certifier:
    return Certifier((network or Threshold()).eval(), required)


def radii(found: WorstCase) -> Tensor:
    assert found.certificates is not None
    return found.certificates.radius


def test_no_image_is_fooled_within_its_certified_radius() -> None:
    found = search_for(certifier_of()).run()
    distance = (case()[1].flatten(1).mean(1) - 0.5).abs().double()
    distance[3] = 0  # misclassified clean
    assert (radii(found) <= distance).all()
    # At 0.5 a mean pixel can't be moved across the threshold by less than its distance, which the bisection finds.
    torch.testing.assert_close(radii(found), distance, atol=0.3 / 256 + 1e-4, rtol=0)
    assert (radii(found) < found.eps).sum() == 39
    assert found.certificates is not None
    for eps in GRID:
        assert found.certificates.count_certified(eps) <= found.count_robust(eps) <= found.count_robust(0)
    assert [(stage.method, stage.eps, stage.tried) for stage in found.certificates.stages][-2:] == [
        ("IBP", 0.3, 39),
        ("CROWN-IBP", 0.3, 39 - found.certificates.count_certified(0.3)),
    ]


def test_certified_images_are_attacked_once_with_the_same_result() -> None:
    certifier = Certifier(Threshold().eval(), skip_certified=True)
    whole, short = search_for(certifier_of()).run(), search_for(certifier).run()
    assert torch.equal(short.eps, whole.eps)
    assert torch.equal(radii(short), radii(whole))
    assert short.certificates is not None
    for before, after in zip(whole.stages, short.stages, strict=True):
        assert after.robust == before.robust
        certified = short.certificates.count_certified(before.eps)
        assert after.attacked == before.attacked - (certified if after.attack == STRONG.name else 0)
    assert any(short.certificates.count_certified(eps) > 0 for eps in GRID)


def test_cached_certificates_are_read_if_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = search_for(certifier_of(), tmp_path).run()
    computed, compute = list[Any](), Certifier._compute

    def record(*args: Any) -> Any:
        computed.append(1)
        return compute(*args)

    monkeypatch.setattr(Certifier, "_compute", record)
    again = search_for(certifier_of(), tmp_path).run()
    assert computed == []
    assert torch.equal(radii(again), radii(first))
    assert again.certificates is not None
    assert first.certificates is not None
    assert again.certificates.stages == first.certificates.stages
    file = sorted(tmp_path.glob("*/certificates-*.safetensors"))[0]
    tensors = load_file(file)
    tensors["radius"][0] += 0.1  # too large
    metadata = {"search": file.parent.name, "name": file.stem}
    save_file(tensors, file, metadata)
    assert torch.equal(radii(search_for(certifier_of(), tmp_path).run()), radii(first))
    assert computed == [1]


class Other(Threshold):
    """Another function than the attacked network."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).flip(1)


class Noisy(Threshold):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + torch.rand(images.shape[0], 2)


class Centred(Threshold):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - images.mean(0))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a layer without a rule": (
        lambda: nn.Sequential(nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 2)),
        "no interval bound for layer_norm: it divides by statistics of the image (in layer 1, LayerNorm)",
    ),
    "another function": (Other, "the bounds of Other do not contain its logits"),
    "mixed images": (Centred, "the bounds of Centred for an image depend on the other images of the batch"),
    "random numbers": (Noisy, "the bounds of Noisy change from pass to pass: it is randomised"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_network_that_cannot_be_bounded_is_attacked_alone_and_the_report_says_why(kind: str) -> None:
    make, message = REFUSED[kind]
    search = search_for(certifier_of(make()))
    found = search.run()
    assert found.certificates is None
    report = build_report(search, found, [])
    assert report["certificates"] == {"reason": message}
    assert f"no certificates: {message}" in format_table(report).splitlines()
    assert f"No certificates: {message}." in render_html(report, {})
    with pytest.raises(ValueError, match=r"certify: .*; leave out --certify true"):
        search_for(certifier_of(make(), required=True)).run()


def test_there_are_no_certificates_in_l2() -> None:
    search = search_for(certifier_of(), attacks=[PGD(norm="L2", steps=1)])
    report = build_report(search, search.run(), [])
    assert report["certificates"] == {"reason": "there are certificates in Linf alone, and the evaluation is in L2"}


def test_a_certified_image_that_was_fooled_is_named_and_no_number_is_reported() -> None:
    search = search_for(certifier_of())
    found = search.run()
    assert found.certificates is not None
    fooled = int((found.eps == 0.1).nonzero()[0])
    radius = radii(found).clone()
    radius[fooled] = 0.2
    wrong = replace(found, certificates=replace(found.certificates, radius=radius))
    name = ["PGD-1", "PGD-10x2"][int(found.attack[fooled])]
    message = f"no number is reported: image {fooled} is certified up to eps 0.2, but {name} fooled it at eps 0.1"
    with pytest.raises(ValueError, match=message):
        build_report(search, wrong, [])


def test_report_table_and_page_show_both_sides() -> None:
    search = search_for(certifier_of())
    found = search.run()
    assert found.certificates is not None
    report = json.loads(json.dumps(build_report(search, found, [])))
    section = report["certificates"]
    counts = [found.certificates.count_certified(eps) for eps in GRID]
    assert [(row["eps"], row["count"]) for row in section["certified"]] == list(zip(GRID, counts, strict=True))
    assert section["median_radius"] == sorted(radii(found)[found.eps > 0].tolist())[19]
    assert len(report["certificate_timings"]) == len(section["stages"]) + 1
    head, _, _, first, *lines = format_table(report).splitlines()
    assert head.split()[:5] == ["attack", "eps", "attacked", "robust", "certified"]
    assert first.split()[4] == str(counts[0])
    assert any(line.startswith(f"certified at eps 0.1: {2.5 * counts[0]:.2f}% (Linf; 95% interval ") for line in lines)
    assert "the training form of the attacked network: the same function" in format_table(report)
    page = render_html(report, {})
    assert "certified at eps 0.3" in page
    assert "<h2>Certificates per method</h2>" in page


def test_reports_without_certificates_are_read_too() -> None:
    search = search_for(None)
    report = build_report(search, search.run(), [])
    assert report["certificates"] is None
    old = {key: value for key, value in report.items() if key not in ("certificates", "certificate_timings", "format")}
    for any_report in (report, old):
        assert "certif" not in format_table(any_report)
        assert "ertified" not in render_html(any_report, {})


def test_csv_has_certified_and_fooling_radii(tmp_path: Path) -> None:
    found = search_for(certifier_of()).run()
    write_per_image(tmp_path / "rows.csv", found, ["PGD-1", "PGD-10x2"], "Linf", GRID)
    for row, radius in zip(csv.DictReader((tmp_path / "rows.csv").open()), radii(found).tolist(), strict=True):
        assert float(row["certified_radius"]) == radius
        assert [row["certified_at_0.1"], row["certified_at_0.3"]] == [str(int(radius >= eps)) for eps in GRID]
        assert radius < float(row["fooled_at_eps"] or "inf") or row["fooled_at_eps"] == "0.0"


def test_figures_show_the_band_and_each_image() -> None:
    found = search_for(certifier_of()).run()
    figures: Any = worst_case_figures(found, GRID, 0.1, [(0.5, 1.0)] * 3, [(0.2, 0.9)] * 2)
    axes = figures["curve"].axes[0]
    certified = next(line for line in axes.lines if line.get_label() == "certified: a lower bound")
    eps, accuracy = certified.get_data()
    assert accuracy[0] == 97.5  # clean
    assert all(later <= sooner for sooner, later in pairwise(accuracy))
    assert found.certificates is not None
    assert accuracy[-1] == pytest.approx(100 * found.certificates.count_certified(0.3) / 40)
    assert eps[-1] == 0.3
    assert {text.get_text() for text in figures["bounds"].axes[0].get_legend().get_texts()} == {"fooled", "certified"}
