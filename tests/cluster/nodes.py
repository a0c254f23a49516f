"""Two nodes on one machine: network namespaces that a cable joins, each with its own torchrun."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT

ADDRESSES = ("10.213.0.1", "10.213.0.2")
PORT = 29517


class Nodes:
    """Two network namespaces with one address each, and the processes that tests start in them.

    Args:
        folder: Folder of the processes' output, ``0.txt`` and ``1.txt``; a node that is started again appends to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = [f"rampart-{os.getpid()}-{node}" for node in range(2)]
        self.cables = [f"rampart{os.getpid() % 100000}{'ab'[node]}" for node in range(2)]

    def create(self) -> None:
        """Create the namespaces, and join them."""
        for name in self.names:
            _ip("netns", "add", name)
        _ip("link", "add", self.cables[0], "type", "veth", "peer", "name", self.cables[1])
        for name, cable, address in zip(self.names, self.cables, ADDRESSES, strict=True):
            _ip("link", "set", cable, "netns", name)
            _ip("-n", name, "address", "add", f"{address}/24", "dev", cable)
            for link in ("lo", cable):
                _ip("-n", name, "link", "set", link, "up")

    def remove(self) -> None:
        """Kill all processes of the nodes, and remove the namespaces."""
        for node, name in enumerate(self.names):
            self.kill(node)
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)  # noqa: S607

    def start(self, node: int, *command: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a command on a node, with the node's network interface for gloo."""
        settings = {"GLOO_SOCKET_IFNAME": self.cables[node], "OMP_NUM_THREADS": "1"} | variables
        with (self.folder / f"{node}.txt").open("ab") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.names[node], *command],  # noqa: S607
                cwd=ROOT, env=os.environ | settings, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def torchrun(self, node: int, options: list[str], arguments: list[str]) -> subprocess.Popen[bytes]:
        """Start torchrun on a node with the c10d rendezvous on the first, unless the options give another."""
        joined = ["--nnodes=2", f"--local-addr={ADDRESSES[node]}"]
        if not any(option.startswith("--node-rank") for option in options):
            # The address is not that of the machine's name, by which torchrun would find the first node.
            joined += ["--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}"]
            joined += [f"--rdzv-conf=is_host={1 - node}"]
        return self.start(node, sys.executable, "-m", "torch.distributed.run", *joined, *options, "cli.py", *arguments)

    def processes(self, node: int) -> list[int]:
        """Return the numbers of all processes on a node."""
        found = subprocess.run(["ip", "netns", "pids", self.names[node]], check=False, capture_output=True, text=True)  # noqa: S607
        return [int(number) for number in found.stdout.split()]

    def workers(self, node: int) -> list[int]:
        """Return the numbers of the processes that torchrun has started on a node."""
        return [number for number in self.processes(node) if b"torch.distributed.run" not in _command(number)]

    def kill(self, node: int) -> None:
        """Kill all processes of a node at once, as a power failure does."""
        for number in self.processes(node):
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def unplug(self) -> None:
        """Take the cable down: packets are lost, and no side is told."""
        _ip("-n", self.names[0], "link", "set", self.cables[0], "down")

    def read(self, node: int) -> str:
        """Return what the processes of a node have printed."""
        return (self.folder / f"{node}.txt").read_text(errors="replace")


def is_running(number: int) -> bool:
    """Return True for a process that has not ended, also if its parent has not asked for its status yet."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def two_nodes(folder: Path) -> Iterator[Nodes]:
    """Create two nodes, and remove them with their processes at the end; skip the test where that is not allowed."""
    nodes = Nodes(folder)
    if shutil.which("ip") is None:
        pytest.skip("needs the program ip: apt-get install iproute2")
    try:
        try:
            nodes.create()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"needs the right to create network namespaces (run as root): {error.stderr.decode().strip()}")
        yield nodes
    finally:
        nodes.remove()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)  # noqa: S607


def _command(number: int) -> bytes:
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return b"torch.distributed.run"
