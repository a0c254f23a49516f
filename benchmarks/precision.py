"""Measure what TF32 and bfloat16 cost: attacks computed in lower precision, and trainings.

`attacks` runs the same attacks, from the same starting points, on trained networks in float32, in TF32 and under
bfloat16 autocast. Their images are then judged by the network in float32, whose robust accuracy is the one that counts.
A second seed in float32 shows the noise. TF32 exists on GPUs only: here it is simulated by rounding the factors of all
matrix products and convolutions to 10 bits of mantissa, in the backward pass too. A network with gates (see
`rampart/networks/gates.py`) is attacked in two forms, the paper's and the one that is trained.

`training` trains the quickstart in float32 and with `trainer.precision bf16-mixed`, the latter on the network as papers
write it, since Rampart's form of it computes the first layer in float32 on a CPU. The results are attacked in float32.

    python -m benchmarks.precision attacks fast=FILE iat=FILE --data-dir DIR --out OUT.json
    python -m benchmarks.precision training --seeds 0 1 --out OUT.json
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.as_published import PlainMNISTCNN
from benchmarks.mnist import load_first_images, load_trained
from benchmarks.record import Record, describe_file, new_file
from cli import main as run_cli
from datamodules import DigitsDataModule
from rampart.attacks import APGD, PGD, Attack, Level
from rampart.attacks.input_gradient import loss_gradient, misclassified, predict
from rampart.kernels import Execution
from rampart.networks import MNISTCNN, GatedMNISTCNN

ROOT = Path(__file__).parent.parent
EPS = 0.4
ATTACKS: dict[str, Attack] = {
    "PGD-40": PGD(steps=40),
    "PGD-20 from mid-gray": PGD(
        steps=20, relative_step_size=0.15, step_schedule="linear", start=Level(low=0.43, high=0.57)
    ),
    "APGD-CE-40": APGD(steps=40),
}
TRAININGS = {"float32": ("32-true", MNISTCNN), "bf16-mixed": ("bf16-mixed", PlainMNISTCNN)}


# Arguments of an operation that are factors of a product.
FACTORS: dict[Any, tuple[int, ...]] = {
    torch.ops.aten.mm.default: (0, 1),
    torch.ops.aten.bmm.default: (0, 1),
    torch.ops.aten.addmm.default: (1, 2),
    torch.ops.aten.convolution.default: (0, 1),
    torch.ops.aten.convolution_backward.default: (0, 1, 2),
}


class SimulatedTF32(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Dispatch mode that rounds the factors of float32 matrix products and convolutions to TF32, as a GPU does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, with rounded factors if it is a product."""
        places = FACTORS.get(func, ())
        rounded = [round_to_tf32(arg) if place in places else arg for place, arg in enumerate(args)]
        return func(*rounded, **(kwargs or {}))


