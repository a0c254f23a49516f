"""Measure `fit` with one process against two, and project the CIFAR-10 configs to many GPUs.

Both train the same images per update under `cli.py fit`, in turn (A B A B): one process with all of the machine's
cores, and two (DDP) with half of them each, as `--trainer.devices 2 --trainer.strategy ddp` starts them. With
`--device cuda` and one GPU, both processes use it and communicate by gloo; with two GPUs or more each has its own
(NCCL). The images are the bundled digits, and random ones of CIFAR-10's shape.

    python -m benchmarks.scaling --out benchmarks/results/scaling/cpu.json                    # 8 minutes on two cores
    python -m benchmarks.scaling --device cuda --out benchmarks/results/scaling/gpu.json      # on a GPU, 6 minutes
    python -m benchmarks.scaling --parts projection --out benchmarks/results/scaling/projection.json
    python -m benchmarks.scaling --quick                                                      # toy size, a minute

The tables are written next to the JSON file, as Markdown. The projection is arithmetic, not a measurement.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.accelerator_sections.device import choose_device, describe_device
from benchmarks.accelerator_sections.worker import WorkerError
from benchmarks.record import Record, new_file
from benchmarks.scaling_parts.cases import CASES, Case
from benchmarks.scaling_parts.measuring import Rounds, measure_case
from benchmarks.scaling_parts.projection import Links, project_all
from benchmarks.scaling_parts.tables import format_measured, format_projection

PARTS = ("steps", "projection")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="steps, projection or both, with a comma")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=choose_device(), help="device of the processes")
    parser.add_argument("--quick", action="store_true", help="two cases at toy size, two rounds")
    parser.add_argument("--seconds", type=float, default=80, help="time of each case")
    parser.add_argument("--nvlink", type=float, default=Links.nvlink, help="GB/s per GPU within a node, for NCCL")
    parser.add_argument("--network", type=float, default=Links.network, help="GB/s per node between nodes")
    parser.add_argument("--out", type=new_file, help="JSON file to write; the tables are written next to it")
    given = parser.parse_args(argv)
    given.parts = given.parts.split(",")
    if unknown := [name for name in given.parts if name not in PARTS]:
        parser.error(f"--parts must be among {', '.join(PARTS)}, got {unknown[0]!r}")
    if given.nvlink <= 0 or given.network <= 0:
        parser.error(f"--nvlink and --network must be above 0, got {given.nvlink:g} and {given.network:g}")
    if given.out and given.out.with_suffix(".md").exists():
        parser.error(f"--out writes {given.out.with_suffix('.md')} too, which exists; give another file")
    return given


def measure(case: Case, device: str, rounds: Rounds) -> dict[str, Any]:
    """Return the row of a case, or why it was left out."""
    try:
        return measure_case(case, device, rounds) | {"options": case.options}
    except WorkerError as error:
        return {"case": case.name, "left_out": str(error)}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, project, print the tables, and write JSON and Markdown; exit with 1 if a case failed."""
    given = parse(argv)
    record = Record(given.out, seed=0)
    place = f"CPU, {os.cpu_count()} cores" if given.device == "cpu" else describe_device(given.device)
    result: dict[str, Any] = {"on": place}
    pages = []
    rows: list[dict[str, Any]] = []
    if "steps" in given.parts:
        size = "quick" if given.quick else "cpu" if given.device == "cpu" else "gpu"
        rounds = Rounds(2, 2, 0) if given.quick else Rounds(5, 40, given.seconds)
        result |= {"size": size, "steps": rows}
        for case in CASES[size]:
            print(f"{case.name} ...", flush=True)
            rows.append(measure(case, given.device, rounds))
            record.write(result)
        pages.append(format_measured(rows))
    if "projection" in given.parts:
        links = Links(nvlink=given.nvlink, network=given.network)
        result |= {"projection_not_a_measurement": project_all(links), "links": asdict(links)}
        pages.append(format_projection(result["projection_not_a_measurement"], asdict(links)))
    record.write(result)
    print("\n".join(pages))
    if given.out:
        given.out.with_suffix(".md").write_text("\n".join(pages))
    if failed := [row["case"] for row in rows if "left_out" in row]:
        sys.exit(f"not measured: {', '.join(failed)}; the table says why")


if __name__ == "__main__":
    main()
