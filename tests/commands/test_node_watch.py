"""Silent nodes and a killed torchrun end a process."""

import signal
import threading
import time
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore

from commands.interruption import Interrupted, interruptible
from commands.node_watch import NodeWatch, watch_torchrun


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    statuses: list[int] = []
    monkeypatch.setattr("os._exit", statuses.append)
    return statuses


def watches(count: int, silent_seconds: float = 0.5) -> list[NodeWatch]:
    store = HashStore()
    found = [NodeWatch(store, node, count, silent_seconds, beat_seconds=0.05) for node in range(count)]
    for watch in found:
        watch.start()
    return found


def test_a_silent_node_ends_the_others_in_one_line(ended: list[int], capsys: Any) -> None:
    first, silent, third = watches(3)
    time.sleep(0.7)
    assert not ended
    silent._stopped.set()  # as without power: it neither counts nor says that it is done
    time.sleep(0.8)
    for watch in (first, third):
        watch.stop()
    assert set(ended) == {1}
    assert "error: no sign of life from node 1 for 0 seconds, so this run can't continue" in capsys.readouterr().err


def test_a_node_that_is_done_ends_no_other(ended: list[int]) -> None:
    first, done = watches(2, silent_seconds=0.3)
    done.stop()
    time.sleep(0.6)
    first.stop()
    assert not ended


def test_a_process_is_interrupted_when_torchrun_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    watch_torchrun()
    assert threading.active_count() == before  # without torchrun
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    watch_torchrun(seconds=0.05, grace=1e6)
    with pytest.raises(Interrupted) as end, interruptible():  # noqa: PT012 - the watch raises in the second statement
        monkeypatch.setattr("os.getppid", lambda: 1)
        time.sleep(5)
    assert end.value.signum == signal.SIGTERM
