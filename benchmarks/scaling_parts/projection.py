"""Projection of the CIFAR-10 configs to many GPUs, from times that were measured on one. Not a measurement.

A step of one GPU with ``b`` images takes

    c(b) = k a (0.703 ms + b 0.00982 ms) + 12 ms l u

a: attack steps per update; u: passes of the update (two with weights perturbed, AWP); k and l: the network's operations
and layers, relative to those of a ResNet-18. The first bracket is the line through the attack step's times on one H100
(bfloat16, CUDA graph): 1.96 ms for 128 images, 5.73 ms for 512; below 128 images it is an extrapolation. The 12 ms of
an update, which is not recorded as a graph and waits for launches, are an assumption of docs/cifar10.md.

The gradients' B bytes are summed over n nodes of g GPUs by rings, within the nodes with a bandwidth of W per GPU, and
between the nodes with V per node:

    r = 2 (g - 1)/g B/W + 2 (n - 1)/n B/V

Every BatchNorm layer exchanges its statistics in the forward and in the backward pass of each pass of the update, which
is short and waits, for a time L each; AWP waits for the sum of the gradients by which it perturbs the weights:

    s = 2 L layers u + (u - 1) r

Without overlap a step takes c + s + r; with full overlap c + s + max(0, r - h), where h is the time of the update's
last backward pass, taken as half of 12 ms l.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import yaml
from torch import nn

from benchmarks.accelerator_sections.setting import ROOT
from benchmarks.cifar10_runs.length import count_batches, count_evaluations
from rampart import networks
from rampart.attacks import parse_eps
from rampart.schedules import Phase, eps_schedule

CONFIGS = ("madry_8", "extended_16", "extended_32", "fast_16", "fast_32")
GPUS = (1, 8, 64)
Rule = Literal["divided", "kept"]
Config = Mapping[str, Any]

# Milliseconds on one H100 80GB, torch 2.11.0: docs/gpu.md, "What was measured", ResNet-18.
SMALL, LARGE = (128, 1.96), (512, 5.73)
UPDATE = 12.0  # assumed: docs/cifar10.md, "Cost"
RESNET50_OPERATIONS = 2.3  # relative to ResNet-18: docs/cifar10.md, "Cost"


@dataclass(frozen=True)
class Links:
    """Connections between GPUs. The defaults are assumed, of the order of NVLink 4 and 400 Gb/s per node.

    Attributes:
        node: GPUs per node.
        nvlink: Bandwidth of a GPU within its node, GB/s in one direction, as nccl-tests' bus bandwidth.
        network: Bandwidth of a node, GB/s in one direction.
        latency: Time of one short exchange among all GPUs, in microseconds, by number of nodes: one, several.
    """

    node: int = 8
    nvlink: float = 300.0
    network: float = 50.0
    latency: tuple[float, float] = (20.0, 40.0)

    def all_reduce(self, size: float, gpus: int) -> float:
        """Return the milliseconds in which ``size`` bytes are summed over GPUs, by rings within and between nodes."""
        inside = min(gpus, self.node)
        nodes = gpus / inside
        return 2e-6 * size * ((inside - 1) / inside / self.nvlink + (nodes - 1) / nodes / self.network)

    def short_exchange(self, gpus: int) -> float:
        """Return the milliseconds of one exchange of a few numbers."""
        return 0.0 if gpus == 1 else 1e-3 * self.latency[gpus > self.node]


@dataclass(frozen=True)
class Workload:
    """Cost of a training.

    Attributes:
        name: Name of the config.
        network: Class of the network.
        images: Images per update on one GPU.
        updates: Updates of the run on one GPU.
        attack_steps: Attack steps per update, the mean over the run.
        passes: Forward and backward passes of the training loss per update, the mean over the run.
        gradient_bytes: Bytes of the weights' gradients in float32.
        batchnorm_layers: Layers that exchange statistics.
        operations: Operations per image, relative to a ResNet-18.
        layers: Layers, relative to a ResNet-18.
    """

    name: str
    network: str
    images: int
    updates: int
    attack_steps: float
    passes: float
    gradient_bytes: int
    batchnorm_layers: int
    operations: float = 1.0
    layers: float = 1.0

    def compute(self, images: float) -> float:
        """Return the milliseconds of a step without communication, for a number of images per GPU."""
        per_image = (LARGE[1] - SMALL[1]) / (LARGE[0] - SMALL[0])
        attack_step = SMALL[1] + per_image * (images - SMALL[0])
        return self.operations * self.attack_steps * attack_step + self.layers * self.passes * UPDATE


def project(work: Workload, gpus: int, rule: Rule, links: Links) -> dict[str, Any]:
    """Project a training to a number of GPUs; see the module's docstring for the formulas.

    Args:
        work: The training.
        gpus: Number of GPUs; a multiple of the GPUs per node, or less than one node.
        rule: ``"divided"`` keeps the images per update, ``"kept"`` those per update and GPU.
        links: Connections between the GPUs.

    Returns:
        Milliseconds of a step's parts; images per second, speed over one GPU and minutes of the run (same epochs,
        without validation and test), each for no overlap and for full overlap.
    """
    images = work.images / gpus if rule == "divided" else work.images
    compute = work.compute(images)
    statistics = 2 * links.short_exchange(gpus) * work.batchnorm_layers * work.passes
    gradients = links.all_reduce(work.gradient_bytes, gpus)
    fixed = compute + statistics + (work.passes - 1) * gradients
    steps = fixed + gradients, fixed + max(0.0, gradients - work.layers * UPDATE / 2)
    speeds = [1e3 * images * gpus / step for step in steps]
    alone = 1e3 * work.images / work.compute(work.images)
    return {
        "config": work.name,
        "network": work.network,
        "gpus": gpus,
        "batch_rule": rule,
        "images_per_gpu": images,
        "compute_ms": compute,
        "statistics_ms": statistics,
        "all_reduce_ms": work.passes * gradients,
        "communication_share": 1 - compute / steps[0],
        "images_per_second": speeds,
        "speed_over_one_gpu": [speed / alone for speed in speeds],
        "minutes": [work.images * work.updates / speed / 60 for speed in speeds],
    }


def project_all(links: Links) -> list[dict[str, Any]]:
    """Project all configs to 1, 8 and 64 GPUs with both rules for the batch."""
    return [
        project(work, gpus, rule, links)
        for work in map(read_workload, CONFIGS)
        for gpus in GPUS
        for rule in (("divided", "kept") if gpus > 1 else ("divided",))
    ]


def read_workload(name: str) -> Workload:
    """Return the cost of a config of `configs/cifar10`."""
    config: dict[str, Any] = yaml.safe_load((ROOT / f"configs/cifar10/{name}.yaml").read_text())
    epochs, batches = config["trainer"]["max_epochs"], count_batches(config)
    given = config["model"]["init_args"]["network"]
    class_name = (given["class_path"] if isinstance(given, dict) else given).rpartition(".")[2]
    with torch.device("meta"):
        network, resnet18 = getattr(networks, class_name)(), networks.ResNet18()
    return Workload(
        name=name,
        network=class_name,
        images=config["data"]["init_args"]["batch_size"],
        updates=epochs * batches,
        attack_steps=count_evaluations(config, epochs) / epochs - 1,
        passes=1 + perturbed_share(config),
        gradient_bytes=4 * sum(parameter.numel() for parameter in network.parameters()),
        batchnorm_layers=count(network, nn.BatchNorm2d),
        operations=1.0 if class_name == "ResNet18" else RESNET50_OPERATIONS,
        layers=count(network, nn.Conv2d) / count(resnet18, nn.Conv2d),
    )


def count(network: nn.Module, kind: type[nn.Module]) -> int:
    """Return the number of layers of a class."""
    return sum(isinstance(module, kind) for module in network.modules())


def perturbed_share(config: Config) -> float:
    """Return the share of the updates in which the objective perturbs the weights (AWP)."""
    objective = config["model"]["init_args"].get("objective") or {}
    if objective.get("class_path") != "rampart.objectives.AWP":
        return 0.0
    least = parse_eps(objective["init_args"].get("from_eps", 0.0))
    sizes = list(list_eps(config))
    return sum(eps >= least for eps in sizes) / len(sizes)


def list_eps(config: Config, per_epoch: int = 20) -> Iterator[float]:
    """Yield eps at some equidistant updates of each epoch of a run with a ramp."""
    phases = [Phase(**phase) for phase in config["ramp"]["phases"]]
    for epoch in range(config["trainer"]["max_epochs"]):
        for sample in range(per_epoch):
            yield eps_schedule(phases, epoch, sample, per_epoch, 0)[1]
