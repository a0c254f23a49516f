"""Processes of a SLURM job: those that srun has started train together, and any other process trains alone."""

import os
import socket

from lightning_fabric.plugins import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

from commands.requeue import read_node


class SrunEnvironment(SLURMEnvironment):
    """Ranks and addresses of the tasks that one srun has started, which may be some of the job's tasks.

    Lightning's class handles SIGUSR1, warns, and asks for one of several options that give the same tasks.
    """

    def __init__(self) -> None:
        super().__init__(auto_requeue=False)

    @property
    def main_address(self) -> str:
        """Return MASTER_ADDR, or else the first node's name, or its address in SLURM if the name does not resolve."""
        if "MASTER_ADDR" not in os.environ:
            node = self.resolve_root_node_address(os.environ["SLURM_STEP_NODELIST"])
            try:
                socket.getaddrinfo(node, None)
            except OSError:
                node = read_node(node).get("NodeAddr", node)
            os.environ["MASTER_ADDR"] = node
        return os.environ["MASTER_ADDR"]

    @staticmethod
    def _validate_srun_used() -> None:
        pass

    @staticmethod
    def _validate_srun_variables() -> None:
        pass


def choose_environment() -> ClusterEnvironment:
    """Return the environment of this process of a SLURM job.

    One task may start more processes on its machine by itself, as in a shell that srun has started.
    """
    several = _is_step() and os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"
    return SrunEnvironment() if several else LightningEnvironment()


def count_tasks(given: bool) -> tuple[int, int]:
    """Return the numbers of nodes and of tasks per node that srun has started, 1 and 1 for a process without srun.

    Args:
        given: True if the user has given the devices of one machine; then a process needs no srun.

    Raises:
        ValueError: If the nodes have different numbers of tasks, or a job of several tasks runs this process without
            srun.
    """
    if not _is_step():
        tasks = os.environ.get("SLURM_NTASKS", "1")
        interactive = os.environ.get("SLURM_JOB_NAME") == "interactive"  # the shell of salloc
        if tasks != "1" and not given and not interactive:
            raise ValueError(
                f"SLURM has reserved {tasks} tasks for this job, but srun has not started this process: write srun "
                "before python, or give the devices that this process uses, such as --trainer.devices 1"
            )
        return 1, 1
    nodes, layout = int(os.environ.get("SLURM_STEP_NUM_NODES", "1")), os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1")
    per_node, _, repeated = layout.partition("(")
    if not per_node.isdigit() or repeated not in ("", f"x{nodes})"):
        raise ValueError(
            f"srun has started different numbers of tasks on {nodes} nodes ({layout}): replace --ntasks by "
            "--ntasks-per-node"
        )
    return nodes, int(per_node)


def check_visible_gpus(tasks_per_node: int) -> None:
    """Refuse a step in which a task does not see the GPUs of all tasks of its node: Lightning numbers them by task.

    Raises:
        ValueError: If there are fewer visible GPUs than tasks.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    number = len(visible.split(","))
    if visible and number < tasks_per_node:
        raise ValueError(
            f"each of the {tasks_per_node} tasks of a node must see the GPUs of all of them, but this one sees "
            f"{number}: use --gpus-per-node {tasks_per_node} in place of --gpus-per-task or --gpu-bind"
        )


def _is_step() -> bool:
    return "SLURM_STEP_ID" in os.environ
