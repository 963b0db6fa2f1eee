"""A ComfyUI with its own ``main.py``, server and queue, started for a benchmark: HTTP, websocket, its log, its end."""
from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from benchmarks.gpu_place import Place, Seat
from benchmarks.rig import BenchmarkFailed
from distributed_comfy.engine.locate import device_environment
from distributed_comfy.messages import Prompt

START_TIMEOUT_S = 300.0
PROMPT_TIMEOUT_S = 300.0
_BIND = "import os, sys; os.sched_setaffinity(0, map(int, sys.argv[1].split(','))); os.execvp(sys.argv[2], sys.argv[2:])"


class Server:
    """A running server; `open_server` starts one."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.url = url
        self.process = process
        self.log_file = log

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process.poll() is None

    def log(self) -> str:
        """What it wrote so far."""
        return self.log_file.read_text(errors="replace")

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer to a GET, or to a POST of ``body``; JSON where it is some."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            raise BenchmarkFailed(f"{self.log_file.stem} refuses {path}: {error.read().decode()[:2000]}") from error
        return json.loads(content) if content.strip() else None

    def queue(self, prompt: Prompt, **more: Any) -> str:
        """POST a prompt as a script does; its id."""
        return str(self.ask("/prompt", {"prompt": prompt, **more})["prompt_id"])

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """What became of a prompt; None while it waits or runs."""
        entry: dict[str, Any] | None = self.ask(f"/history/{prompt_id}").get(prompt_id)
        return entry

    def wait(self, prompt_id: str, timeout_s: float = PROMPT_TIMEOUT_S) -> dict[str, Any]:
        """Its history, once it has ended."""
        return self.until(lambda: self.history(prompt_id), timeout_s, f"prompt {prompt_id}")

    def check(self, prompt_id: str, timeout_s: float = PROMPT_TIMEOUT_S) -> None:
        """Wait for its end; it must be a good one."""
        status = self.wait(prompt_id, timeout_s)["status"]
        if status["status_str"] != "success":
            raise BenchmarkFailed(f"{self.log_file.stem}: {status['messages'][-1]}\n{self.log()[-3000:]}")

    def until(self, what: Callable[[], Any], timeout_s: float, name: str) -> Any:
        """Wait for something true."""
        give_up = time.monotonic() + timeout_s
        while not (found := what()):
            if time.monotonic() > give_up or not self.alive:
                raise BenchmarkFailed(f"{self.log_file.stem}: no {name} within {timeout_s:.0f} s:\n{self.log()[-6000:]}")
            time.sleep(0.02)
        return found


class Listener:
    """A websocket client in a thread: keeps all that ComfyUI sends, in order.

    Args:
        url: of the server.
    """

    def __init__(self, url: str) -> None:
        self.client_id = uuid.uuid4().hex
        """To be given with a prompt whose events it is to get."""
        self.events: list[tuple[float, dict[str, Any]]] = []
        """When each text message came (``time.time()``), and what it was."""
        self.pictures: list[tuple[float, bytes]] = []
        """Previews."""
        self._address = f"{url}/ws?clientId={self.client_id}"
        self._connected = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen()), daemon=True)

    def __enter__(self) -> Listener:
        self._thread.start()
        if not self._connected.wait(30.0):
            raise BenchmarkFailed("the websocket does not open")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ending.set()
        self._thread.join(10.0)

    def of(self, kind: str, prompt_id: str) -> list[dict[str, Any]]:
        """The facts of all messages of a type about a prompt."""
        return [event["data"] for _, event in list(self.events) if event["type"] == kind and event["data"].get("prompt_id") == prompt_id]

    async def _listen(self) -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(self._address, max_msg_size=0) as websocket:
            self._connected.set()
            while not self._ending.is_set():
                try:
                    message = await websocket.receive(timeout=0.1)
                except asyncio.TimeoutError:
                    continue
                if message.type == aiohttp.WSMsgType.TEXT:
                    self.events.append((time.time(), json.loads(message.data)))
                elif message.type == aiohttp.WSMsgType.BINARY:
                    self.pictures.append((time.time(), message.data))
                else:
                    return


@contextmanager
def open_server(place: Place, seat: Seat, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[Server]:
    """Start one on loopback; it ends with the context, and its log is kept.

    Args:
        place: folders and interpreter.
        seat: its device, cores and threads.
        name: of its folder and log.
        arguments: more of ComfyUI's; ``--base-directory`` is among them.
        environment: more variables.
    """
    folder = place.new_folder(name)
    (folder / "web").mkdir()
    (folder / "web" / "index.html").touch()
    port, log = _free_port(), folder / f"{name}.log"
    threads = {key: str(seat.threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} if seat.threads else {}
    variables = {**os.environ, **device_environment(seat.device, os.environ), **threads, **environment}
    command = [
        place.python, str(place.comfyui / "main.py"), "--listen", "127.0.0.1", "--port", str(port),
        "--front-end-root", str(folder / "web"), "--disable-auto-launch", "--disable-api-nodes",
        "--database-url", f"sqlite:///{(folder / 'comfyui.db').as_posix()}", *([] if place.on_gpu else ["--cpu"]), *arguments,
    ]  # fmt: skip
    bound = [sys.executable, "-c", _BIND, ",".join(map(str, seat.cpus))] if seat.cpus else []
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*bound, *command], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=variables, cwd=folder, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(url, process, log)
        yield Server(url, process, log)
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.copy(log, place.folder / f"{name}.log")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < give_up:
        try:
            urllib.request.urlopen(url + "/prompt", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise BenchmarkFailed(f"{log.stem} did not start: {log.read_text(errors='replace')[-3000:]}")
