"""Copy the weights of a finished run to pretrained/cifar10, with the record of their evaluation.

    python -m benchmarks.cifar10_runs.ship FOLDER fast_16-seed-0 fast_16

copies FOLDER/weights/fast_16-seed-0.safetensors, which `benchmarks.cifar10` evaluated, to
pretrained/cifar10/fast_16/weights.safetensors; record.json is its record, with its network, and log.txt its output.
Then `torch.hub.load(REPOSITORY, "cifar_resnet", weights="fast_16", source="local")` returns the network.
"""

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from benchmarks.cifar10_runs.setting import ROOT
from benchmarks.record import hash_file, write_json

PRETRAINED = ROOT / "pretrained" / "cifar10"


def main(argv: Sequence[str] | None = None) -> None:
    """Copy weights, record and output to a new folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of results of benchmarks.cifar10")
    parser.add_argument("run", help="run and seed, such as fast_16-seed-0")
    parser.add_argument("name", help="name of the weights, for hubconf.py")
    given = parser.parse_args(argv)
    record_file, weights = given.folder / f"{given.run}.json", given.folder / "weights" / f"{given.run}.safetensors"
    if missing := [file for file in (record_file, weights) if not file.is_file()]:
        parser.error(f"{given.run} is no finished run: {missing[0]} is missing")
    if not re.fullmatch(r"\w+", given.name):
        parser.error(f"name must be letters, digits and underscores, got {given.name!r}")
    target = PRETRAINED / given.name
    if target.exists():
        parser.error(f"{target} exists; give another name, or delete it first")
    record = json.loads(record_file.read_text())
    if record["sha256"] != hash_file(weights):
        parser.error(f"{weights} is not the file that {record_file} is about: their SHA-256 differ")
    if "network" not in record:  # the config's; later records have their own
        config = yaml.safe_load((ROOT / record["config"]).read_text())
        given_network = config["model"]["init_args"]["network"]
        record["network"] = given_network if isinstance(given_network, dict) else {"class_path": given_network}
    target.mkdir(parents=True)
    shutil.copyfile(weights, target / "weights.safetensors")
    shutil.copyfile(weights.parent.parent / f"{given.run}.txt", target / "log.txt")
    write_json(target / "record.json", record | {"weights": "weights.safetensors"})
    print(f"{target}: {weights.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
