"""Program of one of two processes: layers and losses of a batch of which each process has every second image."""

import copy
import sys
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rampart.attacks import PGD, AtImage, Attack
from rampart.attacks.random import make_shared_generator
from rampart.networks import CNN5, SyncBatchNorm, restore_layers, sync_layers
from rampart.objectives import AWP, CROWNIBP, IBP, MTLIBP, SABR, TRADES, AdversarialTraining, Objective

SEEDS = torch.Generator().manual_seed(0)
IMAGES = torch.rand(8, 1, 12, 12, generator=SEEDS, dtype=torch.float64)
LABELS = torch.arange(8) % 3
VALUES = torch.randn(7, 5, 2, 3, generator=SEEDS, dtype=torch.float64)
PART = 3
"""Number of images of the first process in the test of unequal parts."""
ATTACK = PGD(steps=2)
OBJECTIVES: dict[str, tuple[Objective, PGD]] = {
    "adversarial": (AdversarialTraining(), ATTACK),
    "paper": (AdversarialTraining(leftover_gradient=True), PGD(steps=2, batchnorm="train_and_update")),
    "trades": (TRADES(), ATTACK),
    "ibp": (IBP(target_eps=0.2, clean_weight_start=0.5, l1=1e-4), ATTACK),
    "crown-ibp": (CROWNIBP(target_eps=0.2), ATTACK),
    "sabr": (SABR(target_eps=0.2, box_ratio=0.5), ATTACK),
    "mtl-ibp": (MTLIBP(weight=0.3, target_eps=0.2), ATTACK),
    "awp": (AWP(IBP(target_eps=0.2), gamma=0.1), PGD(steps=1, start=AtImage())),
}

# torch accumulates no batches before the first update of a static graph.
REDUCERS: list[tuple[int, dict[str, Any]]] = [
    (2, {}),
    (1, {"static_graph": True}),
    (2, {"find_unused_parameters": True}),
]


class Loss(nn.Module):
    """The loss of a batch, like a LightningModule's training step."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network: nn.Module = CNN5(3, (1, 12, 12), width=2, hidden=4).double()
        self.objective, self.attack = OBJECTIVES[name]
        self.eps = 0.1

    def forward(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        return self.objective(self.network, images, labels, self.attack, self.eps, generator).loss


def train(name: str, rank: int, world_size: int) -> dict[str, Any]:
    """Return the gradients of two accumulated batches, the network's buffers, and the names of its state."""
    loss = Loss(name)
    module: Any = loss
    if world_size > 1:
        loss.network = sync_layers(loss.network)
        module = DistributedDataParallel(loss)
    for step, images in enumerate((IMAGES, 1 - IMAGES)):
        generator = make_shared_generator("cpu", rank, world_size, "train", step)
        module.require_backward_grad_sync = step == 1  # as `no_sync`, which one process has not
        module(images[rank::world_size], LABELS[rank::world_size], generator).backward()
    network = restore_layers(loss.network)
    return {
        "gradients": {name: weight.grad for name, weight in network.named_parameters()},
        "buffers": dict(network.named_buffers()),
        "kinds": [type(module).__name__ for module in network.modules()],
    }


class Discard(AdversarialTraining):
    """Attack and train on the clean images, or train without an attack."""

    def find_images(
        self, network: nn.Module, images: Tensor, labels: Tensor, attack: Attack, eps: float, generator: Any
    ) -> tuple[Tensor, None]:
        if eps > 0:
            attack(network, images, labels, eps, generator=generator)
        return images, None


def discard(eps: float, rank: int, batches: int, settings: dict[str, Any]) -> list[Tensor | None]:
    """Return the gradients of four batches whose attacks at eps are discarded, reduced after some batches each."""
    loss = Loss("adversarial")
    loss.objective, loss.eps = Discard(), eps
    loss.network = sync_layers(loss.network)
    module: Any = DistributedDataParallel(loss, **settings)
    for step in range(4):
        module.require_backward_grad_sync = step % batches == batches - 1
        module(IMAGES[rank::2], LABELS[rank::2], make_shared_generator("cpu", rank, 2, step)).backward()
    return [weight.grad for weight in module.parameters()]


def normalise(rank: int, world_size: int) -> dict[str, Any]:
    """Return output, gradients and statistics of a BatchNorm whose processes have unequal numbers of images."""
    layer: Any = nn.BatchNorm2d(5, momentum=None).double()
    nn.init.uniform_(layer.weight, 1, 2, generator=torch.Generator().manual_seed(1))
    values = VALUES if world_size == 1 else VALUES.split([PART, len(VALUES) - PART])[rank]
    values = values.clone().requires_grad_()
    layer = sync_layers(layer) if world_size > 1 else layer
    assert isinstance(layer, SyncBatchNorm) == (world_size > 1)
    for _ in range(2):
        output = layer(values)
    output.sin().sum().backward()
    layer.eval()
    return {
        "output": output.detach(),
        "gradient": values.grad,
        "weight": layer.weight.grad,
        "buffers": dict(layer.named_buffers()),
        "eval": layer(values).detach(),
        "bfloat16": copy.deepcopy(layer).float().train()(values.bfloat16()).dtype,
    }


def main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/init", timedelta(seconds=240), world_size=2, rank=rank
    )
    results: dict[str, Any] = {name: train(name, rank, 2) for name in OBJECTIVES}
    results["discarded"] = [[discard(eps, rank, *reducer) for eps in (0.0, 0.1)] for reducer in REDUCERS]
    torch.save(results | {"layer": normalise(rank, 2)}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
