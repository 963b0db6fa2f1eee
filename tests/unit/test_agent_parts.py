"""Parts of the agent that need no cluster: waits, logs, signatures, what a worker is started with, who started it."""
from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from distributed_comfy.agent.back_off import HEALTHY_S, BackOff
from distributed_comfy.agent.configuration import WorkerConfiguration, relative_to
from distributed_comfy.agent.launching import Launcher, Plan
from distributed_comfy.agent.orders import HostOrders
from distributed_comfy.agent.own_comfyui import check_comfyui
from distributed_comfy.agent.placement import Placement
from distributed_comfy.agent.processes import SurvivingProcess, Survivor, process_start
from distributed_comfy.agent.rotated_log import RotatedLog, cut_if_long, pump
from distributed_comfy.agent.up import agent_servers
from distributed_comfy.errors import WorkersFileWrong, from_wire
from distributed_comfy.host_messages import HostAnswer, HostOrder, is_signed, sign_order
from distributed_comfy.messages import dump, load
from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.orchestrator.worker_command import last_words, log_size, start_worker
from distributed_comfy.settings import Settings, read_settings
from tasks.host_consumer import HostConsumer
from tests.command_line import until


def test_waits_double_up_to_a_minute_and_begin_anew_after_a_healthy_run() -> None:
    back_off = BackOff()
    assert [back_off.after(0.5) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert back_off.after(HEALTHY_S - 1) == 60
    assert [back_off.after(HEALTHY_S), back_off.after(0.5)] == [1, 2]
    back_off.reset()
    assert back_off.after(0.5) == 1


# -- logs ----------------------------------------------------------------------------------------------------------------
def lines_of(folder: Path) -> list[bytes]:
    files = sorted(folder.glob("worker.log*"), key=lambda path: path.suffix == ".log" or -int(path.suffix[1:]))
    return b"".join(path.read_bytes() for path in files).splitlines()


def test_a_log_is_bounded_and_its_newest_lines_are_whole(tmp_path: Path) -> None:
    log = RotatedLog(tmp_path / "worker.log", limit_bytes=1000, kept=2)
    for number in range(500):
        log.write(b"line %d\n" % number)
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["worker.log", "worker.log.1", "worker.log.2"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    found = lines_of(tmp_path)
    assert found == [b"line %d" % number for number in range(500 - len(found), 500)] and len(found) > 200


@pytest.mark.parametrize("chunk", [1, 7, 999, 1000, 1001, 5000])
def test_nothing_is_lost_between_files_however_it_comes(tmp_path: Path, chunk: int) -> None:
    log = RotatedLog(tmp_path / "worker.log", limit_bytes=1000, kept=9)
    text = b"".join(b"%d %s\n" % (number, b"x" * (number % 90)) for number in range(100)) + b"y" * 2500
    for start in range(0, len(text), chunk):
        log.write(text[start : start + chunk])
    log.close()
    assert b"".join(path.read_bytes() for path in sorted(tmp_path.iterdir(), reverse=True)) == text
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())


def test_a_log_of_before_is_continued(tmp_path: Path) -> None:
    for text in (b"one\n", b"two\n"):
        log = RotatedLog(tmp_path / "worker.log")
        log.write(text)
        log.close()
    assert (tmp_path / "worker.log").read_bytes() == b"one\ntwo\n"


def test_a_log_takes_turns_while_a_program_writes_through_a_pipe(tmp_path: Path) -> None:
    script = "for n in range(20000): print('a line of the program', n, flush=n % 100 == 0)"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    thread = pump(process.stdout, RotatedLog(tmp_path / "worker.log", limit_bytes=100_000, kept=2), "one")
    assert process.wait(60) == 0
    thread.join(10)
    assert lines_of(tmp_path)[-1] == b"a line of the program 19999"
    assert 200_000 < sum(path.stat().st_size for path in tmp_path.iterdir()) <= 300_000


def test_a_log_whose_folder_is_cleared_away_comes_back_and_its_program_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    reading, writing = os.pipe()
    thread = pump(os.fdopen(reading, "rb", 0), RotatedLog(folder / "worker.log", limit_bytes=1000), "one")
    os.write(writing, b"a" * 99 + b"\n")
    until(lambda: (folder / "worker.log").stat().st_size == 100)
    shutil.rmtree(folder)
    folder.write_bytes(b"not even a folder can be made")
    for _ in range(30):
        os.write(writing, b"b" * 99 + b"\n")  # would be EPIPE if nobody drained it
        time.sleep(0.005)
    folder.unlink()
    for _ in range(30):
        os.write(writing, b"c" * 99 + b"\n")
        time.sleep(0.005)
    os.close(writing)
    thread.join(10)
    assert (folder / "worker.log").read_bytes().endswith(b"c" * 99 + b"\n")


def test_logs_and_their_folders_are_for_this_user_alone(tmp_path: Path) -> None:
    (tmp_path / "old.log").touch(mode=0o644)
    before = os.umask(0o022)
    try:
        for path in (tmp_path / "workers" / "one" / "worker.log", tmp_path / "old.log"):
            RotatedLog(path).close()
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "workers" / "one").stat().st_mode) == 0o700
    finally:
        os.umask(before)


