"""The pack's session without a ComfyUI round it: Redis, agent and workers, as options and files want them."""
from __future__ import annotations

import json
import os
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from distributed_comfy.comfyui import devices as devices_module
from distributed_comfy.comfyui import session as session_module
from distributed_comfy.comfyui.options import OptionsFile
from distributed_comfy.comfyui.session import Session
from distributed_comfy.errors import ClusterNotReady, RedisUnreachable, SessionFailed, WorkerUnknown
from distributed_comfy.settings import Settings
from tests import warm_python
from tests.command_line import CommandLine, until
from tests.conftest import free_port, missing_service

PROGRAM = """#!/bin/sh
for number in 0 1 2; do echo "$number, GPU-$number, card, 24576, 00000000:8$number:00.0"; done
"""


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CommandLine]:
    """Folders of a user, for this process too."""
    if warm_python.AVAILABLE:
        warm_python.warm_python()  # not one of this test's processes
    line = CommandLine(tmp_path, DC_ENGINE="builtin", DC_HOST="pc1", DC_WORKERS_FILE=str(tmp_path / "workers.json"))
    for name, value in line.environment.items():
        monkeypatch.setenv(name, value)
    yield line
    for process in line.processes():
        if process.pid != os.getpid():
            process.kill()


@pytest.fixture
def open_session(line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Session]]:
    """``open_session(device, **settings)``: one that is started."""
    if not any((Path(folder) / "redis-server").exists() for folder in os.environ["PATH"].split(os.pathsep)):
        missing_service("a redis-server in PATH", "install one (Debian, Ubuntu: apt-get install redis-server)")
    monkeypatch.setattr(devices_module, "_of_torch", lambda: ())
    monkeypatch.setattr(devices_module, "_built_for_nvidia", lambda: True)
    monkeypatch.setattr(devices_module, "_unique_id", lambda number: f"GPU-{number}")
    sessions: list[Session] = []

    def start(device: str = "cpu", **settings: Any) -> Session:
        kind, _, number = device.partition(":")
        found = types.SimpleNamespace(type=kind, index=int(number) if number else None)
        memory = types.SimpleNamespace(get_torch_device=lambda: found)
        host: Any = types.SimpleNamespace(args=types.SimpleNamespace(), root=line.folder, model_management=memory)
        sessions.append(Session(Settings(**settings), host, OptionsFile(line.folder / "comfyui.json")))
        sessions[-1].start()
        return sessions[-1]

    yield start
    for session in sessions:
        session.end()


def phases(session: Session) -> dict[str, str]:
    """What the workers of the host do."""
    return {worker["name"]: worker["phase"] for worker in session.workers.shown()["workers"]}


def write(line: CommandLine, name: str, content: Any) -> None:
    """A file of the user's."""
    (line.folder / name).write_text(json.dumps(content))


def children(line: CommandLine) -> list[psutil.Process]:
    """Processes of this test that work, but itself; a session that goes on living collects the others later."""
    found = [process for process in line.processes() if process.pid != os.getpid()]
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


def test_a_start_takes_no_time_and_an_end_leaves_nothing(open_session: Callable[..., Session], line: CommandLine) -> None:
    begun = time.monotonic()
    session = open_session()
    assert time.monotonic() - begun < 0.5
    assert session.cluster(60).client.ping() and session.state == "ready"
    until(lambda: session.workers.place == "here")
    assert phases(session) == {} and not (line.folder / "workers.json").exists()
    assert [offer["device"] for offer in session.workers.shown()["offers"]] == ["cpu"]
    session.end()
    assert session.state == "off"
    until(lambda: not children(line), 5)
    with pytest.raises(ClusterNotReady, match="its session is off"):
        session.cluster(0)


