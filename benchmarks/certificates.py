"""Compare bounds and attacks with what others have proved: verification instances, published networks, auto_LiRPA.

    python -m benchmarks.certificates --data-dir DIR --cifar10-dir DIR --out OUT.json

Writes OUT.json and the tables of OUT.md, and fails if anything contradicts.

| section | reads, from `--data-dir` | contradiction |
|---|---|---|
| instances | `certified/vnncomp2021_*.npz`, ONNX files | a certified `sat`, a fooled `unsat` |
| published | `weights/`, `certified/`, `mnist/`, CIFAR-10 | a fooled certified image, more certified than robust |
| oracle | the same networks, with auto_LiRPA | a bound that differs by more than 1e-4; left out without auto_LiRPA |
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.certificate_checks import instances, oracle, published
from benchmarks.certificate_checks.tables import format_page
from benchmarks.record import Record, new_file
from rampart.attacks import parse_eps

SECTIONS = ("instances", "published", "oracle")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the sections, write JSON and tables after each; exit with 1 if there are contradictions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with certified/, weights/ and mnist/")
    parser.add_argument("--cifar10-dir", type=Path, help="folder of CIFAR-10; by default cifar10 in the data folder")
    parser.add_argument(
        "--sections", nargs="+", choices=SECTIONS, default=SECTIONS, help="parts to run; all if left out"
    )
    parser.add_argument("--num-images", type=int, default=10_000, help="test images to bound, from the first on")
    parser.add_argument("--attacked", type=int, default=1000, help="test images to attack, from the first on")
    parser.add_argument("--compared", type=int, default=20, help="boxes per network to compare with auto_LiRPA")
    parser.add_argument("--seed", type=int, default=0, help="seed of the attacks' random starts")
    parser.add_argument(
        "--out", type=new_file, required=True, help="JSON file to write; the tables go beside it, as .md"
    )
    arguments = parser.parse_args(argv)
    run: dict[str, Callable[[argparse.Namespace], Iterator[tuple[Any, list[str]]]]] = {
        "instances": run_instances, "published": run_published, "oracle": run_oracle,
    }  # fmt: skip
    record = Record(arguments.out, arguments.seed)
    result: dict[str, Any] = {"contradictions": []}
    for section in arguments.sections:
        result[section] = []
        for rows, contradictions in run[section](arguments):
            result[section] += rows
            result["contradictions"] += contradictions
            record.write(result)
            arguments.out.with_suffix(".md").write_text(format_page(json.loads(arguments.out.read_text())))
    print(arguments.out.with_suffix(".md").read_text())
    if result["contradictions"]:
        sys.exit(f"contradicts what is known: {'; '.join(result['contradictions'])}")


def run_instances(arguments: argparse.Namespace) -> Iterator[tuple[Any, list[str]]]:
    """Yield rows and contradictions, one network of one set at a time."""
    for group in instances.read_instances(arguments.data_dir / "certified"):
        rows = instances.check_instances(group, arguments.seed)
        yield rows, instances.find_contradictions(rows)


def run_published(arguments: argparse.Namespace) -> Iterator[tuple[Any, list[str]]]:
    """Yield the row and contradictions of one published network and eps at a time."""
    sources, counts = find_sources(arguments), (arguments.num_images, arguments.attacked)
    for case in published.CASES:
        for eps in (case.eps, *case.smaller):
            row = published.check_case(case, eps, sources, *counts, arguments.seed)
            yield [row], published.find_contradictions(row)


def run_oracle(arguments: argparse.Namespace) -> Iterator[tuple[Any, list[str]]]:
    """Yield rows and disagreements with auto_LiRPA, one network and eps at a time; none without it."""
    module, sources = oracle.find_oracle(), find_sources(arguments)
    if module is None:
        print("left out: auto_LiRPA can't be imported", file=sys.stderr)
        yield [], []
        return
    for case in published.CASES:
        images, labels = sources.read_images(case.images, arguments.compared)
        network, name = sources.read_network(case), Path(case.file).name
        for eps in (case.eps, *case.smaller):
            lower, upper = (images - parse_eps(eps)).clamp(0, 1), (images + parse_eps(eps)).clamp(0, 1)
            rows = oracle.compare_bounds(module, network, lower, upper, labels)
            rows = [{"network": name, "boxes of": f"eps {eps}"} | row for row in rows]
            yield rows, oracle.find_disagreements(rows)
    for group in instances.read_instances(arguments.data_dir / "certified"):
        lower, upper, labels = (x[: arguments.compared] for x in (group.lower, group.upper, group.labels))
        rows = oracle.compare_bounds(module, group.network, lower, upper, labels)
        rows = [{"network": group.file.name, "boxes of": group.suite} | row for row in rows]
        yield rows, oracle.find_disagreements(rows)


def find_sources(arguments: argparse.Namespace) -> published.Sources:
    """Return the folders that the arguments name."""
    return published.Sources(arguments.data_dir, arguments.cifar10_dir or arguments.data_dir / "cifar10")


if __name__ == "__main__":
    main()
