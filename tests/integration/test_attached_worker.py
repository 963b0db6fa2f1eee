"""A worker for a ComfyUI that is not there: it says what it waits for, lives on, and its secrets are in no log."""
from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distributed_comfy.orchestrator.doctor.engine import check_engine
from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.settings import child_environment, read_settings
from tests.conftest import RedisServer


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nobody listens while the test runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{probe.getsockname()[1]}"


def until(what: Callable[[], bool], read: Callable[[], str], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, read()
        time.sleep(0.1)


def test_a_worker_says_which_comfyui_it_waits_for_and_stays(nobody: str, redis_server: RedisServer, tmp_path: Path) -> None:
    settings = read_settings(
        engine="attach", comfyui_url=f"http://me:secret@{nobody}", comfyui_headers="X-Key: hidden", device="cuda:3", cache_dir=tmp_path,
        redis_url=redis_server.state_url, blob_url=redis_server.blob_url, key_prefix="waits:", worker_name="w1",
    )  # fmt: skip
    log = tmp_path / "log"
    command = [sys.executable, "-m", "tests.attached_worker"]
    with log.open("wb") as output:
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=child_environment(settings))
    try:
        until(lambda: "waits for its ComfyUI" in log.read_text(), log.read_text)
        said = log.read_text()
        assert f"ComfyUI at http://me:***@{nobody} does not answer: ConnectionRefusedError" in said and "set DC_COMFYUI_URL" in said
        assert "device cuda:3: not used" in said
        engine = tmp_path / "workers" / "w1" / "engine.log"
        time.sleep(2)
        assert worker.poll() is None, "it does not end"
        assert said.count("waits for its ComfyUI") == log.read_text().count("waits for its ComfyUI") == 1, "said once"
        assert "secret" not in (both := log.read_text() + engine.read_text()) and "hidden" not in both
    finally:
        assert worker.stdin is not None
        worker.stdin.close()
        assert worker.wait(timeout=20) == 0


def test_the_doctor_says_at_once_that_the_comfyui_does_not_answer(nobody: str, redis_server: RedisServer, tmp_path: Path) -> None:
    settings = read_settings(engine="attach", comfyui_url=f"http://{nobody}", cache_dir=tmp_path)
    found = check_engine(settings, Servers(redis_server.state_url, redis_server.blob_url, embedded=False), threading.Event())
    assert found.level == "fail" and found.found.startswith(f"attach: ComfyUI at http://{nobody} does not answer")
    assert found.remedy and "a worker waits for it" in found.remedy
