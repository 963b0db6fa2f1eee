"""A worker under supervision, with small programs in the place of workers."""
from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distributed_comfy.agent import supervised
from distributed_comfy.agent.supervised import SupervisedWorker
from distributed_comfy.engine.launch import status_in_words
from distributed_comfy.state.records import WorkerFacts, WorkerState

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
WAIT = "import time\nwhile True: time.sleep(0.05)"
STUBBORN = f"import signal\nsignal.signal(signal.SIGTERM, lambda *_: open('asked', 'a').write('x'))\nopen('ready', 'w')\n{WAIT}"


class Program:
    """A process that is asked to end as a worker is."""

    outlives = False

    def __init__(self, script: str, folder: Path) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", script], cwd=folder)
        self.pid = self._process.pid

    def ended(self) -> str | None:
        status = self._process.poll()
        return None if status is None else status_in_words(status)

    @property
    def hopeless(self) -> bool:
        return self._process.returncode == 2

    def ask_to_end(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()


def supervise(folder: Path, *scripts: str) -> SupervisedWorker:
    """Each start runs the next script, the last one again and again."""
    left = list(scripts)
    return SupervisedWorker("w", lambda: Program(left.pop(0) if len(left) > 1 else left[0], folder), lambda: "last words", 0.0)


def until(worker: SupervisedWorker, what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline, worker.phase(enabled=True)
        worker.tick()
        time.sleep(0.01)


def registered(pid: int, *, drained: bool = False) -> WorkerState:
    return WorkerState(WorkerFacts("w", "pc1", "cpu", "builtin", pid=pid), "idle", drained=drained)


def test_it_runs_once_the_table_has_this_process_and_no_other(tmp_path: Path) -> None:
    worker = supervise(tmp_path, WAIT)
    assert (worker.phase(enabled=True), worker.phase(enabled=False)) == ("stopped", "disabled")
    worker.start()
    until(worker, lambda: worker.process)
    assert worker.process is not None and worker.phase(enabled=True) == "starting"
    worker.see(registered(worker.process.pid + 1))
    assert worker.phase(enabled=True) == "starting", "one of this name that was there before"
    worker.see(registered(worker.process.pid))
    assert worker.phase(enabled=True) == "running"
    worker.see(registered(worker.process.pid, drained=True))
    assert worker.phase(enabled=True) == "draining"
    worker.stop()
    assert worker.phase(enabled=True) == "stopping"
    until(worker, lambda: worker.process is None)
    assert worker.phase(enabled=True) == "stopped" and worker.restarts == 0


def test_it_waits_after_a_failure_and_gives_up_on_bad_input(tmp_path: Path) -> None:
    worker = supervise(tmp_path, "raise SystemExit(1)", "raise SystemExit(2)")
    worker.start()
    until(worker, lambda: worker.restarts)
    assert worker.phase(enabled=True) == "backing-off" and 0.5 < worker.next_start_s <= 1.0
    assert worker.reason == "it ended with exit status 1: last words"
    worker.start()  # at once, whatever it waits for
    until(worker, lambda: worker.phase(enabled=True) == "failed")
    assert worker.reason == "last words" and worker.next_start_s == 0.0
    worker.stop()
    assert worker.phase(enabled=True) == "stopped" and worker.reason == ""


def test_a_kill_from_outside_is_called_that_whatever_the_log_said_last(tmp_path: Path) -> None:
    worker = supervise(tmp_path, "import os\nos.kill(os.getpid(), 9)", WAIT)
    worker.start()
    until(worker, lambda: worker.restarts)
    assert worker.reason.startswith("it was killed from outside with signal 9 (SIGKILL): by a user, or by the system for lack of main ")
    assert "last words" not in worker.reason and "fewer workers" in worker.reason
    worker.stop()


def test_the_reason_of_an_earlier_end_is_forgotten_once_it_runs(tmp_path: Path) -> None:
    worker = supervise(tmp_path, "raise SystemExit(0)", WAIT)
    worker.start()
    until(worker, lambda: worker.restarts)
    assert worker.reason == "it ended with exit status 0: last words"
    until(worker, lambda: worker.process)
    assert worker.reason and worker.process is not None, "it has only been started"
    worker.see(registered(worker.process.pid))
    assert (worker.phase(enabled=True), worker.reason, worker.restarts) == ("running", "", 1)
    worker.stop()
    until(worker, lambda: worker.process is None)


def test_what_cannot_even_be_started_waits_too(tmp_path: Path) -> None:
    def refuse() -> Program:
        raise OSError("no more processes")

    worker = SupervisedWorker("w", refuse, lambda: "", 0.0)
    worker.start()
    worker.tick()
    assert worker.phase(enabled=True) == "backing-off" and worker.reason == "it could not be started: no more processes"


def test_a_restart_ends_it_and_starts_another(tmp_path: Path) -> None:
    worker = supervise(tmp_path, WAIT)
    worker.start()
    until(worker, lambda: worker.process)
    first = worker.process
    worker.restart()
    until(worker, lambda: worker.process not in (None, first))
    assert worker.restarts == 0, "nobody counts what was asked for"
    worker.stop()
    until(worker, lambda: worker.process is None)


def test_one_that_does_not_end_is_asked_again_where_it_is_urgent_then_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "_AFTER_DRAIN_S", 1.5)
    worker = supervise(tmp_path, STUBBORN)
    worker.start()
    until(worker, lambda: (tmp_path / "ready").exists())
    worker.stop(at_once=True)
    until(worker, lambda: worker.process is None)
    assert (tmp_path / "asked").read_text() == "xx"


def test_one_whose_servers_are_gone_is_soon_killed_also_where_it_is_then_asked_with_more_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "_SERVERS_GONE_S", 0.3)
    worker = supervise(tmp_path, STUBBORN)
    worker.start()
    until(worker, (tmp_path / "ready").exists)
    began = time.monotonic()
    worker.stop(at_once=True, servers_gone=True)
    worker.stop()
    until(worker, lambda: worker.process is None)
    assert time.monotonic() - began < 5 and worker.phase(enabled=True) == "stopped"
