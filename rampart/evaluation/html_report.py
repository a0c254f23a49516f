"""A report as one self-contained HTML file."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rampart.attacks import format_eps
from rampart.evaluation.report import describe_certificates

CAPTIONS = {
    "curve": "Accuracy over eps; bars are 95% intervals",
    "bounds": "Eps up to which each image is certified, and from which on it is fooled",
    "radii": "Number of images by the smallest eps that fooled them",
    "confusion": "Predictions for the adversarial images, and for the clean images that no attack fooled",
    "easiest": "The first fooled images: at the smallest eps, by the first attacks",
    "hardest": "The last fooled images: at the largest eps, by the last attacks",
}
PROVENANCE = ("search", "made_on", "timings", "certificate_timings")


def render_html(report: dict[str, Any], pictures: Mapping[str, bytes], title: str = "") -> str:
    """Render a report as one HTML page with embedded figures, which a browser shows offline.

    Args:
        report: From :func:`rampart.evaluation.report.build_report`.
        pictures: PNG files by the names of :func:`rampart.evaluation.figures.worst_case_figures`.
        title: Name of the evaluated weights or network.
    """
    from jinja2 import Environment, FileSystemLoader  # torch brings it; slow to import

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    return environment.get_template("report.html.jinja").render(
        report=report,
        title=title,
        rates=_list_rates(report),
        certificates=describe_certificates(report) if report.get("certificates") else "",
        figures=[(CAPTIONS[name], base64.b64encode(png).decode()) for name, png in pictures.items()],
        provenance=json.dumps({key: report[key] for key in PROVENANCE if key in report}, indent=2),
        percent=lambda share: f"{100 * share:.2f}%",
    )


def _list_rates(report: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the rates of the first table by name: at each eps the robust rate, then the certified one."""
    certified = (report.get("certificates") or {}).get("certified", [])
    rates = [("clean", report["clean"])]
    for number, rate in enumerate(report["robust"]):
        rates.append((f"robust at eps {format_eps(rate['eps'])}", rate))
        rates += [(f"certified at eps {format_eps(row['eps'])}", row) for row in certified[number : number + 1]]
    return rates