@pytest.mark.skipif(sys.platform == "win32", reason="the driver's tool is a script here")
def test_each_gpu_that_comfyui_does_not_use_gets_a_worker_that_waits(
    open_session: Callable[..., Session], line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = line.folder / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(PROGRAM)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    session = open_session("cuda:1")
    until(lambda: session.workers.place == "here")
    assert phases(session) == {"pc1-cuda0": "stopped", "pc1-cuda2": "stopped"}
    shown = session.workers.shown()
    assert [device["own"] for device in shown["devices"]] == [False, True, False]
    assert {offer["device"]: offer["shares"] for offer in shown["offers"]} == {"cuda:1": True, "cpu": False}
    assert list(json.loads((line.folder / "workers.json").read_text())["workers"]) == ["pc1-cuda0", "pc1-cuda2"]


def test_workers_come_and_go_by_order_and_end_with_the_session(open_session: Callable[..., Session], line: CommandLine) -> None:
    session = open_session()
    until(lambda: session.workers.place == "here")
    answer = session.workers.order("add", fields={"device": "cpu"})
    assert answer.text.startswith("worker pc1-cpu on pc1: added")
    until(lambda: phases(session) == {"pc1-cpu": "running"}, 60)
    session.workers.order("stop", "pc1-cpu")
    until(lambda: phases(session) == {"pc1-cpu": "stopped"}, 60)
    assert line.run("workers", "start", "pc1-cpu").status == 0  # as another terminal does it
    until(lambda: phases(session) == {"pc1-cpu": "running"}, 60)
    with pytest.raises(WorkerUnknown):
        session.workers.order("start", "pc1-none")
    session.end()
    until(lambda: not children(line), 5)
    again = open_session()
    until(lambda: again.workers.place == "here")
    assert line.run("workers", "start", "pc1-cpu").status == 0  # this agent hears it, not the one of before
    until(lambda: phases(again) == {"pc1-cpu": "running"}, 60)


def test_workers_that_ran_are_started_again_when_the_redis_was_killed(open_session: Callable[..., Session], line: CommandLine) -> None:
    session = open_session()
    until(lambda: session.workers.place == "here")
    for name in ("ran", "did-not"):
        session.workers.order("add", name, fields={"device": "cpu"})
    session.workers.order("stop", "did-not")
    until(lambda: phases(session) == {"ran": "running", "did-not": "stopped"}, 60)
    first = session.agent
    (running,) = line.folder.rglob("runtime.json")
    for pid in json.loads(running.read_text())["pids"]:  # the first of which would start the others again
        psutil.Process(pid).kill()
    until(lambda: session.state == "starting", 60)
    assert session.workers.starting(session.cluster(60)) == {"ran"}, "a job would wait for it from the first moment"
    until(lambda: session.agent not in (None, first), 60)
    until(lambda: session.workers.place == "here" and phases(session) == {"ran": "running", "did-not": "stopped"}, 90)
    assert session.workers.starting(session.cluster(60)) == frozenset()


def test_only_workers_on_devices_of_their_own_start_by_themselves(open_session: Callable[..., Session], line: CommandLine) -> None:
    write(line, "comfyui.json", {"auto_launch": True})
    workers = {"one": {"device": "cpu"}, "shares": {"device": "cuda:0", "engine": "builtin"}, "off": {"device": "cpu", "enabled": False}}
    write(line, "workers.json", {"auto_launch": False, "workers": workers})
    session = open_session("cuda:0")
    until(lambda: phases(session) == {"one": "running", "shares": "stopped", "off": "disabled"}, 60)


@pytest.mark.skipif(sys.platform == "win32", reason="no worker outlives its agent there")
def test_workers_go_on_where_that_is_wanted_and_the_next_session_takes_them_back(
    open_session: Callable[..., Session], line: CommandLine
) -> None:
    write(line, "comfyui.json", {"auto_launch": True, "stop_workers": False})
    write(line, "workers.json", {"workers": {"one": {"device": "cpu"}}})
    session = open_session()
    until(lambda: phases(session) == {"one": "running"}, 60)
    pid = session.workers.shown()["workers"][0]["pid"]
    session.end()
    assert psutil.pid_exists(pid)
    again = open_session()
    until(lambda: phases(again) == {"one": "running"}, 60)
    assert again.workers.shown()["workers"][0]["pid"] == pid
    write(line, "comfyui.json", {"auto_launch": True})
    again.workers._options.change("stop_workers", True)
    again.workers.options_changed()
    again.end()
    until(lambda: not children(line), 30)


def test_without_a_redis_the_reason_is_told_and_raised(open_session: Callable[..., Session]) -> None:
    session = open_session(redis_url=f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(RedisUnreachable, match="DC_REDIS_URL"):
        session.cluster(30)
    assert session.state == "failed" and "is it running" in session.reason
    assert session.workers.place == "none"


def test_after_a_fault_of_ours_the_session_comes_back(open_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch) -> None:
    connect, faults = session_module.open_cluster, [ValueError("nobody foresaw this")]

    def fail_once(*arguments: Any) -> Any:
        if faults:
            raise faults.pop()
        return connect(*arguments)

    monkeypatch.setattr(session_module, "open_cluster", fail_once)
    session = open_session()
    with pytest.raises(SessionFailed, match="nobody foresaw this"):
        session.cluster(30)
    until(lambda: session.state == "ready")
    assert session.cluster(0).client.ping()


def test_a_wrong_file_of_workers_costs_the_agent_and_not_the_cluster(open_session: Callable[..., Session], line: CommandLine) -> None:
    (line.folder / "workers.json").write_text('{"workers": {"one": {"device": "gpu"}}}')
    session = open_session()
    until(lambda: session.workers.place == "failed")
    assert "workers.one.device" in session.workers.reason and session.cluster(5).client.ping()
    assert session.workers.shown()["offers"] == []