def round_to_tf32(values: Tensor) -> Tensor:
    """Return float32 values rounded to the nearest number with 10 bits of mantissa, ties away from zero."""
    if values.dtype != torch.float32:
        return values
    return ((values.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@contextmanager
def _bfloat16() -> Iterator[None]:
    with Execution(attack_precision="bfloat16").attack("cpu"):
        yield


PRECISIONS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float32": nullcontext,
    "TF32, simulated": SimulatedTF32,
    "bfloat16": _bfloat16,
}


def compare_gradients(network: nn.Module, exact: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Compare gradients of the cross-entropy with respect to images with those in float64.

    Args:
        network: Network in float32.
        exact: The same network in float64.
        images: ``(N, 1, 28, 28)``, float32, in [0, 1].
        labels: ``(N,)``, int64.

    Returns:
        By precision: share of pixels whose gradient has the exact one's sign, among those where that is not zero; and
        the rise of the loss along the gradient's sign to first order, as a share of the rise along the exact sign.
    """
    loss = partial(_cross_entropy, labels)
    _, _, truth = loss_gradient(exact, images.double(), loss)
    result = {}
    for name, precision in PRECISIONS.items():
        with precision():
            _, _, grad = loss_gradient(network, images, loss)
        equal = grad.sign() == truth.sign()
        result[name] = {
            "equal_signs": _round(equal[truth != 0].double().mean()),
            "first_order_rise": _round((truth * grad.sign()).sum() / truth.abs().sum()),
            "images_without_gradient": int((grad == 0).flatten(1).all(1).sum()),
        }
    return result


def compare_attacks(network: nn.Module, images: Tensor, labels: Tensor, seed: int) -> dict[str, Any]:
    """Run all attacks in all precisions, and judge their images in float32.

    Args:
        network: Network in float32.
        images: ``(N, 1, 28, 28)``, float32, in [0, 1].
        labels: ``(N,)``, int64.
        seed: Seed of the starting points; the next one shows the noise.

    Returns:
        By attack and precision, see :func:`_judge`.
    """
    runs = {name: (precision, seed) for name, precision in PRECISIONS.items()}
    runs["float32, another seed"] = (nullcontext, seed + 1)
    results: dict[str, Any] = {}
    for attack_name, attack in ATTACKS.items():
        reference = None
        for name, (precision, start_seed) in runs.items():
            started = time.process_time()
            with precision():
                adv = attack(network, images, labels, EPS, torch.Generator().manual_seed(start_seed))
                own = int((~misclassified(predict(network, adv), labels)).sum())
            robust, row = _judge(network, images, adv, labels)
            reference = robust if reference is None else reference
            row |= {"robust_in_its_own_precision": own, "other_outcome_than_float32": int((robust != reference).sum())}
            results.setdefault(attack_name, {})[name] = row | {"cpu_seconds": round(time.process_time() - started, 1)}
    return results


def _judge(network: nn.Module, images: Tensor, adv: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Return the mask of correctly classified adversarial images, their number, and their mean loss, in float32."""
    assert (adv - images).abs().max() <= EPS + 1e-6
    assert adv.min() >= 0
    assert adv.max() <= 1
    logits = predict(network, adv)
    robust = ~misclassified(logits, labels)
    return robust, {"robust": int(robust.sum()), "loss": _round(_cross_entropy(labels, logits).mean())}


def measure_network(build: Callable[[], nn.Module], file: Path, images: Tensor, labels: Tensor, seed: int) -> Any:
    """Return what lower precision changes for one network: gradients at random points and at PGD-40's, and attacks."""
    network, exact = load_trained(build(), file), load_trained(build(), file).double()
    generator = torch.Generator().manual_seed(seed)
    random = PGD(steps=0)(network, images, labels, EPS, generator)
    attacked = ATTACKS["PGD-40"](network, images, labels, EPS, generator)
    return {
        "gradients_at_random_points": compare_gradients(network, exact, random, labels),
        "gradients_after_PGD-40": compare_gradients(network, exact, attacked, labels),
        "attacks": compare_attacks(network, images, labels, seed),
    }


def measure_attacks(weights: Mapping[str, Path], images: Tensor, labels: Tensor, seed: int) -> dict[str, Any]:
    """Return the measurements of all networks, by name; a network with gates also in the form that is trained."""
    networks = {}
    for name, file in weights.items():
        forms: dict[str, Callable[[], nn.Module]] = {name: PlainMNISTCNN}
        if _holds_gates(file):
            forms[f"{name}, as trained"] = GatedMNISTCNN
        for form, build in forms.items():
            networks[form] = describe_file(file) | measure_network(build, file, images, labels, seed)
            print(f"{form}: done", flush=True)
    return {"images": len(labels), "eps": EPS, "networks": networks}


def measure_trainings(seeds: Sequence[int], arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Train the quickstart in each precision with each seed, and yield the results so far, in %, after each run.

    Args:
        seeds: Seeds of the trainings.
        arguments: Additional arguments of `fit`.
    """
    data = DigitsDataModule()
    data.setup("test")
    loader = data.test_dataloader()
    images, labels = loader.images.float() / 255, loader.labels
    results: list[dict[str, Any]] = []
    for seed in seeds:
        for name, (precision, network) in TRAININGS.items():
            started = time.process_time()
            path = _train(precision, network, seed, arguments)
            seconds = round(time.process_time() - started, 1)
            results.append(
                {"precision": name, "seed": seed} | evaluate(path, images, labels) | {"cpu_seconds": seconds}
            )
            yield {"config": "configs/quickstart.yaml", "images": len(labels), "trainings": results}


def evaluate(weights: Path, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Return accuracies in float32, in %: clean, and robust under PGD-40 and PGD-20 from mid-gray at eps 0.4."""
    network = load_trained(MNISTCNN(), weights)
    correct = ~misclassified(predict(network, images), labels)
    result = {"clean": _percent(correct)}
    for name in ("PGD-40", "PGD-20 from mid-gray"):
        adv = ATTACKS[name](network, images, labels, EPS, torch.Generator().manual_seed(0))
        result[name] = _percent(correct & ~misclassified(predict(network, adv), labels))
    return result


def _train(precision: str, network: type[nn.Module], seed: int, arguments: Sequence[str]) -> Path:
    folder = Path(tempfile.mkdtemp())
    run_cli([
        "fit", f"--config={ROOT / 'configs/quickstart.yaml'}", f"--runs_dir={folder}", f"--seed_everything={seed}",
        f"--model.network={network.__module__}.{network.__name__}", f"--trainer.precision={precision}",
        "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--test_after_fit=false",
        "--trainer.limit_val_batches=0", "--images.num_images=0", "--curve.num_images=0", *arguments,
    ])  # fmt: skip
    return folder / "quickstart/fit-0/checkpoints/last.ckpt"


def _cross_entropy(labels: Tensor, logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def _holds_gates(file: Path) -> bool:
    try:
        load_trained(GatedMNISTCNN(), file)
    except ValueError:
        return False
    return True


def _percent(mask: Tensor) -> float:
    return round(100 * float(mask.double().mean()), 2)


def _round(value: Tensor) -> float:
    return round(float(value), 4)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    attacks = commands.add_parser("attacks", help="attacks on trained networks, in each precision")
    attacks.add_argument("weights", nargs="+", help="NAME=FILE, weights of the MNIST network")
    attacks.add_argument("--data-dir", required=True, help="folder with MNIST/raw")
    attacks.add_argument("--num-images", type=int, default=200, help="number of test images, from the first on")
    attacks.add_argument("--seed", type=int, default=0, help="seed of the starting points")
    training = commands.add_parser("training", help="quickstart trainings, in each precision")
    training.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the trainings")
    training.add_argument(
        "--fit", nargs="*", default=[], help="additional arguments of fit, such as trainer.max_epochs=1"
    )
    for command in (attacks, training):
        command.add_argument("--out", type=new_file, help="JSON file to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write JSON."""
    arguments = parse(argv)
    if arguments.command == "attacks":
        images, labels = load_first_images(arguments.data_dir, "test", arguments.num_images)
        weights = {name: Path(file) for name, _, file in (pair.partition("=") for pair in arguments.weights)}
        record = Record(arguments.out, arguments.seed)
        record.show(measure_attacks(weights, images, labels, arguments.seed))
        return
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    record = Record(arguments.out, arguments.seeds[0])
    for result in measure_trainings(arguments.seeds, [f"--{given}" for given in arguments.fit]):
        record.show(result)


if __name__ == "__main__":
    main()
