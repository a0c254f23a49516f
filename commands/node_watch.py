"""End a run of several nodes when one of them is silent, and a process whose torchrun has ended."""

import os
import signal
import threading
import time
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

from pytorch_lightning import Callback, LightningModule, Trainer

from commands.interruption import say, signals

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

SILENT_SECONDS = 60.0
"""Seconds without a sign of life after which a node counts as lost."""

BEAT_SECONDS = 5.0
DONE = b"done"


def watch_torchrun(seconds: float = 1.0, grace: float = 30.0) -> None:
    """Interrupt this process as by SIGTERM, if torchrun has started it and ends before it.

    Otherwise it would train on unseen, and hold its device, after a torchrun that was killed. A process that does not
    end is killed, as torchrun does it: it may wait for others that have ended.

    Args:
        seconds: Seconds between two looks.
        grace: Seconds from SIGTERM to SIGKILL.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="torchrun-watch", daemon=True).start()


class NodeWatchCallback(Callback):
    """End this process with one line when another node has been silent for a minute.

    A killed process is noticed at once, because the system closes its connections. A node that loses power or its
    network closes nothing: the others would wait for 30 minutes, the timeout of collective operations, which has to be
    longer than anything that one process does alone. So the first process of each node counts in the run's store, in
    a thread of its own, whatever its main thread does, and looks at the counts of the other nodes.
    """

    _watch: "NodeWatch | None" = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Start to watch. A collective operation with more than one node."""
        if trainer.num_nodes > 1:
            name = trainer.strategy.broadcast(uuid.uuid4().hex)
            if trainer.local_rank == 0:
                from torch._C._distributed_c10d import PrefixStore, TCPStore  # Some builds of torch have none.

                address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
                timeout = timedelta(seconds=2 * SILENT_SECONDS)  # longer than the watch waits
                server = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)
                store = PrefixStore(f"rampart-{name}", server)
                self._watch = NodeWatch(store, trainer.node_rank, trainer.num_nodes)
            trainer.strategy.barrier()  # Every node has counted once.
            if self._watch is not None:
                self._watch.start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Tell the other nodes that this one is done: they may have more to do."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None


class NodeWatch:
    """Counts of all nodes in a store, read every few seconds.

    Args:
        store: Store that all nodes reach.
        node: Number of this node.
        nodes: Number of nodes.
        silent_seconds: Seconds after which a node whose count has not changed is lost.
        beat_seconds: Seconds between two counts.
    """

    def __init__(
        self,
        store: "Store",
        node: int,
        nodes: int,
        silent_seconds: float = SILENT_SECONDS,
        beat_seconds: float = BEAT_SECONDS,
    ) -> None:
        self.store, self.node, self.silent_seconds, self.beat_seconds = store, node, silent_seconds, beat_seconds
        self._counts = {other: b"" for other in range(nodes) if other != node}
        self._heard = dict.fromkeys(self._counts, time.monotonic())
        self._stopped = threading.Event()
        store.set(str(node), "0")

    def start(self) -> None:
        """Start the thread that counts and reads, and the one that ends the process: the first may get no response."""
        self._heard = dict.fromkeys(self._counts, time.monotonic())
        for body in (self._beat, self._judge):
            threading.Thread(target=body, name="node-watch", daemon=True).start()

    def stop(self) -> None:
        """Stop watching, and tell the other nodes."""
        self._stopped.set()
        try:
            self.store.set(str(self.node), DONE.decode())
        except RuntimeError:
            return  # The first node has ended already.

    def _beat(self) -> None:
        count = 0
        while not self._stopped.wait(self.beat_seconds):
            count += 1
            try:
                self.store.set(str(self.node), str(count))
                for other, before in self._counts.items():
                    now = self.store.get(str(other))
                    if now != before or now == DONE:
                        self._counts[other], self._heard[other] = now, time.monotonic()
            except RuntimeError:  # The store's process has ended: not silently, so communication ends with an error.
                self._stopped.set()

    def _judge(self) -> None:
        while not self._stopped.wait(min(1.0, self.beat_seconds)):
            now = time.monotonic()
            lost = [other for other, heard in self._heard.items() if now - heard > self.silent_seconds]
            if lost:
                self._end(lost)

    def _end(self, lost: list[int]) -> None:
        names = ", ".join(map(str, lost))
        say(
            f"error: no sign of life from node {names} for {self.silent_seconds:.0f} seconds, so this run can't "
            f"continue: look at its power and network; {signals.advice}"
        )
        os._exit(1)
