"""What all tests share: a private real Redis, and the rule that a missing service skips here and fails in CI.

`redis_url` and `blob_url` give a test two empty databases; `redis_server` is the pair of servers behind them, one for the session.
`cluster_servers` is a second pair, which no test empties, for the clusters that live as long as the session.
"""
from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import pytest
import redis

from tests.run_order import SharingScheduling, longest_first

IN_CI = os.environ.get("CI", "").lower() in ("1", "true")
START_TIMEOUT_S = 10.0
os.environ["DC_CONFIG"] = os.devnull  # a file of settings that somebody has at home is not for tests
os.environ["DC_SHARED_MEMORY"] = "0"  # results go through the blob Redis, as from other hosts, unless a test says otherwise

pytest_plugins = ("tests.cluster_fixtures",)

hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=4000, print_blob=True)  # `make fuzz` loads it
hypothesis.settings.load_profile("ci" if IN_CI else "here")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell gives it to what runs in its background; every process that a test ends by Ctrl-C would inherit it, and go on.
    signal.signal(signal.SIGINT, signal.default_int_handler)


gc.disable()  # until all tests are collected: what that makes stays, and looks through it take a third of its time


def pytest_collection_finish() -> None:
    """Spare what was made so far from every later collection of garbage, too."""
    gc.freeze()
    gc.enable()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores for us: tests of whole clusters wait most of their time.  Another one for those with a real ComfyUI."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 7) + (1 if "not comfyui " in config.getoption("markexpr") + " " else 2)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharingScheduling | None:
    """Of ``--dist loadfile``, which knows nothing of what files share."""
    return SharingScheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the files; alone, the order is that of the folders."""
    if hasattr(config, "workerinput"):
        longest_first(items)


@dataclass(frozen=True)
class RedisServer:
    """Two servers on loopback, as in production: state with an append-only file, blobs without any persistence."""

    state_url: str
    blob_url: str
    program: str
    """Absolute path of the server program, for tests that start one of their own."""


@pytest.fixture(scope="session")
def require_service() -> Callable[[str, str], NoReturn]:
    """``require_service(what, remedy)``: call it where a service is missing; skips the test here and fails it in CI."""
    return missing_service


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The session's private servers."""
    with _pair(tmp_path_factory.mktemp("redis")) as servers:
        yield servers


@pytest.fixture(scope="session")
def cluster_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Servers that no test empties."""
    with _pair(tmp_path_factory.mktemp("cluster-redis")) as servers:
        yield servers


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """URL of the state server, empty."""
    return _emptied(redis_server.state_url)


@pytest.fixture
def blob_url(redis_server: RedisServer) -> str:
    """URL of the blob server, empty."""
    return _emptied(redis_server.blob_url)


def missing_service(what: str, remedy: str) -> NoReturn:
    """Skip the test, or fail it in CI, where everything must be there."""
    line = f"needs {what}; {remedy}"
    if IN_CI:
        pytest.fail(line, pytrace=False)
    pytest.skip(line)


def _emptied(url: str) -> str:
    with redis.Redis.from_url(url) as client:
        client.flushall()
    return url


@contextmanager
def _pair(folder: Path) -> Iterator[RedisServer]:
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        missing_service("a redis-server or valkey-server in PATH", "install one (Debian, Ubuntu: apt-get install redis-server)")
    program = os.path.abspath(program)
    with running_redis(program, folder / "state", "--appendonly", "yes") as state, running_redis(program, folder / "blob") as blob:
        yield RedisServer(state, blob, program)


@contextmanager
def running_redis(program: str, folder: Path, *options: str, port: int = 0) -> Iterator[str]:
    """One server in ``folder`` on a loopback port, a free one if none is named; gives its URL."""
    folder.mkdir()
    port = port or free_port()
    fixed = ("--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--maxmemory-policy", "noeviction")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, *fixed, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        url = f"redis://127.0.0.1:{port}/0"
        wait_until_it_answers(url, process, folder / "log")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=START_TIMEOUT_S)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    with redis.Redis.from_url(url) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                client.ping()
                return
            except redis.ConnectionError:  # not listening yet, or still loading
                time.sleep(0.02)
    pytest.fail(f"redis-server did not start: {log.read_text(errors='replace')[-500:]}", pytrace=False)
