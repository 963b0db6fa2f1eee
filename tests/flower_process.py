"""A stack with secrets for tests of Flower: Redis servers with a password, real workers, ``distributed-comfy flower`` and its HTTP API."""
from __future__ import annotations

import ast
import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from tests.command_line import PROJECT, until

AUTH = "watcher:canary-flower-password"


@dataclass(frozen=True)
class GuardedServers:
    """As `tests.conftest.RedisServer`, with a password."""

    state_url: str
    blob_url: str


@contextmanager
def guarded_servers(program: str, folder: Path, password: str) -> Iterator[GuardedServers]:
    """Two servers that ask for a password."""
    with _server(program, folder / "state", password) as state, _server(program, folder / "blob", password) as blob:
        yield GuardedServers(state, blob)


@contextmanager
def _server(program: str, folder: Path, password: str) -> Iterator[str]:
    folder.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ("--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--requirepass", password)
    process = subprocess.Popen([program, *options], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        with redis.Redis.from_url(url) as client:
            until(lambda: _answers(client))
        yield url
    finally:
        process.terminate()
        process.wait(timeout=10)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@dataclass(frozen=True)
class Row:
    """A task that became an item, as Flower's API lists it."""

    job: str
    item: int
    node_class: str
    seed: str
    state: str
    worker: str
    facts: dict[str, Any]
    """The whole entry."""


class FlowerProcess:
    """The command, from its start until `stop`."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self._log = folder / "flower.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "distributed_comfy", "flower", "--port", "0"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
                env={**os.environ, "PYTHONPATH": str(PROJECT), "DC_FLOWER_BASIC_AUTH": AUTH, **environment},
            )  # fmt: skip
        self.url = until(self._announced)

    def _announced(self) -> str | None:
        assert self.process.poll() is None, self.log()
        found = re.search(r"Flower is at (\S+) and shows", self.log())
        return found[1] if found else None

    def log(self) -> str:
        """What it wrote."""
        return self._log.read_text(errors="replace")

    def page(self, path: str, auth: str = AUTH) -> str:
        """A page; raises `urllib.error.HTTPError`."""
        request = urllib.request.Request(self.url + path)
        if auth:
            request.add_header("Authorization", f"Basic {base64.b64encode(auth.encode()).decode()}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(answer.read().decode())

    def tasks(self) -> list[dict[str, Any]]:
        """Every task of the API, oldest first."""
        found: dict[str, dict[str, Any]] = json.loads(self.page("/api/tasks"))
        return sorted(found.values(), key=lambda task: task["received"] or 0)

    def rows(self, job_id: str) -> list[Row]:
        """The tasks that became items of a job."""
        return [row for task in self.tasks() if (row := _row(task)) and row.job == job_id]

    def rows_when(self, job_id: str, right: Callable[[list[Row]], bool]) -> list[Row]:
        """`rows`, once they are so: an event may be on its way for a moment."""
        deadline = time.monotonic() + 20
        while not right(rows := self.rows(job_id)):
            assert time.monotonic() < deadline, [(row.item, row.state, row.worker) for row in rows]
            time.sleep(0.1)
        return rows

    def workers(self) -> dict[str, Any]:
        """What the workers say about themselves, asked anew."""
        found: dict[str, Any] = json.loads(self.page("/api/workers?refresh=1"))
        return found

    def stop(self) -> int:
        """End it as a supervisor does; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=20)
        finally:
            self.process.kill()


def _row(task: dict[str, Any]) -> Row | None:
    facts = ast.literal_eval(task["kwargs"] or "{}")
    if "job" not in facts:
        return None
    return Row(facts["job"], facts["item"], facts["node_class"], facts["seed"], task["state"], task["worker"], task)
