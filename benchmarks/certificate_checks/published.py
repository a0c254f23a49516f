"""Bounds and attacks on networks whose certified error others have published."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.certificate_checks.onnx_network import OnnxNetwork
from benchmarks.mnist import load_first_images, load_trained
from benchmarks.published_networks import wong_kolter_cnn
from benchmarks.record import describe_file
from datamodules import CIFAR10DataModule
from rampart.attacks import APGD, PGD, parse_eps
from rampart.bounds.certificates import METHODS, certified_mask
from rampart.networks import Normalize

ATTACKS: tuple[PGD | APGD, ...] = (
    PGD(steps=40, iterate="best", stop_when_fooled=True, loss="margin"),
    APGD(steps=100),
    APGD(steps=50, targets=3),
)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)  # of the ResNets' training images
Images = Literal["mnist", "mnist_sdp", "cifar10"]


@dataclass(frozen=True)
class Published:
    """Numbers that others published on a network at one eps, in %, over all of its images, and smaller eps to try.

    Attributes:
        file: Weights, from the data folder.
        images: Test images: MNIST's, the 200 of them beside the instances, or CIFAR-10's.
        eps: Radius in l-inf, pixel scale.
        clean: Clean accuracy.
        pgd: Accuracy under PGD.
        certified: Certified accuracy.
        method: Method that certified it.
        exact: Exact adversarial accuracy, or None.
        decimals: Decimals of these numbers.
        smaller: Smaller eps, at which IBP and CROWN-IBP certify images of such a network, so that certified images are
            attacked too.
    """

    file: str
    images: Images
    eps: str
    clean: float | None
    pgd: float
    certified: float
    method: str
    exact: float | None = None
    decimals: int = 2
    smaller: tuple[str, ...] = ()


CASES = (
    Published(
        "weights/wong_kolter_mnist_0.1.pth", "mnist", "0.1", 98.2, 95.9, 94.2, "dual LP",
        decimals=1, smaller=("0.03", "0.01"),
    ),
    Published(
        "weights/wk17a_mnist_0.1.pth", "mnist", "0.1", 98.11, 95.89, 94.18, "LP", exact=95.62, smaller=("0.03", "0.01")
    ),
    Published(
        "weights/mnist_cnn_a_adv_0.3.pth", "mnist_sdp", "0.3", None, 76.5, 76.0, "best verifier",
        decimals=1, smaller=("0.1", "0.03"),
    ),
    Published("certified/resnet_2b.onnx", "cifar10", "2/255", 69.25, 54.82, 26.88, "full CROWN", smaller=("1/8160",)),
    Published("certified/resnet_2b.onnx", "cifar10", "1/255", 69.25, 62.24, 57.16, "full CROWN"),
    Published("certified/resnet_4b.onnx", "cifar10", "2/255", 77.20, 61.41, 0.24, "full CROWN"),
    Published("certified/resnet_4b.onnx", "cifar10", "1/255", 77.20, 69.75, 23.28, "full CROWN"),
)  # fmt: skip
SIZES = {"mnist": 10_000, "mnist_sdp": 200, "cifar10": 10_000}
# CIFAR-10's test images may come from a copy in which some differ.
TOLERANCE = {"mnist": 0.0, "mnist_sdp": 0.0, "cifar10": 0.3}


@dataclass(frozen=True)
class Sources:
    """Folders that the networks and images are read from.

    Attributes:
        root: Folder with ``certified/``, ``weights/`` and ``mnist/``.
        cifar10: Folder of CIFAR-10, as ``CIFAR10DataModule`` takes it.
    """

    root: Path
    cifar10: Path

    def read_network(self, case: Published) -> nn.Module:
        """Read a network for images in [0, 1], in eval mode."""
        file = self.root / case.file
        if case.images == "cifar10":
            return nn.Sequential(Normalize(MEAN, STD), OnnxNetwork(file)).eval()
        return load_trained(wong_kolter_cnn(), file).requires_grad_(False)

    def read_images(self, name: Images, count: int = 10_000) -> tuple[Tensor, Tensor]:
        """Read the first test images ``(N, C, H, W)``, float32, in [0, 1], and their labels ``(N,)``, int64."""
        if name == "mnist":
            return load_first_images(str(self.root / "mnist"), "test", count)
        if name == "mnist_sdp":
            images, labels = (
                np.load(self.root / f"certified/mnist_sdp_200_{part}.npy") for part in ("images", "labels")
            )
            return torch.tensor(images).permute(0, 3, 1, 2)[:count].contiguous(), torch.tensor(labels)[:count]
        test = CIFAR10DataModule(str(self.cifar10)).read_test()
        return test.images[:count].float() / 255, test.labels[:count]


def check_case(case: Published, eps: str, sources: Sources, count: int, attacked: int, seed: int) -> dict[str, Any]:
    """Bound a network on its first images, and attack the first of these.

    Args:
        case: The network and published numbers.
        eps: The case's own eps, or a smaller one, for which nothing is published.
        sources: Folders to read from.
        count: Number of images to bound.
        attacked: Number of images to attack; all to bound if there are fewer.
        seed: Seed of the attack's random starts.

    Returns:
        A row: the published numbers; the number of correctly classified images of all; counts of certified images of
        the ``bounded``, and of robust ones of the ``attacked``.
    """
    network, (images, labels) = sources.read_network(case), sources.read_images(case.images)
    with torch.no_grad():
        correct = torch.cat([network(part).argmax(1) for part in torch.split(images, 1000)]) == labels
    result: dict[str, Any] = {"network": Path(case.file).name, "images": case.images, "eps": eps}
    result |= {"published": _list_published(case) if eps == case.eps else None, "total": len(labels)}
    result |= describe_file(sources.root / case.file) | {"correct": int(correct.sum())}
    images, labels, correct, radius = images[:count], labels[:count], correct[:count], parse_eps(eps)
    certified = {name: certified_mask(network, images, labels, radius, methods=[name]) for name in METHODS}
    either = torch.stack(list(certified.values())).any(0)
    robust = attack_correct(network, images[:attacked], labels[:attacked], correct[:attacked], radius, seed)
    return result | {
        "bounded": len(labels),
        "certified": {name: int(mask.sum()) for name, mask in certified.items()},
        "attacked": len(robust),
        "robust": int(robust.sum()),
        "certified of the attacked": int(either[: len(robust)].sum()),
        "certified and misclassified": int((either & ~correct).sum()),
        "certified and fooled": int((either[: len(robust)] & ~robust).sum()),
    }


def _list_published(case: Published) -> dict[str, Any]:
    return {name: getattr(case, name) for name in ("clean", "pgd", "exact", "certified", "method", "decimals")}


def attack_correct(
    network: nn.Module, images: Tensor, labels: Tensor, correct: Tensor, eps: float, seed: int
) -> Tensor:
    """Attack the correctly classified images by each attack in turn; return ``(N,)``, bool, those that are robust."""
    robust = correct.clone()
    generator = torch.Generator().manual_seed(seed)
    for part in torch.split(torch.arange(len(labels)), 500):
        for attack in ATTACKS:
            active = part[robust[part]]
            if len(active):
                adv = attack(network, images[active], labels[active], eps, generator=generator)
                with torch.no_grad():
                    robust[active] = network(adv).argmax(1) == labels[active]
    return robust


def find_contradictions(row: dict[str, Any]) -> list[str]:
    """List contradictions in a row, and with the published numbers if they are about the same images."""
    found = [
        f"{row[f'certified and {kind}']} certified images are {kind}"
        for kind in ("misclassified", "fooled")
        if row[f"certified and {kind}"]
    ]
    found += _compare(row, row["published"], SIZES[row["images"]]) if row["published"] else []
    return [f"{row['network']} at eps {row['eps']}: {text}" for text in found]


def _compare(row: dict[str, Any], published: dict[str, Any], size: int) -> list[str]:
    """List contradictions with published numbers, which are about all images."""
    found = []
    slack = 0.5 * 10 ** -published["decimals"] + TOLERANCE[row["images"]] + 1e-9
    correct, robust = 100 * row["correct"] / size, 100 * row["robust"] / size
    if row["total"] == size and published["clean"] is not None and abs(correct - published["clean"]) > slack:
        found.append(f"clean accuracy {correct:.2f}, published {published['clean']}")
    certified = 100 * max(row["certified"].values()) / size
    most, least = published["exact"] or published["pgd"], published["exact"] or published["certified"]
    if row["bounded"] == size and certified > most + slack:
        found.append(f"certified {certified:.2f}, more than the {most} that are at most robust")
    if row["attacked"] == size and robust < least - slack:
        found.append(f"robust {robust:.2f}, less than the {least} that are proved robust")
    return found
