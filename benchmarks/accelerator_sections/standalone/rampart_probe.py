"""Measure Rampart from inside a checkout of any commit: attack steps, and updates of `cli.py fit`.

This file imports nothing of its own repository: the process that starts it puts this folder on the path of a checkout.
Requests and replies are JSON objects, one per line, over two pipes. `python -m rampart_probe` serves requests for
attack steps; the callback :class:`Probe` serves requests for updates from inside `fit`.
"""

import importlib
import json
import os
import time
import warnings
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from datamodules.in_memory import ImageSet, InMemoryDataModule

PIPES = "BENCHMARK_PIPES"


class Channel:
    """The started process's end of two pipes, whose numbers are in the environment."""

    def __init__(self) -> None:
        reading, writing = map(int, os.environ[PIPES].split(","))
        self._reading, self._writing = os.fdopen(reading), os.fdopen(writing, "w")

    def receive(self) -> dict[str, Any]:
        """Wait for the next request; end the process if there will be none."""
        line = self._reading.readline()
        if not line:
            raise SystemExit(0)
        request: dict[str, Any] = json.loads(line)
        return request

    def send(self, **reply: Any) -> None:
        """Send a reply."""
        self._writing.write(json.dumps(reply) + "\n")
        self._writing.flush()


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def peak_memory(device: torch.device) -> float | None:
    """Return the largest amount of memory that torch's allocator held, in GiB; None if the device does not count it."""
    # Not what was allocated: a recorded step keeps memory that counts as free.
    count = None if device.type == "cpu" else getattr(torch.get_device_module(device), "max_memory_reserved", None)
    return None if count is None else count() / 2**30


class Probe(Callback):
    """Time updates of `fit` on request.

    A request has ``updates``, the number of updates until the next reply, and optionally ``watch_waits``, to list host
    waits instead of timing, and ``save``, a file for the network's weights. Training waits between two requests.
    """

    def __init__(self) -> None:
        self._channel = Channel()
        self._request: dict[str, Any] = {}
        self._left = 0
        self._stack = ExitStack()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Reply to the request that is complete, and wait for the next."""
        if self._left == 0:
            self._reply(pl_module)
            self._begin()
        self._left -= 1

    def _begin(self) -> None:
        self._request = self._channel.receive()
        self._left = self._request["updates"]
        if self._request.get("watch_waits"):
            self._waits = self._stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        self._start = time.perf_counter()

    def _reply(self, pl_module: LightningModule) -> None:
        reply: dict[str, Any] = {}
        if self._request.get("watch_waits"):
            torch.cuda.set_sync_debug_mode("default")
            places = [f"{note.filename}:{note.lineno}" for note in self._waits if "synchroniz" in str(note.message)]
            self._stack.close()
            reply["waits"] = places
        synchronize(pl_module.device)
        if self._request:
            reply["seconds"] = time.perf_counter() - self._start
        if file := self._request.get("save"):
            weights = {name: tensor.cpu() for name, tensor in pl_module.network.state_dict().items()}  # type: ignore[union-attr]
            torch.save(weights, file)
        self._channel.send(**reply, memory=peak_memory(pl_module.device))


class RandomImages(InMemoryDataModule):
    """Random images of CIFAR-10's shape, with random labels.

    Args:
        batch_size: Images per batch.
    """

    def __init__(self, batch_size: int = 128) -> None:
        super().__init__(batch_size, 250, 0, 0, True, 0)

    def read_train(self) -> ImageSet:
        """Return 5,120 images."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (5120, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return ImageSet(images, torch.randint(10, (5120,), generator=generator))

    def read_test(self) -> ImageSet:
        """Return the same images."""
        return self.read_train()


def build_network(kind: str) -> torch.nn.Module:
    """Build a network of the checkout: ``MNIST CNN``, ``gated MNIST CNN`` or ``ResNet-18``."""
    networks = importlib.import_module("rampart.networks" if find_spec("rampart") else "networks")
    if kind == "ResNet-18":
        network = networks.ResNet18()
    elif kind == "MNIST CNN":
        network = networks.MNISTCNN()
    elif hasattr(networks, "GatedMNISTCNN"):
        network = networks.GatedMNISTCNN()
    else:
        network = networks.MNISTCNN(init="gates")
    assert isinstance(network, torch.nn.Module)
    return network


def build_attack(steps: int, step_size: float) -> Any:
    """Build the checkout's PGD, which starts at the images."""
    if find_spec("rampart"):
        attacks: Any = importlib.import_module("rampart.attacks")
        return attacks.PGD(steps=steps, step_size=step_size, start=attacks.AtImage())
    attacks = importlib.import_module("attacks")
    return attacks.PGD(steps=steps, step_size=step_size, random_start=False)


def run_attack(
    case: dict[str, Any], steps: int, step_size: float, eps: float, precision: str, save: str | None = None
) -> dict[str, Any]:
    """Attack once, and return the seconds.

    Args:
        case: The network, images and labels.
        steps: Number of gradient steps.
        step_size: Step length, pixel scale.
        eps: Radius, pixel scale.
        precision: ``float32``, ``tf32`` or ``bfloat16``, by torch's own switches.
        save: File for the adversarial images.
    """
    images, tf32 = case["images"], precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        synchronize(images.device)
        start = time.perf_counter()
        adv = build_attack(steps, step_size)(case["network"], images, case["labels"], eps)
        synchronize(images.device)
    seconds = time.perf_counter() - start
    if save:
        torch.save(adv.cpu(), save)
    return {"seconds": seconds}


def load_case(file: str) -> dict[str, Any]:
    """Return the network, images and labels of a file that holds them with ``kind`` and ``device``."""
    case: dict[str, Any] = torch.load(file, weights_only=True)
    network, device = build_network(case["kind"]), case["device"]
    network.load_state_dict(case["state_dict"])
    return {name: case[name].to(device) for name in ("images", "labels")} | {"network": network.eval().to(device)}


def serve_requests() -> None:
    """Serve requests for attack steps until the pipe is closed.

    A request has ``case``, a file to load, or the arguments of :func:`run_attack` on the case that was loaded last.
    """
    channel, case = Channel(), dict[str, Any]()
    channel.send()
    while True:
        request = channel.receive()
        if "case" in request:
            case = load_case(request["case"])
            channel.send()
        else:
            channel.send(**run_attack(case, **request))


if __name__ == "__main__":
    serve_requests()
