"""Program of one of two processes: gradients of AWP over two accumulated batches, in DistributedDataParallel."""

import sys
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rampart.attacks import PGD, AtImage
from rampart.networks import ResNet18
from rampart.objectives import AWP

ATTACK = PGD(steps=1, step_size=0.02, start=AtImage())


class Loss(nn.Module):
    """The loss of a batch, like a LightningModule's training step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = ResNet18(width=2).double()

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return AWP(gamma=0.1)(self.network, images, labels, ATTACK, 0.02).loss


def batches(rank: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(rank)
    return [(torch.rand(4, 3, 8, 8, generator=generator, dtype=torch.float64), torch.arange(4)) for _ in range(2)]


def main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/init", timedelta(seconds=240), world_size=2, rank=rank
    )
    module: Any = DistributedDataParallel(Loss())
    first, last = batches(rank)
    with module.no_sync():
        module(*first).backward()
    module(*last).backward()
    torch.save([parameter.grad for parameter in module.parameters()], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
