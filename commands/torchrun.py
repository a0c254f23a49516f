"""Processes that torchrun starts, and starts again."""

import os
import socket
import time
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

SECONDS = 300.0
"""Longest time in which all processes of a run have to start."""

KEY = "rampart/port"


def torchrun_start() -> str | None:
    """Return a name for this start of torchrun, the same for processes that it starts again; None without torchrun.

    ``--rdzv-id`` may be used again, and so are process numbers in containers. TORCHELASTIC_RESTART_COUNT stays 0 if
    another node asks for the restart.
    """
    # torchrun makes a folder with a random name for the files of its processes: FOLDER/attempt_0/0/error.json.
    file = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", ""))
    if len(file.parts) > 3:
        return file.parents[2].name
    return f"{socket.gethostname()} {os.getppid()}" if "TORCHELASTIC_RUN_ID" in os.environ else None


class TorchrunEnvironment(TorchElasticEnvironment):
    """Ranks and addresses of torchrun's processes, with a new store for each start of them.

    torchrun offers its own store, which keeps the keys of all starts: a restarted process finds there the addresses of
    processes that have been killed, and waits for them. So rank 0 opens a store, and writes its port to torchrun's. Of
    an earlier start's port, which others may read before, nobody listens any more.
    """

    _server: Any = None

    @property
    def main_port(self) -> int:
        """Return the port of rank 0's store. The first call waits for rank 0."""
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            os.environ["MASTER_PORT"] = str(self._agree_on_port(super().main_port))
            os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        return super().main_port

    def _agree_on_port(self, known: int) -> int:
        from torch._C._distributed_c10d import TCPStore  # Some builds of torch have none.

        torchruns = TCPStore(self.main_address, known, is_master=False, wait_for_workers=False)
        if self.global_rank() == 0:
            # torch opens the store once more, and gets this one.
            self._server = TCPStore(self.main_address, 0, is_master=True, wait_for_workers=False, multi_tenant=True)
            torchruns.set(KEY, str(self._server.port))
            return int(self._server.port)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            port = int(torchruns.get(KEY))
            try:
                socket.create_connection((self.main_address, port), timeout=5).close()
                return port
            except OSError:
                time.sleep(0.1)
        raise ValueError(f"the first process of this run did not open its store within {SECONDS:.0f} seconds")
