"""Evaluate weights that others trained, and compare with the robust accuracy that they or third parties published.

    python -m benchmarks.published trades FILE --data-dir DIR --out OUT.json

runs `cli.py evaluate --preset autoattack` on the first test images of MNIST and fails if the result contradicts the
published number. `--peer 1000` runs pyautoattack on the first 1,000 of them too.

| case | weights | published on the 10,000 test images |
|---|---|---|
| trades | TRADES' MNIST network (github.com/yaodongyu/TRADES) | eps 0.3: clean 99.48, AutoAttack 92.81 |
| wk17a | of github.com/vtjeng/MIPVerify_data | eps 0.1: clean error 1.89, PGD error 4.11, exact error 4.38 |
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.published_networks import TradesSmallCNN, wong_kolter_cnn
from benchmarks.worst_case import images_of
from rampart.files.weights import load_weights

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Published:
    """Robust accuracy of one network, in %, over MNIST's 10,000 test images.

    Attributes:
        network: Import path, seen from the repository.
        eps: Radius, l-inf, pixel scale.
        clean: Clean accuracy.
        robust: Smallest and largest accuracy under attack that agree with what was published.
    """

    network: str
    eps: float
    clean: float
    robust: tuple[float, float]


CASES = {
    # AutoAttack's authors list 92.81; another seed may move it by a few tenths.
    "trades": Published("benchmarks.published_networks.TradesSmallCNN", 0.3, 99.48, (92.31, 93.31)),
    # No attack finds more than the exact error, and a strong one no fewer than PGD's.
    "wk17a": Published("benchmarks.published_networks.wong_kolter_cnn", 0.1, 98.11, (95.62, 95.89)),
}
BUILDERS = {"trades": TradesSmallCNN, "wk17a": wong_kolter_cnn}


def main() -> None:
    """Evaluate, compare, print and write JSON; exit with 1 where all images were attacked and the numbers disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data-dir", required=True, help="holds MNIST/raw")
    parser.add_argument("--num-images", type=int, default=10_000, help="the first of the test images")
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--peer", type=int, default=0, help="run pyautoattack on so many of the first images")
    parser.add_argument("--runs-dir", type=Path, help="keep the evaluation there; a temporary folder if left out")
    parser.add_argument("--out", type=Path, help="write JSON here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = {"case": arguments.case, "rampart": evaluate(arguments, arguments.runs_dir or Path(folder))}
    if arguments.peer:
        record["pyautoattack"] = peer(arguments)
    record["problems"] = problems(CASES[arguments.case], record["rampart"]["report"])
    text = json.dumps(record, indent=2)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")
    if record["problems"]:
        sys.exit(f"contradicts what was published: {'; '.join(record['problems'])}")


def evaluate(arguments: argparse.Namespace, runs: Path) -> dict[str, Any]:
    """Run the command line's evaluation and return its report, with the command and its wall time."""
    case = CASES[arguments.case]
    options = [
        "evaluate", "--model.network", case.network, "--ckpt_path", str(arguments.weights.resolve()),
        "--data", "MNISTDataModule", "--data.data_dir", str(Path(arguments.data_dir).resolve()),
        "--eps", f"[{case.eps}]", "--preset", "autoattack", "--num_images", str(arguments.num_images),
        "--batch_size", str(arguments.batch_size), "--trainer.accelerator", arguments.accelerator,
        "--runs_dir", str(runs.resolve()), "--name", f"published_{arguments.case}",
    ]  # fmt: skip
    start = time.perf_counter()
    subprocess.run([sys.executable, "cli.py", *options], cwd=ROOT, check=True)  # noqa: S603
    seconds = time.perf_counter() - start
    reports = sorted(
        runs.glob(f"published_{arguments.case}/evaluate-*/report.json"), key=lambda path: path.stat().st_mtime
    )
    shown = [option if "/" not in option else Path(option).name for option in options]
    report = json.loads(max(reports, key=lambda path: path.stat().st_mtime).read_text())
    for sign in report["signs"]:
        sign["images"] = len(sign["images"])  # their number: the list is long and of no use here
    return {"command": " ".join(["cli.py", *shown]), "wall_seconds": round(seconds, 1), "report": report}


def peer(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run pyautoattack's standard version on the same images."""
    from pyautoattack import AutoAttack

    device = "cuda" if torch.cuda.is_available() and arguments.accelerator != "cpu" else "cpu"
    torch.backends.cudnn.allow_tf32 = False
    network: nn.Module = BUILDERS[arguments.case]()
    load_weights(network, arguments.weights)
    images, labels = (x.to(device) for x in images_of(arguments.data_dir, "test", arguments.peer))
    attack = AutoAttack(network.to(device).eval(), eps=CASES[arguments.case].eps, seed=0, device=device)
    start = time.perf_counter()
    _, found = attack.run_standard_evaluation(images, labels, batch_size=arguments.batch_size)
    return {
        "version": version("pyautoattack"),
        "images": len(labels),
        "robust": int((found == labels).sum()),
        "wall_seconds": round(time.perf_counter() - start, 1),
    }


def problems(case: Published, report: dict[str, Any]) -> list[str]:
    """List contradictions with the published numbers; none of a part of the test set, of which they do not speak."""
    if report["images"] != 10_000:
        return []
    found = []
    clean, robust = 100 * report["clean"]["accuracy"], 100 * report["robust"][0]["accuracy"]
    if abs(clean - case.clean) > 0.02:
        found.append(f"clean accuracy {clean:.2f}, published {case.clean:.2f}")
    low, high = case.robust
    if not low - 0.005 <= robust <= high + 0.005:
        found.append(f"robust accuracy {robust:.2f}, published {low:.2f} to {high:.2f}")
    return found


if __name__ == "__main__":
    main()
