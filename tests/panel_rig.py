"""The panel as a user has it: `serve` and `up` as processes, an embedded Redis, workers on the CPU; asked over HTTP.

Every answer and every event is compared with openapi.json on its way to the test.
"""
from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests import panel_contract
from tests.command_line import CommandLine, until
from tests.panel_contract import HEADER, PREFIX

HOST = "pc1"


@dataclass(frozen=True)
class Answer:
    """Of one request."""

    status: int
    headers: Message
    content: bytes

    @property
    def json(self) -> Any:
        """What it says."""
        return json.loads(self.content)

    @property
    def error(self) -> dict[str, Any]:
        """Of a failure."""
        found: dict[str, Any] = self.json["error"]
        return found


class Page:
    """Asks one panel, as a page does.

    Args:
        url: of the server.
        token: its.
    """

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url, token
        self.address = urlsplit(url).netloc

    def ask(self, method: str, path: str, body: Any = None, *, timeout_s: float = 60.0, **headers: str) -> Answer:
        """Any request; names of headers with ``_`` for ``-``, empty ones are left out."""
        given = {HEADER: self.token, **{name.replace("_", "-"): value for name, value in headers.items()}}
        content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(self.address, timeout=timeout_s)
        try:
            full = path if path.startswith("/") and path.startswith(PREFIX) else PREFIX + path
            connection.request(method, full, content, {name: value for name, value in given.items() if value})
            response = connection.getresponse()
            answer = Answer(response.status, response.headers, response.read())
        finally:
            connection.close()
        panel_contract.check_answer(method, full, answer.status, answer.headers.get("Content-Type", ""), answer.content)
        return answer

    def get(self, path: str, **headers: str) -> Any:
        """What is read; must succeed."""
        answer = self.ask("GET", path, **headers)
        assert answer.status == 200, answer.content
        return answer.json

    def post(self, path: str, body: Any = None, *, method: str = "POST", timeout_s: float = 60.0) -> Any:
        """What is done; must succeed."""
        answer = self.ask(method, path, body, timeout_s=timeout_s)
        assert answer.status == 200, answer.content
        return answer.json

    def state(self) -> dict[str, Any]:
        """Everything."""
        found: dict[str, Any] = self.get("/state")
        return found

    def worker(self, name: str) -> dict[str, Any] | None:
        """One worker, where it is there."""
        found: dict[str, Any] | None = self.state()["workers"].get(name)
        return found

    def wait_worker(self, name: str, so: Callable[[dict[str, Any]], Any], timeout_s: float = 60.0) -> dict[str, Any]:
        """The worker once something is so of it."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.worker(name)
            if found is not None and so(found):
                return found
            assert time.monotonic() < deadline, f"{name} is {found}"
            time.sleep(0.1)

    @contextmanager
    def events(self, path: str = "/events") -> Iterator[Events]:
        """A stream of server-sent events, followed while the context lasts."""
        stream = Events(self, path)
        try:
            yield stream
        finally:
            stream.close()


class Events:
    """Follows one stream, and keeps the state that its events describe, as the page does."""

    def __init__(self, page: Page, path: str) -> None:
        self.told: list[tuple[str, Any, float]] = []
        """Name, data, and when it came."""
        self.state: dict[str, Any] = {}
        self._connection = http.client.HTTPConnection(page.address, timeout=30)
        self._connection.request("GET", PREFIX + path, headers={HEADER: page.token})
        self._response = self._connection.getresponse()
        assert self._response.status == 200, self._response.read()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait(self, so: Callable[[dict[str, Any]], Any], timeout_s: float = 60.0) -> Any:
        """Until the state is as wanted."""

        def look() -> Any:
            assert self.failure is None, self.failure
            return self.state and so(self.state)

        return until(look, timeout_s)

    def close(self) -> None:
        """Leave."""
        if self._connection.sock is not None:
            with suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)  # closed alone it lives on while its thread waits for the next word
        self._response.close()
        self._connection.close()
        self._thread.join(5)

    def _read(self) -> None:
        name = ""
        try:
            for raw in self._response:
                line = raw.decode().rstrip("\n")
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    self._hear(name, json.loads(line[6:]))
        except (OSError, ValueError, http.client.HTTPException, AttributeError):  # closed
            pass
        except AssertionError as error:  # an event is none that openapi.json has
            self.failure = error

    def _hear(self, name: str, value: Any) -> None:
        panel_contract.check_event(name, value)
        if name == "snapshot":
            self.state = value
        elif name == "change":
            self.state = merged(self.state, value)
        self.told.append((name, value, time.monotonic()))


def merged(state: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """A state with a change in it."""
    assert change["revision"] > state["revision"]
    after = {**state, **{name: value for name, value in change.items() if name not in ("hosts", "workers", "jobs", "items")}}
    for table in ("hosts", "workers", "jobs"):
        after[table] = _rows(state[table], change.get(table, {}))
    after["items"] = {**state["items"]}
    for job_id, rows in change.get("items", {}).items():
        after["items"][job_id] = _rows(state["items"].get(job_id, {}), rows)
    return after


def _rows(before: dict[str, Any], rows: dict[str, Any]) -> dict[str, Any]:
    return {name: row for name, row in {**before, **rows}.items() if row is not None}


class PanelRig:
    """One host with `serve`, and with `up` once that is wanted.

    Args:
        folder: for everything.
        environment: further variables of all processes.
    """

    def __init__(self, folder: Path, **environment: str) -> None:
        usual = {
            "DC_HOST": HOST, "DC_ENGINE": "builtin", "DC_DEVICE": "cpu", "DC_CONFIG": os.devnull, "DC_REDIS_URL": "", "DC_BLOB_URL": "",
            "DC_WORKERS_FILE": str(folder / "workers.json"), "DC_STARTED_BY": "hand", "DC_LEASE_TTL_S": "3", "DC_RENEW_INTERVAL_S": "0.5",
            "DC_STATUS_INTERVAL_S": "0.5",
        }  # fmt: skip
        self.line = CommandLine(folder, **{**usual, **environment})
        self.folder = folder
        self._started: list[subprocess.Popen[bytes]] = []
        self.serve = self.start("serve.log", "serve", "--port", "0")
        self.page = Page(*until(self._announced))

    def start(self, log: str, *arguments: str) -> subprocess.Popen[bytes]:
        """A command that stays."""
        with (self.folder / log).open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "distributed_comfy", *arguments], stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                cwd=self.folder, env=self.line.environment, start_new_session=True,
            )  # fmt: skip
        self._started.append(process)
        return process

    def up(self, **workers: Any) -> subprocess.Popen[bytes]:
        """Be the agent, with these workers."""
        if workers:
            named = {name.replace("_", "-"): each for name, each in workers.items()}
            (self.folder / "workers.json").write_text(json.dumps({"workers": named}))
        return self.start("up.log", "up")

    def said(self, log: str = "serve.log") -> str:
        """What a command said."""
        path = self.folder / log
        return path.read_text(errors="replace") if path.exists() else ""

    def end(self, process: subprocess.Popen[bytes]) -> int:
        """As a supervisor does it."""
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        try:
            return process.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise

    def close(self) -> None:
        """End everything, the embedded Redis last."""
        for process in reversed(self._started):
            self.end(process)

    def _announced(self) -> tuple[str, str] | None:
        assert self.serve.poll() is None, self.said()
        found = re.search(r"^Panel: (http\S+?)/distributed/v2/ui/ ", self.said(), re.M)
        return (found[1], self.line.run("comfyui", "token").out.strip()) if found else None


@contextmanager
def panel_rig(folder: Path, **environment: str) -> Iterator[PanelRig]:
    """A `PanelRig` for as long as the context lasts."""
    rig = PanelRig(folder, **environment)
    try:
        yield rig
    finally:
        rig.close()
