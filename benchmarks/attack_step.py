"""Time one attack step: the paper's loop, published libraries, Rampart, and the floor, in turn.

The floor is the least that any gradient attack needs: one forward pass and the gradient with respect to the images. All
start at the images and take the same steps on the same threads. Libraries attack the network as users write it
(`as_published.py`), and then Rampart's. Libraries that are not installed are left out:

    pip install -e '.[bench]'
    python -m benchmarks.attack_step --out OUT.json # also writes OUT.md and OUT.png
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.as_published import PlainMNISTCNN, PlainResNet18, papers_loop
from benchmarks.record import Record, new_file
from benchmarks.timing import PEAK_SIZE, make_matrix_product, time_in_turn
from rampart.attacks import PGD, AtImage
from rampart.networks import MNISTCNN, ResNet18

STEPS = {"MNIST CNN": 5, "ResNet-18": 2}
EPS = {"MNIST CNN": 0.4, "ResNet-18": 8 / 255}
STEP_SIZE = {"MNIST CNN": 0.01, "ResNet-18": 2 / 255}


def run_floor(network: nn.Module, images: Tensor, labels: Tensor, steps: int) -> None:
    """Compute forward passes and gradients of the images, and nothing else."""
    frozen = [p.requires_grad_(False) for p in network.parameters()]
    for _ in range(steps):
        inputs = images.detach().requires_grad_()
        torch.autograd.grad(F.cross_entropy(network(inputs), labels), inputs)
    for parameter in frozen:
        parameter.requires_grad_(True)


def run_rampart(network: nn.Module, images: Tensor, labels: Tensor, eps: float, step: float, steps: int) -> Tensor:
    """Run Rampart's PGD."""
    return PGD(steps=steps, step_size=step, start=AtImage())(network, images, labels, eps)


def run_papers_loop(network: nn.Module, images: Tensor, labels: Tensor, eps: float, step: float, steps: int) -> Tensor:
    """Run the paper's loop."""
    return papers_loop(network, images, labels, eps, step, steps, start=images)


def run_advertorch_style(
    network: nn.Module, images: Tensor, labels: Tensor, eps: float, step: float, steps: int
) -> Tensor:
    """Run a loop like that of advertorch, which no longer installs: it updates delta, weights' gradients add up."""
    delta = torch.zeros_like(images, requires_grad=True)
    for _ in range(steps):
        F.cross_entropy(network(images + delta), labels).backward()  # type: ignore[no-untyped-call]
        assert delta.grad is not None
        delta.data += step * delta.grad.sign()
        delta.data = delta.data.clamp(-eps, eps)
        delta.data = (images + delta.data).clamp(0, 1) - images
        delta.grad.zero_()
    return (images + delta).detach().clamp(0, 1)


def run_torchattacks(network: nn.Module, images: Tensor, labels: Tensor, eps: float, step: float, steps: int) -> Tensor:
    """Run PGD of torchattacks."""
    from torchattacks import PGD as Theirs

    adv: Tensor = Theirs(network, eps=eps, alpha=step, steps=steps, random_start=False)(images, labels)
    return adv


def run_foolbox(network: nn.Module, images: Tensor, labels: Tensor, eps: float, step: float, steps: int) -> Tensor:
    """Run LinfPGD of foolbox."""
    from foolbox import Misclassification, PyTorchModel
    from foolbox.attacks import LinfPGD

    model = PyTorchModel(network, bounds=(0, 1), device=images.device)
    attack = LinfPGD(abs_stepsize=step, steps=steps, random_start=False)
    adv: Tensor = attack.run(model, images, Misclassification(labels), epsilon=eps)
    return adv


