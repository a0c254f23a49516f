"""Trainer settings from the processes that torchrun or SLURM's srun have started."""

import os
from dataclasses import dataclass
from typing import Any

from jsonargparse import Namespace
from lightning_fabric.plugins import ClusterEnvironment

from commands.slurm import check_visible_gpus, choose_environment, count_tasks
from commands.torchrun import TorchrunEnvironment
from commands.trainer_settings import as_list

JOINED = ("fit", "validate", "test", "predict")
"""Commands whose processes form one group; those of ``evaluate`` share their work through files."""


@dataclass(frozen=True)
class Launch:
    """Processes that a launcher has started for one run.

    Attributes:
        name: Name of the launcher.
        options: The launcher's options for a number of nodes and of processes per node, as a format string.
        nodes: Number of nodes.
        devices: Number of processes per node, each with its own device.
    """

    name: str
    options: str
    nodes: int
    devices: int


def adopt_launch(subcommand: str, trainer: Namespace) -> None:
    """Set the number of devices and nodes that the user has left out to the launcher's, and the strategy to DDP.

    Args:
        subcommand: Command that is run.
        trainer: Section ``trainer`` of the config; changed in place.

    Raises:
        ValueError: If given numbers contradict the launcher's, or its nodes have different numbers of processes.
    """
    environment = _find_environment(subcommand)
    if environment is not None and not any(isinstance(each, ClusterEnvironment) for each in as_list(trainer.plugins)):
        trainer.plugins = [*as_list(trainer.plugins), environment]
    launch = _find_launch(trainer) if subcommand in JOINED else None
    if launch is None:
        return
    devices, nodes = _count_devices(trainer.devices), trainer.num_nodes
    if devices not in (None, launch.devices) or nodes not in (1, launch.nodes):
        given = [f"--trainer.devices {trainer.devices}"] if devices is not None else []
        given += [f"--trainer.num_nodes {nodes}"] if nodes != 1 or not given else []
        wanted = launch.options.format(nodes=nodes, devices=devices or launch.devices)
        raise ValueError(
            f"{' '.join(given)} does not match the {launch.nodes} x {launch.devices} processes (nodes x processes per "
            f"node) that {launch.name} has started: leave it out, or start {launch.name} with {wanted}"
        )
    trainer.num_nodes = launch.nodes
    if devices is None:
        trainer.devices = launch.devices
    if trainer.strategy == "auto" and launch.nodes * launch.devices > 1:
        trainer.strategy = "ddp"


def start_words() -> list[str]:
    """Return the words before ``cli.py`` in a command that starts as many processes on this machine as there are."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ["python"]
    return ["torchrun", "--standalone", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1")]


def _find_environment(subcommand: str) -> ClusterEnvironment | None:
    if _is_torchrun():
        return TorchrunEnvironment() if subcommand in JOINED else None
    # Lightning would take any process of a job that has SLURM_NTASKS for one that srun has started.
    return choose_environment() if "SLURM_JOB_ID" in os.environ else None


def _find_launch(trainer: Namespace) -> Launch | None:
    if _is_torchrun():
        return _find_torchrun()
    return _find_srun(trainer) if "SLURM_JOB_ID" in os.environ else None


def _is_torchrun() -> bool:
    return {"TORCHELASTIC_RUN_ID", "WORLD_SIZE"} <= os.environ.keys()


def _find_srun(trainer: Namespace) -> Launch | None:
    nodes, devices = count_tasks(given=_count_devices(trainer.devices) is not None and trainer.num_nodes == 1)
    if trainer.accelerator != "cpu":
        check_visible_gpus(devices)
    if nodes * devices == 1:
        return None
    return Launch("srun", "--nodes {nodes} --ntasks-per-node {devices}", nodes, devices)


def _find_torchrun() -> Launch:
    nodes, devices, world = (int(os.environ[f"{name}WORLD_SIZE"]) for name in ("GROUP_", "LOCAL_", ""))
    if nodes * devices != world:
        raise ValueError(
            f"torchrun has started {world} processes on {nodes} nodes, {devices} of them here: give every node the "
            "same --nproc-per-node"
        )
    return Launch("torchrun", "--nnodes {nodes} --nproc-per-node {devices}", nodes, devices)


def _count_devices(devices: Any) -> int | None:
    """Return the number of devices that the user asks for; None if it is left to the launcher."""
    if isinstance(devices, (list, tuple)):
        return len(devices)
    if isinstance(devices, str):
        return int(devices) if devices.isdigit() else len(devices.split(",")) if "," in devices else None
    return devices if isinstance(devices, int) and devices > 0 else None
