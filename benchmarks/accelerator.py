r"""Measure Rampart on an accelerator: agreement, attack steps, training, evaluation, two processes, in one command.

Each section runs in a process of its own, and its rows are kept as they come: a section that fails or takes too long
loses nothing else. All share `--budget` seconds; then the rest is left out, in one line each.

| section | measures |
|---|---|
| `agreement` | logits and gradients against float64 on the CPU; images of each attack, captured against eager; counts |
| `attack_step` | milliseconds per step: the paper's loop, libraries, the baseline, Rampart by option |
| `fit` | updates per second of `fast.yaml`, the quickstart and ResNet-18; memory; places that wait for the device |
| `evaluation` | `evaluate --preset autoattack` on the shipped fast weights: seconds per attack and robust images |
| `two_ranks` | two processes that share the device against one: images per second, distance of the weights |
| `trained` | the whole of `fast.yaml` with test and evaluation; left out unless named in `--sections` |

The baseline is the source of an earlier commit in a folder; it is measured in turn with this one, in processes of its
own. For a day with a GPU, on a machine without git history or network::

    git archive e85936a --prefix=baseline/ | tar -x                       # here, and carry the folder along
    python -m benchmarks.accelerator --baseline baseline --data-dir DIR --out OUT.json
    python -m benchmarks.accelerator --sections trained --budget 400 --data-dir DIR --out TRAINED.json

DIR holds MNIST/raw. The first takes at most 6 minutes on an H100, the second about 5. Without an accelerator the first
runs at toy size, in a minute or two. This compares the two commits on a CPU, in 10 minutes::

    python -m benchmarks.accelerator --size cpu --baseline baseline --budget 600 \
        --sections attack_step,fit,evaluation --out OUT.json
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accelerator_sections.checks import check_record
from benchmarks.accelerator_sections.device import choose_device, describe_device
from benchmarks.accelerator_sections.running import WEIGHTS, run_sections
from benchmarks.accelerator_sections.setting import SIZES, Row
from benchmarks.accelerator_sections.tables import format_tables, plot_steps
from benchmarks.record import Record, new_file

SECTIONS = [name for name in WEIGHTS if name != "trained"]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="names with commas; all but trained if left out")
    parser.add_argument("--baseline", type=Path, help="folder with the source of an earlier commit; none if left out")
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST/raw; the bundled digits if left out")
    parser.add_argument("--budget", type=float, default=360, help="seconds for all sections")
    parser.add_argument(
        "--size", choices=SIZES, help="amount of work; full on an accelerator, toy on a CPU if left out"
    )
    parser.add_argument("--device", default=choose_device(), help="device type; the accelerator if there is one")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, images and attacks")
    parser.add_argument("--out", type=new_file, help="JSON file to write; table and figure are written next to it")
    given = parser.parse_args(argv)
    given.sections = given.sections.split(",")
    if unknown := [name for name in given.sections if name not in WEIGHTS]:
        parser.error(f"--sections must be among {', '.join(WEIGHTS)}, got {unknown[0]!r}")
    for option, folder, content in (
        ("--baseline", given.baseline, "cli.py"),
        ("--data-dir", given.data_dir, "MNIST/raw"),
    ):
        if folder and not (folder / content).exists():
            parser.error(f"{option} must be a folder that holds {content}, got {folder}")
    for file in [given.out.with_suffix(suffix) for suffix in (".md", ".png")] if given.out else []:
        if file.exists():
            parser.error(f"--out writes {file} too, which exists; give another file, or delete this one first")
    given.size = given.size or ("toy" if given.device == "cpu" else "full")
    return given


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write JSON, tables and figure; exit with 1 if nothing could be measured."""
    given = parse(argv)
    settings = {
        "device": given.device,
        "size": given.size,
        "seed": given.seed,
        "data_dir": given.data_dir and str(given.data_dir.resolve()),
        "baseline": given.baseline and str(given.baseline.resolve()),
    }
    record = Record(given.out, given.seed)
    rows: list[Row] = []
    ahead = given.device != "cpu"
    with tempfile.TemporaryDirectory() as folder:
        for found in run_sections(given.sections, settings, given.budget, Path(folder), ahead):
            rows += found
            print(format_tables(found), flush=True)
            record.write({"size": given.size, "on": describe_device(given.device), "rows": rows})
    checks = check_record(rows, given.size)
    print(format_tables(checks))
    if given.out:
        record.write({"size": given.size, "on": describe_device(given.device), "checks": checks, "rows": rows})
        given.out.with_suffix(".md").write_text(format_tables([*checks, *rows]))
        plot_steps(rows).savefig(given.out.with_suffix(".png"), dpi=120)
    if all(row["table"] in ("left out", "sections") for row in rows):
        sys.exit("nothing was measured; the tables say why")


if __name__ == "__main__":
    main()