def run_art(network: nn.Module, images: Tensor, labels: Tensor, eps: float, step: float, steps: int) -> Tensor:
    """Run projected gradient descent of the Adversarial Robustness Toolbox."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    device = "cpu" if images.device.type == "cpu" else "gpu"
    model = PyTorchClassifier(
        network, nn.CrossEntropyLoss(), images.shape[1:], 10, clip_values=(0, 1), device_type=device
    )
    attack = ProjectedGradientDescentPyTorch(
        model, eps=eps, eps_step=step, max_iter=steps, num_random_init=0, batch_size=len(images), verbose=False
    )
    adv = attack.generate(images.cpu().numpy(), np.eye(10, dtype=np.float32)[labels.cpu().numpy()])
    return torch.from_numpy(adv).to(images.device)


def run_apgd(network: nn.Module, images: Tensor, labels: Tensor, eps: float, _step: float, steps: int) -> None:
    """Run APGD-CE of pyautoattack: another algorithm, timed per gradient."""
    from pyautoattack.autopgd_base import APGDAttack

    attack = APGDAttack(network, n_iter=steps, norm="Linf", eps=eps, loss="ce", device=images.device.type, seed=0)
    attack.init_hyperparam(images)
    attack.attack_single_run(images, labels, x_init=images)


PEERS: dict[str, Any] = {
    "advertorch-style loop": run_advertorch_style,
    "torchattacks PGD": run_torchattacks,
    "foolbox LinfPGD": run_foolbox,
    "ART PGD": run_art,
    "pyautoattack APGD-CE": run_apgd,
}


def build_contestants(kind: str, plain: nn.Module, ours: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return the contestants by name, the paper's loop first."""
    eps, step, steps = EPS[kind], STEP_SIZE[kind], STEPS[kind]
    runs: dict[str, Any] = {"paper's loop": partial(run_papers_loop, plain, images, labels, eps, step, steps)}
    for name, peer in PEERS.items():
        for on, network in (("", plain), (" on Rampart's network", ours)):
            run = partial(peer, network, images, labels, eps, step, steps)
            try:
                run()
            except ImportError as error:
                print(f"left out: {name} ({error})", file=sys.stderr)
                break
            runs[name + on] = run
    runs["Rampart PGD"] = partial(run_rampart, ours, images, labels, eps, step, steps)
    runs["floor"] = partial(run_floor, ours, images, labels, steps)
    runs["floor, network as published"] = partial(run_floor, plain, images, labels, steps)
    runs["matrix product"] = make_matrix_product()
    return runs


def count_gradients(run: Callable[[], object], networks: tuple[nn.Module, ...]) -> int:
    """Count the gradients of a batch that one run computes with the networks."""
    count = 0

    def note(_module: nn.Module, _inputs: Any, logits: Tensor) -> None:
        nonlocal count
        count += logits.requires_grad

    hooks = [network.register_forward_hook(note) for network in networks]
    run()
    for hook in hooks:
        hook.remove()
    return count


