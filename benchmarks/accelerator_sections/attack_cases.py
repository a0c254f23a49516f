"""Networks and images of the attack-step tables, and the contestants."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accelerator_sections.setting import Precision, Rows, Setting
from benchmarks.as_published import PlainMNISTCNN, PlainResNet18
from benchmarks.attack_step import EPS, PEERS, STEP_SIZE, run_papers_loop
from rampart.attacks import PGD, AtImage
from rampart.kernels import Execution, allow_tf32
from rampart.networks import MNISTCNN, GatedMNISTCNN, ResNet18

Attack = Callable[[int], Tensor | None]
FALLBACKS = ("CUDA graph", "compile")  # parts of the warnings about them


@dataclass(frozen=True)
class Case:
    """Network and images of one attack-step table.

    Attributes:
        kind: Name of the network.
        ours: Rampart's network, in eval mode.
        plain: The network as published, with the same weights; in eval mode.
        images: ``(N, C, H, W)``, float32, in [0, 1], on the device.
        labels: ``(N,)``, int64, on the device.
    """

    kind: str
    ours: nn.Module
    plain: nn.Module
    images: Tensor
    labels: Tensor

    @property
    def eps(self) -> float:
        """Radius, pixel scale."""
        return EPS[self.base]

    @property
    def step_size(self) -> float:
        """Step length, pixel scale."""
        return STEP_SIZE[self.base]

    @property
    def base(self) -> str:
        """Name of the network whose radius and step size are used."""
        return self.kind.removeprefix("gated ")


def build_case(kind: str, batch_size: int, setting: Setting) -> Case:
    """Build a network with random weights, and random images."""
    torch.manual_seed(setting.seed)
    builders: dict[str, Callable[[], nn.Module]] = {
        "MNIST CNN": MNISTCNN,
        "gated MNIST CNN": GatedMNISTCNN,
        "ResNet-18": ResNet18,
    }
    ours, plain = builders[kind](), PlainResNet18() if kind == "ResNet-18" else PlainMNISTCNN()
    plain.load_state_dict(ours.state_dict())
    shape = (3, 32, 32) if kind == "ResNet-18" else (1, 28, 28)
    images, labels = torch.rand(batch_size, *shape), torch.randint(10, (batch_size,))
    device = setting.device
    return Case(kind, ours.eval().to(device), plain.eval().to(device), images.to(device), labels.to(device))


@contextmanager
def use_precision(precision: Precision, device: str) -> Iterator[None]:
    """Compute in a precision, by torch's own switches."""
    with ExitStack() as stack:
        if device != "cpu":
            stack.enter_context(allow_tf32(precision == "tf32"))
        if precision == "bfloat16":
            stack.enter_context(torch.autocast(device, torch.bfloat16))
        yield


@contextmanager
def execute(execution: Execution, device: str) -> Iterator[None]:
    """Execute an attack of training with these options."""
    with execution.training(device), execution.attack(device):
        yield


def run_rampart(case: Case, execution: Execution, steps: int) -> Tensor:
    """Run Rampart's PGD from the images."""
    attack = PGD(steps=steps, step_size=case.step_size, start=AtImage())
    with execute(execution, case.images.device.type):
        return attack(case.ours, case.images, case.labels, case.eps)


def run_other(
    case: Case, loop: Callable[..., Any], network: nn.Module, precision: Precision, steps: int
) -> Tensor | None:
    """Run the paper's loop, or a library's attack, from the images."""
    with use_precision(precision, case.images.device.type):
        result = loop(network, case.images, case.labels, case.eps, case.step_size, steps)
    return result if isinstance(result, Tensor) else None


def list_executions(setting: Setting, capture: bool, compiled: bool) -> dict[str, Execution]:
    """Return the options that are compared, by name: one per precision, then compiled in the last one."""
    form = "eager"
    if capture:
        form = "captured (eager on the CPU)" if setting.on_cpu else "captured"
    found = {
        f"Rampart, {form}, {precision}": Execution(capture=may_capture(capture, setting), attack_precision=precision)
        for precision in setting.size.precisions
    }
    if compiled:
        last = setting.size.precisions[-1]
        found[f"Rampart, {form} and compiled, {last}"] = Execution(True, compile=True, attack_precision=last)
    return found


def may_capture(capture: bool, setting: Setting) -> bool | None:
    """Return the option for capture: the default in place of True on a CPU, which would warn that it has no graphs."""
    return None if capture and setting.on_cpu else capture


@contextmanager
def note_fallbacks(what: str, rows: Rows) -> Iterator[None]:
    """Add a line for each warning that steps are called and not captured, or that a network is not compiled."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message in dict.fromkeys(str(note.message) for note in caught):
        if any(word in message for word in FALLBACKS):
            rows.leave_out(f"capture or compilation of {what}", message)


def choose_fast(setting: Setting) -> Precision:
    """Return the fastest precision that libraries have without changes to a user's code."""
    return "tf32" if "tf32" in setting.size.precisions else "float32"


def list_loops(case: Case, setting: Setting) -> dict[str, Attack]:
    """Return the paper's loop by name."""
    return {
        f"paper's loop, {precision}": partial(run_other, case, run_papers_loop, case.plain, precision)
        for precision in dict.fromkeys(["float32", choose_fast(setting)])
    }


def list_peers(case: Case, setting: Setting, rows: Rows) -> dict[str, Attack]:
    """Return the libraries by name, without those that are not installed or fail.

    They attack the MNIST CNN as published and Rampart's form of it; ResNet-18, which takes longer, in Rampart's form.
    """
    found: dict[str, Attack] = {}
    if not setting.size.peers or case.kind.startswith("gated"):
        return found
    networks = {" on Rampart's network": case.ours} | ({"": case.plain} if case.kind == "MNIST CNN" else {})
    for name, peer in PEERS.items():
        for where, network in networks.items():
            run = partial(run_other, case, peer, network, choose_fast(setting))
            try:
                run(1)
            except Exception as error:  # a library may fail on a device in any way
                rows.leave_out(f"{name}, {case.kind}", error)
                break
            found[f"{name}{where}, {choose_fast(setting)}"] = run
    return found