def test_a_worker_that_was_not_written_down_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "log").open("wb") as output:
        child = start_worker("one", dict(os.environ), output, outlives=True)
    assert child.stdin is not None
    assert child.poll() is None and not (tmp_path / "log").read_bytes()
    child.stdin.close()  # as the kernel does it for an agent that is killed
    assert child.wait(20) == 1 and not (tmp_path / "log").read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        SurvivingProcess.start(Survivor("two", 0, "", "here"), dict(os.environ), tmp_path / "two", tmp_path / "two.json")
    until(lambda: not [one for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE and "two" in one.cmdline()])


@pytest.mark.parametrize("verb", ["drain", "resume", "clear-memory"])
def test_orders_that_ask_a_server_hold_no_lock_while_it_hangs(verb: str) -> None:
    asked, answer = threading.Event(), threading.Event()

    def hang(*_: object) -> bool:
        asked.set()
        return answer.wait(20)

    table = SimpleNamespace(drain=hang, free=hang)
    agent: Any = SimpleNamespace(
        lock=threading.RLock(), host="pc1", remote_configuration=True, cluster=SimpleNamespace(jobs=table, workers=table),
        worker=lambda name: None, tell=lambda: None,
    )  # fmt: skip
    order = sign_order(HostOrder("1", verb, "one", {}, 5), "secret")  # type: ignore[arg-type]
    ordering = threading.Thread(target=HostOrders(agent, "secret").obey, args=(order,))
    ordering.start()
    assert asked.wait(20) and agent.lock.acquire(timeout=5)
    agent.lock.release()
    answer.set()
    ordering.join(20)


@pytest.mark.parametrize(("verb", "worker", "new"), [("add", "gpu2", ""), ("edit", "pc2-cpu", "foo"), ("edit", "pc2-cpu", "pc20-cpu")])
def test_an_invited_host_gives_no_worker_a_name_that_nobody_would_see(verb: str, worker: str, new: str, tmp_path: Path) -> None:
    agent: Any = SimpleNamespace(
        lock=threading.RLock(), host="pc2", remote_configuration=True, settings=Settings(host="pc2"), servers=SimpleNamespace(invited_to="dc://x"),
        configuration=SimpleNamespace(workers={}), worker=lambda name: SimpleNamespace(process=None, wanted=False),
        file=SimpleNamespace(path=tmp_path / "workers.json"),
    )  # fmt: skip
    order = sign_order(HostOrder("1", verb, worker, {"fields": {}, "name": new}, 5), "secret")  # type: ignore[arg-type]
    with pytest.raises(WorkersFileWrong) as refused:
        HostOrders(agent, "secret").obey(order)
    assert refused.value.fields["place"] == f"workers.{worker}.name" and "must begin with pc2-" in refused.value.fields["reason"]


@pytest.mark.parametrize(
    ("field", "path", "words"),
    [
        ("comfyui_path", "~nobody-such/ComfyUI", "is not ComfyUI's folder"),
        ("comfyui_path", "n" * 300, "File name too long"),
        ("comfyui_path", "/no\0where", "is not ComfyUI's folder"),
        ("comfyui_python", "~nobody-such/python", "is not a program"),
        ("comfyui_python", "/" + "n" * 300, "is not a program"),
    ],
)
def test_a_path_that_can_be_none_is_told_of_its_field(tmp_path: Path, field: str, path: str, words: str) -> None:
    with pytest.raises(WorkersFileWrong, match=words) as refused:
        check_comfyui("pc1-cpu", {field: path}, Settings(host="pc1"), tmp_path)
    assert refused.value.fields["place"] == f"workers.pc1-cpu.{field}"


