"""Trainings whose scaling is measured, and their command lines."""

from dataclasses import dataclass, replace
from pathlib import Path

RANDOM_IMAGES = "--data=rampart_probe.RandomImages"
DIGITS = "--data=DigitsDataModule"
# Eps, attack and learning rate are those of the whole run, so that every turn has the same work; no validation or test.
STEADY = (
    "--ramp.phases=null", "--ramp.init_from=null", "--model.lr_scheduler=null", "--trainer.max_epochs=100000",
    "--trainer.limit_val_batches=0", "--test_after_fit=false", "--seed_everything=0",
)  # fmt: skip
PROBE = "--trainer.callbacks+=benchmarks.scaling_parts.probe.ScalingProbe"
DDP_STRATEGY = "pytorch_lightning.strategies.DDPStrategy"


@dataclass(frozen=True)
class Case:
    """Training whose throughput with one process is compared with that of two.

    Attributes:
        name: Network and attack, for tables.
        options: Options of `cli.py fit`: config and data.
        images: Images per update of all processes together; even.
        updates: Updates per turn.
        sync_batchnorm: True if BatchNorm's statistics are those of both processes, as in ddp.yaml.
    """

    name: str
    options: tuple[str, ...]
    images: int
    updates: int
    sync_batchnorm: bool = True


_CNN, _NARROW, _WIDE = "MNIST CNN, PGD-5", "ResNet-18 of width 8, PGD-3", "ResNet-18, PGD-7"
_CPU = (
    Case(_CNN, ("--config=configs/quickstart.yaml",), 32, 20),
    Case("MNIST CNN, PGD-40", ("--config=configs/mnist/extended.yaml", DIGITS), 128, 1),
    Case(_NARROW, ("--config=configs/cifar10/cpu_madry_8.yaml", RANDOM_IMAGES), 64, 8),
    Case(
        f"{_NARROW}, BatchNorm per process", ("--config=configs/cifar10/cpu_madry_8.yaml", RANDOM_IMAGES), 64, 8, False
    ),
    Case(_WIDE, ("--config=configs/cifar10/madry_8.yaml", RANDOM_IMAGES, "--model.lr_milestones=null"), 16, 1),
)
# On a GPU: the batches of the configs, and turns of about a second.
_GPU_WORK = ((128, 100), (128, 20), (128, 50), (128, 50), (128, 20))
_GPU = tuple(replace(case, images=images, updates=n) for case, (images, n) in zip(_CPU, _GPU_WORK, strict=True))

CASES = {
    "quick": tuple(replace(case, images=4, updates=2) for case in (_CPU[0], _CPU[2])),
    "cpu": _CPU,
    "gpu": _GPU,
}
"""Cases by amount of work."""


def build_fit(case: Case, processes: int, device: str, shared: bool, runs: Path) -> list[str]:
    """Return the arguments of Python for the training of a case.

    Args:
        case: The case.
        processes: Number of processes, 1 or 2, which share the images of an update.
        device: ``"cpu"`` or ``"cuda"``.
        shared: True if two processes use the same GPU. Then each is a node for Lightning, so that both use device 0,
            and they communicate by gloo: NCCL refuses two processes on one GPU.
        runs: Folder of the runs.
    """
    arguments = ["cli.py", "fit", *case.options, *STEADY, PROBE, f"--data.batch_size={case.images // processes}"]
    accelerator = "cpu" if device == "cpu" else "gpu"
    devices = 1 if shared else processes
    arguments += [f"--trainer.accelerator={accelerator}", f"--trainer.devices={devices}", f"--runs_dir={runs}"]
    if processes == 1:
        return arguments
    arguments.append(f"--trainer.sync_batchnorm={str(case.sync_batchnorm).lower()}")
    if not shared:
        return [*arguments, "--trainer.strategy=ddp"]
    strategy = [f"--trainer.strategy={DDP_STRATEGY}", "--trainer.strategy.process_group_backend=gloo"]
    return [*arguments, *strategy, f"--trainer.num_nodes={processes}"]
