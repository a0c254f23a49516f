"""Evaluate weights that others trained, and compare with the robust accuracy that they or third parties published.

    python -m benchmarks.published trades FILE --data-dir DIR --out OUT.json

Run `cli.py evaluate --preset autoattack` on the first test images of MNIST, and fail if the result contradicts the
published number. With `--peer 1000`, also run pyautoattack on the first 1,000 images.

| case | weights | published on the 10,000 test images |
|---|---|---|
| trades | TRADES' MNIST network (github.com/yaodongyu/TRADES) | eps 0.3: clean 99.48, AutoAttack 92.81 |
| wk17a | wk17a of github.com/vtjeng/MIPVerify_data | eps 0.1: clean error 1.89, PGD error 4.11, exact error 4.38 |
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.mnist import load_first_images, load_trained
from benchmarks.published_networks import TradesSmallCNN, wong_kolter_cnn
from benchmarks.record import Record, describe_file, new_file
from rampart.kernels import full_float32

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Published:
    """Robust accuracy of one network, in %, over MNIST's 10,000 test images.

    Attributes:
        network: Import path of the network, from the repository's root.
        eps: Radius in l-inf, pixel scale.
        clean: Clean accuracy.
        robust: Smallest and largest accuracy under attack that agree with the published number.
    """

    network: str
    eps: float
    clean: float
    robust: tuple[float, float]


CASES = {
    # AutoAttack's authors list 92.81; another seed may change it by a few tenths.
    "trades": Published("benchmarks.published_networks.TradesSmallCNN", 0.3, 99.48, (92.31, 93.31)),
    # The error under a strong attack lies between PGD's and the exact one.
    "wk17a": Published("benchmarks.published_networks.wong_kolter_cnn", 0.1, 98.11, (95.62, 95.89)),
}
BUILDERS = {"trades": TradesSmallCNN, "wk17a": wong_kolter_cnn}


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate, compare, print and write JSON; exit with 1 if all images were attacked and the numbers disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES, help="network with published numbers")
    parser.add_argument("weights", type=Path, help="published weights of that network")
    parser.add_argument("--data-dir", required=True, help="folder with MNIST/raw")
    parser.add_argument("--num-images", type=int, default=10_000, help="number of test images, from the first on")
    parser.add_argument("--batch-size", type=int, default=250, help="images per batch")
    parser.add_argument("--accelerator", default="auto", help="trainer.accelerator of the evaluation")
    parser.add_argument("--peer", type=int, default=0, help="number of images for pyautoattack, from the first on")
    parser.add_argument("--runs-dir", type=Path, help="keeps the evaluation; a temporary folder if left out")
    parser.add_argument("--out", type=new_file, help="JSON file to write")
    arguments = parser.parse_args(argv)
    record = Record(arguments.out, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        rampart = evaluate(arguments, arguments.runs_dir or Path(folder))
    result = {"case": arguments.case} | describe_file(arguments.weights) | {"rampart": rampart}
    if arguments.peer:
        result["pyautoattack"] = run_peer(arguments)
    problems = find_problems(CASES[arguments.case], rampart["report"])
    record.show(result | {"problems": problems})
    if problems:
        sys.exit(f"contradicts the published numbers: {'; '.join(problems)}")


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
    reports = runs.glob(f"published_{arguments.case}/evaluate-*/report.json")
    shown = [option if "/" not in option else Path(option).name for option in options]
    report = json.loads(max(reports, key=lambda path: path.stat().st_mtime).read_text())
    for sign in report["signs"]:
        sign["images"] = len(sign["images"])  # the list is long
    return {"command": " ".join(["cli.py", *shown]), "wall_seconds": round(seconds, 1), "report": report}


def run_peer(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Run pyautoattack's standard version on the same images; return None if it is not installed."""
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        print(f"left out: pyautoattack ({error})", file=sys.stderr)
        return None
    device = "cuda" if torch.cuda.is_available() and arguments.accelerator != "cpu" else "cpu"
    builder: Callable[[], nn.Module] = BUILDERS[arguments.case]
    network = load_trained(builder(), arguments.weights).to(device)
    images, labels = (x.to(device) for x in load_first_images(arguments.data_dir, "test", arguments.peer))
    attack = AutoAttack(network, eps=CASES[arguments.case].eps, seed=0, device=device)
    start = time.perf_counter()
    with full_float32(device):
        _, found = attack.run_standard_evaluation(images, labels, batch_size=arguments.batch_size)
    return {
        "version": version("pyautoattack"),
        "images": len(labels),
        "robust": int((found == labels).sum()),
        "wall_seconds": round(time.perf_counter() - start, 1),
    }


def find_problems(case: Published, report: dict[str, Any]) -> list[str]:
    """List contradictions with the published numbers; none for a part of the test set, which they do not cover."""
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
