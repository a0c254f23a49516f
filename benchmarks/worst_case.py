"""Judge MNIST weights by the worst case per image: PGD-200, APGD-CE, targeted APGD, Square, PGD from mid-gray.

APGD and Square meet the images that the attacks before them left standing. They are pyautoattack's, with AutoAttack's
settings (Croce and Hein 2020) but for five restarts of APGD-CE in place of one: 100 iterations, nine target classes,
5,000 queries. The last attack, 40 steps and three starts at mid-gray, meets what is still standing then.

    python -m benchmarks.worst_case FILE --data-dir DIR --split val --out OUT.json  # written anew after each attack

`--split val` takes held-out training images, those that `val_size: 1000` keeps from training: recipes are chosen on
them, the test images (`--split test`) are for the recipe that was chosen.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import torch
from pyautoattack import AutoAttack
from torch import Tensor

from datamodules import MNISTDataModule
from rampart.attacks import PGD, Level
from rampart.files import provenance
from rampart.files.weights import load_weights
from rampart.networks import MNISTCNN


def images_of(data_dir: str, split: str, count: int) -> tuple[Tensor, Tensor]:
    """Return the first images of a split, float in [0, 1], and their labels."""
    data = MNISTDataModule(data_dir, val_size=1000)
    data.prepare_data()
    data.setup("fit" if split == "val" else "test")
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    assert not isinstance(loader, list)
    return loader.images[:count].float() / 255, loader.labels[:count]


def main() -> None:
    """Attack, print what stands after each attack, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a Lightning checkpoint, .pth or .safetensors of the MNIST network")
    parser.add_argument("--data-dir", required=True, help="holds MNIST/raw")
    parser.add_argument("--split", choices=["val", "test"], default="val")
    parser.add_argument("--num-images", type=int, default=1000)
    parser.add_argument("--eps", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write JSON here")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    network = MNISTCNN().eval()
    load_weights(network, arguments.weights)
    images, labels = images_of(arguments.data_dir, arguments.split, arguments.num_images)
    batches = torch.split(torch.arange(len(labels)), 250)
    with torch.no_grad():
        standing = torch.cat([network(images[batch]).argmax(1) for batch in batches]) == labels
    counts, seconds = {"clean": int(standing.sum())}, dict[str, float]()

    report = {
        "weights": Path(arguments.weights).name,
        "sha256": hashlib.sha256(Path(arguments.weights).read_bytes()).hexdigest(),
        "split": arguments.split,
        "images": len(labels),
        "eps": arguments.eps,
        "seed": arguments.seed,
        "standing_after": counts,
        "seconds": seconds,
        **provenance(),
    }

    def meet(name: str, attacked: Tensor, start: float) -> None:
        inside = (attacked - images).abs().max() <= arguments.eps + 1e-6 and attacked.min() >= 0 and attacked.max() <= 1
        assert inside, name
        with torch.no_grad():
            answers = torch.cat([network(attacked[batch]).argmax(1) for batch in batches])
        standing.logical_and_(answers == labels)
        counts[name], seconds[name] = int(standing.sum()), round(time.monotonic() - start, 1)
        print(f"{name}: {counts[name]} of {len(labels)} stand ({seconds[name]} s)", flush=True)
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(report, indent=2) + "\n")

    print(f"clean: {counts['clean']} of {len(labels)} right", flush=True)
    start = time.monotonic()
    pgd = PGD(steps=200, step_size=0.005)
    meet("PGD-200", torch.cat([pgd(network, images[b], labels[b], arguments.eps) for b in batches]), start)
    for name in ("apgd-ce", "apgd-t", "square"):
        start = time.monotonic()
        left = standing.nonzero().squeeze(1)
        if len(left) == 0:
            break
        attack = AutoAttack(network, attacks=[name], eps=arguments.eps, version="custom", seed=arguments.seed)
        attacked = images.clone()
        attacked[left] = attack.run_standard_evaluation(images[left], labels[left], batch_size=250)[0]
        meet(name, attacked, start)
    start = time.monotonic()
    left, attacked = standing.nonzero().squeeze(1), images.clone()
    gray = PGD(
        steps=40, relative_step_size=0.1, step_schedule="linear", start=Level(0.43, 0.57), restarts=3, iterate="best"
    )
    for batch in torch.split(left, 250):
        attacked[batch] = gray(network, images[batch], labels[batch], arguments.eps)
    meet("PGD-40x3 from mid-gray", attacked, start)


if __name__ == "__main__":
    main()
