"""Section ``two_ranks``: two processes (gloo) that share one device, against one with the same images per update."""

import socket
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks.accelerator_sections.command_line import build_fit, check_images
from benchmarks.accelerator_sections.setting import QUICKSTART, ROOT, Recipe, Rows, Setting
from benchmarks.accelerator_sections.worker import Worker, WorkerError

START = 120.0  # longest wait for a process, in seconds
COMPARED = 5  # updates before the weights are compared: later, differences of rounding have grown
# Images are not shifted, attacks start at them, and eps is constant: then one process computes the same update as two.
EQUAL = [
    "--data.max_shift=0", "--data.drop_last=true", "--model.attack.start=AtImage", "--ramp.phases=null",
    "--trainer.max_epochs=1000", "--model.lr_scheduler=null", "--model.optimizer.lr=1e-4",
]  # fmt: skip


def measure(setting: Setting, rows: Rows) -> None:
    """Add a row to the table ``ranks``: images per second, and the distance of the weights of both."""
    whole = setting.size.rank_images
    try:
        check_images(setting)
        with tempfile.TemporaryDirectory() as folder:
            one_seconds, one = train(setting, 1, whole, Path(folder) / "one")
            two_seconds, two = train(setting, 2, whole // 2, Path(folder) / "two")
    except WorkerError as error:
        rows.leave_out("two ranks", error)
        return
    images = whole * setting.size.rank_updates
    difference = max(float((one[name] - two[name]).abs().max()) for name in one)
    rows.add(
        "ranks",
        updates=setting.size.rank_updates,
        compared_after=COMPARED,
        images_per_update=whole,
        one_images_per_second=images / one_seconds,
        two_images_per_second=images / two_seconds,
        largest_weight_difference=difference,
        largest_weight=max(float(tensor.abs().max()) for tensor in one.values()),
    )


def train(setting: Setting, world_size: int, batch_size: int, folder: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """Train on digits with one or more processes on one device.

    Every process is a node of its own for Lightning, so that all may use device 0.

    Args:
        setting: The section's settings.
        world_size: Number of processes.
        batch_size: Images per update and process.
        folder: Folder for files.

    Returns:
        Seconds of the updates after the first few, and the network's weights after these few.

    Raises:
        WorkerError: If a process fails.
    """
    folder.mkdir()
    recipe = Recipe("quickstart", QUICKSTART, 0, batch_size)
    arguments = [*build_fit(recipe, setting, ROOT, folder / "runs"), *EQUAL, "--trainer.check_val_every_n_epoch=1000"]
    if world_size > 1:
        strategy = "pytorch_lightning.strategies.DDPStrategy"
        arguments += [f"--trainer.strategy={strategy}", "--trainer.strategy.process_group_backend=gloo",
                      f"--trainer.num_nodes={world_size}"]  # fmt: skip
    weights = folder / "weights.pt"
    port = find_free_port()
    with ExitStack() as stack:
        workers = []
        for rank in range(world_size):
            names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": str(rank), "LOCAL_RANK": "0"}
            environment = names if world_size > 1 else {}
            workers.append(stack.enter_context(Worker(arguments, ROOT, folder / f"{rank}.txt", environment)))
        ask_all(workers)
        ask_all(workers, updates=COMPARED, save=str(weights))
        start = time.monotonic()
        ask_all(workers, updates=setting.size.rank_updates)
        seconds = time.monotonic() - start
    saved: dict[str, torch.Tensor] = torch.load(weights, weights_only=True)
    return seconds, saved


def ask_all(workers: list[Worker], **request: object) -> None:
    """Send a request to all processes, if there is one, and wait for their replies."""
    for number, worker in enumerate(workers):
        if request:
            worker.send(**{name: value for name, value in request.items() if name != "save" or number == 0})
    for worker in workers:
        worker.receive(START)


def find_free_port() -> int:
    """Return a port of this machine that no process listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