def test_a_worker_whose_folder_is_in_the_home_of_nobody_can_be_launched(tmp_path: Path) -> None:
    assert relative_to(WorkerConfiguration(comfyui_path="~nobody-such/x"), tmp_path).comfyui_path == str(tmp_path / "~nobody-such/x")
    assert relative_to(WorkerConfiguration(comfyui_path="~/x"), tmp_path).comfyui_path == str(Path.home() / "x")


def test_an_order_that_fails_in_a_way_that_nobody_foresaw_is_answered() -> None:
    def fail(_order: HostOrder) -> HostAnswer:
        raise OSError("File name too long")

    kept: list[HostAnswer] = []
    cluster: Any = SimpleNamespace(hosts=SimpleNamespace(answered=lambda *_: None, now_ms=lambda: 1, answer=kept.append))
    assert HostConsumer(cluster, "pc1", fail).take(dump(HostOrder("1", "add", "one", {}, 5))) == "refused"
    (answer,) = kept
    assert answer.order_id == "1" and answer.error is not None and "OSError: File name too long" in from_wire(answer.error).fields["reason"]


def test_a_file_that_others_write_to_is_cut_in_place(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    with path.open("ab", buffering=0) as engine:
        for number in range(3):
            engine.write(b"%d" % number * 2000)
            assert cut_if_long(path, limit_bytes=1000) and not cut_if_long(path, limit_bytes=1000)
        engine.write(b"goes on")
    assert path.read_bytes() == b"goes on"
    assert [(tmp_path / f"engine.log.{number}").read_bytes()[:1] for number in (1, 2)] == [b"2", b"1"]
    assert not cut_if_long(tmp_path / "none.log", limit_bytes=1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        ("2026-11-28 20:05:25,739 INFO    worker pc1-cpu starts\n", ""),
        ("error: DC_DEVICE: must be cpu\nTraceback\n", "DC_DEVICE: must be cpu"),
        ("2026-11-28 20:05:25,739 INFO    starts\nImportError: no torch\n", "ImportError: no torch"),
        ("2026-11-28 20:05:25,739 ERROR   no engine\n2026-11-28 20:05:26,010 WARNING pc1-cpu is gone\n", "no engine"),
        (
            '{"time": "t", "level": "ERROR", "logger": "x", "message": "no engine"}\n'
            '{"time": "t", "level": "INFO", "logger": "x", "message": "it ends"}\n', "no engine",
        ),
        ("100%|████| 4/4 [00:00<00:00,  9.24it/s]2026-11-28 20:05:25,739 INFO    root: Requested to load TAESD\n", ""),
        (" 75%|███ | 3/4 [00:00<00:00]\rTypeError: no such step\n100%|████| 4/4 [00:00<00:00]\nhello\n", "TypeError: no such step"),
        ("100%|████| 4/4 [00:00<00:00]2026-11-28 20:05:25,739 ERROR   root: no disk\n", "no disk"),
        ("usage: main.py\nmain.py: error: unrecognized arguments: --fastt\n", "main.py: error: unrecognized arguments: --fastt"),
    ],
)
def test_a_worker_that_ended_has_last_words(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "worker.log").write_text(text)
    assert last_words(tmp_path) == words


def test_the_last_words_of_an_earlier_life_are_not_those_of_this_one(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    assert log_size(tmp_path) == 0
    path.write_text("Traceback\nValueError: of the life before\n")
    before = log_size(tmp_path)
    with path.open("a") as log:
        log.write("2026-11-28 20:05:25,739 INFO    worker pc1-cpu starts\n")
    assert last_words(tmp_path) == "ValueError: of the life before" and last_words(tmp_path, before) == ""
    with path.open("a") as log:
        log.write("ImportError: of this life\n")
    assert last_words(tmp_path, before) == "ImportError: of this life"
    path.write_text("error: short\n")
    assert last_words(tmp_path, before) == "short", "the log was begun anew"


# -- orders --------------------------------------------------------------------------------------------------------------
def test_a_signature_holds_for_this_order_and_this_secret() -> None:
    order = sign_order(HostOrder("1", "add", "a", {"fields": {"device": "cpu"}}, 5), "secret")
    assert is_signed(order, "secret") and is_signed(load(HostOrder, dump(order)), "secret")
    assert not is_signed(order, "other")
    for changed in (replace(order, worker="b"), replace(order, arguments={}), replace(order, order_id="2"), replace(order, signature="")):
        assert not is_signed(changed, "secret")


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("redis://127.0.0.1:6379/0", True),
        ("redis://:secret@localhost/0", True),
        ("unix:///run/redis.sock?db=1", True),
        ("rediss://[::1]:6380/0", True),
        ("redis://10.0.0.7:6379/0", False),
        ("rediss://w:secret@gpu-host/0", False),
    ],
)
def test_a_redis_is_known_as_this_hosts_own(url: str, local: bool) -> None:
    assert Servers(url, url, embedded=False).local is local
    assert not Servers(url, url, embedded=False, invited_to="wss://gpu.example.org").local
    with agent_servers(read_settings(redis_url=url, allow_plaintext=True), joined="wss://gpu.example.org") as servers:
        assert not servers.local


