"""Watch over the processes of a run, with real processes that import nothing large."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from commands.messages import is_lost_process
from commands.one_line_errors import one_line_errors
from commands.process_watch import ChildWatch
from tests.conftest import ROOT

CHILD = """
import os, sys, time
if len(sys.argv) > 1:
    time.sleep(float(sys.argv[1]))
from commands.process_watch import watch_parent
assert watch_parent() and not watch_parent()
print("watching", flush=True)
time.sleep(60)
"""
FIRST = f"""
import os, subprocess, sys, time
from commands import process_watch
process_watch.PATIENCE = 0.2
environment = os.environ | {{process_watch.PARENT_VARIABLE: str(os.getpid())}}
children = [
    subprocess.Popen([sys.executable, "-c", {CHILD!r}, *sys.argv[1:]], env=environment | {{"LOCAL_RANK": str(rank)}})
    for rank in (1, 2)
]
process_watch.ChildWatch(children, 1).start()
print(*(child.pid for child in children), flush=True)
time.sleep(60)
"""


def start(*arguments: str) -> tuple[subprocess.Popen[str], list[int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", FIRST, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, [int(each) for each in process.stdout.readline().split()]


def wait_until_watching(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["watching\n"] * 2


def is_running(process: int) -> bool:
    try:
        return "Z" not in open(f"/proc/{process}/stat").read().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def test_a_killed_process_ends_the_first_one_and_the_others() -> None:
    process, (one, other) = start()
    wait_until_watching(process)
    os.kill(other, signal.SIGKILL)
    _, printed = process.communicate(timeout=20)
    assert process.returncode == 1
    assert printed == (
        "error: process 2 of this run was killed by SIGKILL (often for lack of memory), so the run has ended; "
        "run the command again\n"
    )
    assert not is_running(one)


@pytest.mark.parametrize("delay", [[], ["0.5"]])
def test_the_others_end_when_the_first_process_is_killed(delay: list[str]) -> None:
    """Also if it is killed before they begin to watch it."""
    process, children = start(*delay)
    if not delay:
        wait_until_watching(process)
    process.kill()
    _, printed = process.communicate(timeout=20)  # the others hold stderr open until they end
    assert printed == "error: process 0 of this run was killed, so the run has ended; run the command again\n"
    time.sleep(0.3)
    assert not any(map(is_running, children))


class Ended:
    """A process with an exit status."""

    def __init__(self, status: int | None) -> None:
        self.status = status

    def poll(self) -> int | None:
        return self.status

    def wait(self, _: float | None = None) -> int:
        return self.status or 0

    def terminate(self) -> None:
        raise ProcessLookupError

    kill = terminate


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (None, ""),
        (0, ""),
        (1, "process 5 of this run ended with status 1, so the run has ended"),
        (143, "process 5 of this run was killed by SIGTERM, so the run has ended"),
        (-6, "process 5 of this run was killed by SIGABRT, so the run has ended"),
    ],
)
def test_a_watch_describes_the_process_that_failed(status: int | None, text: str) -> None:
    watch = ChildWatch([Ended(0), Ended(status)], 4)
    assert watch.describe_lost() == text
    watch.end_all(0.0)


def test_a_process_that_ends_by_itself_is_left_to_do_so(monkeypatch: Any) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    monkeypatch.setattr("commands.process_watch.PERIOD", 0.01)
    watch = ChildWatch([Ended(1)], 1)
    watch.start()
    time.sleep(0.1)
    watch.stop()
    watch.join(5)
    assert not watch.is_alive()
    assert ended == []


def test_errors_of_communication_are_recognised() -> None:
    text = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.1.1]:20001"
    assert is_lost_process(text)
    assert not is_lost_process("model.eps must be at least 0")


def test_a_signal_does_not_interrupt_the_explanation_of_an_error(capsys: Any) -> None:
    class Ended(Exception):
        def __str__(self) -> str:
            signal.raise_signal(signal.SIGTERM)
            return "it has ended"

    with pytest.raises(SystemExit) as status, one_line_errors(False):
        raise Ended
    assert (status.value.code, capsys.readouterr().err) == (1, "error: it has ended\n")