def count_flops(plain: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Count the operations of one forward pass and gradient of the images, in the network as published."""
    with FlopCounterMode(display=False) as counter:
        inputs = (images + 0).requires_grad_()  # the counter fails on a leaf
        loss = F.cross_entropy(plain(inputs * 1), labels)
        torch.autograd.grad(loss, inputs)
    return float(counter.get_total_flops())


def compare_images(ours: Tensor, theirs: Tensor | None) -> dict[str, float] | None:
    """Return the share of pixels that agree up to rounding, and the largest difference; None without other images.

    Pixels differ where a gradient is so near zero that rounding decides its sign.
    """
    if theirs is None:
        return None
    difference = (ours - theirs).abs()
    return {"equal_pixels": (difference < 1e-6).double().mean().item(), "largest_difference": difference.max().item()}


def measure(kind: str, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """Return one row per contestant."""
    torch.manual_seed(0)
    plain, ours = (PlainMNISTCNN(), MNISTCNN()) if kind == "MNIST CNN" else (PlainResNet18(), ResNet18())
    plain.load_state_dict(ours.state_dict())
    plain.eval()
    ours.eval()
    shape = (1, 28, 28) if kind == "MNIST CNN" else (3, 32, 32)
    images, labels = torch.rand(batch_size, *shape), torch.randint(10, (batch_size,))
    runs = build_contestants(kind, plain, ours, images, labels)
    reference = runs["paper's loop"]()
    for parameter in plain.parameters():
        parameter.requires_grad_(False)
    flops = count_flops(plain, images, labels)
    for parameter in plain.parameters():
        parameter.requires_grad_(True)
    times = time_in_turn(runs, rounds, warm_up=1)
    peak = 2 * PEAK_SIZE**3 / times.median("matrix product")
    rows = []
    for name, run in runs.items():
        if name == "matrix product":
            continue
        steps = count_gradients(run, (plain, ours))
        seconds = times.median(name) / steps
        result = run()
        rows.append(
            {
                "network": kind,
                "batch_size": batch_size,
                "contestant": name,
                "gradients_per_run": steps,
                "ms_per_step": 1000 * seconds,
                "speed_over_papers_loop": times.ratio("paper's loop", name) * steps / STEPS[kind],
                "gflop_per_s": flops / seconds / 1e9,
                "share_of_peak": flops / seconds / peak,
                "peak_gflop_per_s": peak / 1e9,
                "agreement": compare_images(reference, result) if "APGD" not in name else None,
            }
        )
    return rows


def format_table(rows: list[dict[str, Any]]) -> str:
    """Format rows as Markdown."""
    lines = [
        "| network | batch | contestant | ms per step | speed over paper's loop | GFLOP/s | of peak | equal pixels |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        equal = f"{row['agreement']['equal_pixels']:.2%}" if row["agreement"] else ""
        lines.append(
            f"| {row['network']} | {row['batch_size']} | {row['contestant']} | {row['ms_per_step']:.1f} "
            f"| {row['speed_over_papers_loop']:.2f} | {row['gflop_per_s']:.0f} | {row['share_of_peak']:.0%} | {equal} |"
        )
    return "\n".join(lines)


def plot_speed(rows: list[dict[str, Any]]) -> Figure:
    """Plot speed over the paper's loop by batch size, one panel per network."""
    kinds = list(dict.fromkeys(row["network"] for row in rows))
    drawing = Figure(figsize=(6 * len(kinds), 5), layout="constrained")
    for panel, kind in zip(drawing.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        names = [n for n in dict.fromkeys(row["contestant"] for row in rows) if "on Rampart's" not in n]
        for name in names:
            selected = [row for row in rows if row["network"] == kind and row["contestant"] == name]
            style: dict[str, Any] = {"linewidth": 2.5, "color": "black"} if name == "Rampart PGD" else {}
            if name.startswith("floor"):
                style = {"linestyle": ":", "color": "black" if name == "floor" else "gray"}
            sizes = [row["batch_size"] for row in selected]
            panel.plot(sizes, [r["speed_over_papers_loop"] for r in selected], marker="o", label=name, **style)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:.0f}")
        panel.set_ylim(bottom=0)
        panel.set(title=kind, xlabel="batch size", ylabel="steps per second over the paper's loop")
    drawing.legend(*drawing.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
    return drawing


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, write JSON, table and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=int, nargs="*", default=[32, 64, 128, 256, 512, 1024], help="batch sizes")
    parser.add_argument("--resnet", type=int, nargs="*", default=[32, 128], help="batch sizes")
    parser.add_argument("--rounds", type=int, default=9, help="number of timed runs of each contestant")
    parser.add_argument("--out", type=new_file, help="JSON file to write; table and figure are written next to it")
    arguments = parser.parse_args(argv)
    record = Record(arguments.out, seed=0)
    rows = []
    cases = [("MNIST CNN", size) for size in arguments.mnist] + [("ResNet-18", size) for size in arguments.resnet]
    # Each case runs in its own process: the memory allocator, and so the times, depend on what was freed before.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
        for kind, size in cases:
            measured = processes.submit(measure, kind, size, arguments.rounds).result()
            print(format_table(measured), flush=True)
            rows += measured
    if arguments.out:
        record.write({"steps": STEPS, "rounds": arguments.rounds, "rows": rows})
        arguments.out.with_suffix(".md").write_text(format_table(rows) + "\n")
        plot_speed(rows).savefig(arguments.out.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