# -- starting ------------------------------------------------------------------------------------------------------------
def launcher(tmp_path: Path, *, embedded: bool = False, **settings: object) -> Launcher:
    servers = Servers("redis://here:1/0", "redis://here:2/0", embedded=embedded)
    return Launcher(Settings(cache_dir=tmp_path, **settings), servers, tmp_path, tmp_path / "agent")  # type: ignore[arg-type]


def test_a_worker_gets_its_configuration_its_place_and_the_agents_settings(tmp_path: Path) -> None:
    worker = WorkerConfiguration(
        device="cuda:0,1", engine="comfyui", comfyui_path="Comfy", comfyui_args=("--cache-lru", "a b"), environment={"HF_TOKEN": "t"},
        tags=("big",),
    )  # fmt: skip
    found = launcher(tmp_path, slots=3).environment(Plan(worker, Placement((0, 1, 8), 4), debug=True))
    expected = {
        "DC_DEVICE": "cuda:0,1", "DC_ENGINE": "comfyui", "COMFYUI_PATH": str(tmp_path / "Comfy"), "DC_COMFYUI_ARGS": "--cache-lru 'a b'",
        "HF_TOKEN": "t", "DC_WORKER_TAGS": "big", "DC_CORES": "0-1,8", "DC_THREADS": "4", "DC_SLOTS": "3", "DC_LOG_LEVEL": "DEBUG",
        "DC_STARTED_BY": "agent", "DC_REDIS_URL": "redis://here:1/0", "DC_BLOB_URL": "redis://here:2/0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }  # fmt: skip
    assert {name: found.get(name) for name in expected} == expected


def test_a_worker_that_outlives_its_agent_owns_the_embedded_redis_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DC_REDIS_URL", raising=False)
    plan = Plan(WorkerConfiguration(), Placement(), debug=False)
    outliving = replace(plan, outlives=True)
    assert "DC_REDIS_URL" not in launcher(tmp_path, embedded=True).environment(outliving)
    assert "DC_REDIS_URL" in launcher(tmp_path, embedded=True).environment(plan)
    assert "DC_REDIS_URL" in launcher(tmp_path).environment(outliving)


def test_a_process_is_told_from_another_one_with_its_pid() -> None:
    assert process_start(os.getpid()) == process_start(os.getpid()) != None  # noqa: E711
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_start(child.pid)
    child.kill()
    child.wait()
    assert process_start(child.pid) is None


@pytest.mark.parametrize(
    ("environment", "starter"),
    [
        ({}, "hand"),
        ({"container": "podman"}, "container"),
        ({"INVOCATION_ID": "1"}, "systemd"),
        ({"INVOCATION_ID": "1", "SYSTEMD_EXEC_PID": str(os.getpid())}, "systemd"),
        ({"INVOCATION_ID": "1", "SYSTEMD_EXEC_PID": "1"}, "hand"),  # a terminal that is a service hands it on
        ({"INVOCATION_ID": "1", "DC_STARTED_BY": "agent"}, "agent"),
    ],
)
def test_who_started_a_worker_is_seen_by_its_surroundings(
    environment: dict[str, str], starter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("INVOCATION_ID", "SYSTEMD_EXEC_PID", "container"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.path.exists", lambda path: False)
    assert Settings().starter == starter


def test_a_closed_pipe_ends_no_thread_that_has_something_else_to_do() -> None:
    """Rich would end it by SystemExit: the one that ends a worker whose agent was killed says so first."""
    script = """
import logging, os, sys, threading
from distributed_comfy.cli.logs import set_up_logging
from distributed_comfy.cli.output import Output
from distributed_comfy.settings import read_settings
set_up_logging(read_settings(), Output(), audience="supervisor")
sys.stdin.read()
def work():
    logging.info("whoever started it is gone")
    os._exit(7)
threading.Thread(target=work).start()
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdin is not None and process.stdout is not None
    process.stdout.close()
    process.stdin.close()
    assert process.wait(30) == 7
