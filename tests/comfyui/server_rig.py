"""A real ComfyUI on the CPU with our pack, as a user has it: HTTP and websocket, its log, its end by pid.

Its interpreter is an environment of its own over that of ComfyUI (`pack_python`): as after `pip install distributed-comfy` there, with
nothing written into ComfyUI's.
"""
from __future__ import annotations

import asyncio
import configparser
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import psutil

from distributed_comfy.comfyui.installing import find_place, install_door
from distributed_comfy.file_lock import FileLock
from tests.comfyui.comfy_process import Comfy
from tests.command_line import PROJECT, CommandLine

START_TIMEOUT_S = 180.0
_FEWER_COLLECTIONS = "import atexit, gc; gc.set_threshold(100_000); atexit.register(gc.freeze)"
"""Line of a ``.pth`` file: start and end of ComfyUI then cost four seconds instead of seven; the rest were looks for garbage."""
PROMPT_TIMEOUT_S = 120.0

Prompt = dict[str, dict[str, Any]]
Event = dict[str, Any]


def pack_python(comfy: Comfy) -> str:
    """An interpreter that has what ComfyUI's has, what this project needs, and this project; made once, in the project's ``.venv``."""
    needed = _requirements()
    mark = hashlib.sha256(json.dumps([comfy.python, str(PROJECT), needed, _FEWER_COLLECTIONS]).encode()).hexdigest()[:12]
    folder = PROJECT / ".venv" / f"comfyui-{mark}"
    with FileLock(PROJECT / ".venv" / "comfyui.lock"):
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _make_environment(comfy, folder, needed)
            (folder / "ready").touch()
    return str(_interpreter(folder))


def _requirements() -> list[str]:
    setup = configparser.ConfigParser()
    setup.read(PROJECT / "setup.cfg", encoding="utf-8")
    lines = setup["options"]["install_requires"].splitlines()
    return sorted({line.strip() for line in lines if line.strip() and not line.strip().startswith("#")})


def _make_environment(comfy: Comfy, folder: Path, needed: list[str]) -> None:
    subprocess.run([comfy.python, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=START_TIMEOUT_S)
    libraries = [_libraries(comfy.python), str(PROJECT), _FEWER_COLLECTIONS]
    Path(_libraries(str(_interpreter(folder))), "comfyui-and-project.pth").write_text("\n".join(libraries) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(_interpreter(folder)), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *needed], check=True, timeout=600)


def _interpreter(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _libraries(python: str) -> str:
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return subprocess.run(ask, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


class ComfyServer:
    """A ComfyUI with the pack in ``line.folder``; `start` starts it, `close` ends whatever is left.

    Args:
        comfy: the tree.
        python: see `pack_python`.
        models: a base directory whose models and node packs are copied (`make_base_directory`).
        line: commands and processes of this test; runtime, configuration and home folders are its own.
        door: whether the pack's door stands in custom_nodes.
    """

    def __init__(self, comfy: Comfy, python: str, models: Path, line: CommandLine, *, door: bool = True) -> None:
        self.comfy = comfy
        self.python = python
        self.line = line
        self.base = line.folder / "base"
        self.log_file = line.folder / "comfyui.log"
        self.environment = {name: value for name, value in line.environment.items() if name != "PYTHONPATH"}
        self.environment.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", DC_THREADS="1", PYTHONUNBUFFERED="1")
        self.url = ""
        self.process: subprocess.Popen[bytes] | None = None
        shutil.copytree(models, self.base)
        if door:
            install_door(find_place(self.base, comfy.root), str(PROJECT))

    # -- the process -----------------------------------------------------------------------------------------------------
    def start(self, *arguments: str, wait: bool = True, port: int = 0, **environment: str) -> ComfyServer:
        """Start it as a user would, and wait until it answers.

        Args:
            arguments: more of ComfyUI's.
            wait: otherwise `wait_until_it_answers` is called later.
            port: 0: a free one.
            environment: more variables, of `distributed_comfy.settings` for example.
        """
        from tests.conftest import free_port

        port = port or free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [
            self.python, str(self.comfy.root / "main.py"), "--cpu", "--listen", "127.0.0.1", "--port", str(port),
            "--base-directory", str(self.base), "--disable-auto-launch", "--disable-api-nodes",
            "--database-url", f"sqlite:///{(self.line.folder / 'comfyui.db').as_posix()}", *arguments,
        ]  # fmt: skip
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.line.folder,
                env={**self.environment, **environment}, start_new_session=True,
            )  # fmt: skip
        if wait:
            self.wait_until_it_answers()
        return self

    def wait_until_it_answers(self) -> None:
        """Until it takes prompts."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.running.poll() is None and time.monotonic() < deadline:
            try:
                self.get("/prompt")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise AssertionError(f"ComfyUI did not start:\n{self.log()[-6000:]}")

    @property
    def running(self) -> subprocess.Popen[bytes]:
        """The process."""
        assert self.process is not None, "not started"
        return self.process

    def stop(self, number: int = signal.SIGINT, timeout_s: float = 60.0) -> int:
        """End it, by Ctrl-C if nothing else is said; its exit status."""
        self.running.send_signal(number)
        return self.running.wait(timeout_s)

    def kill(self) -> None:
        """As the system does that is out of memory."""
        self.running.kill()
        self.running.wait()

    def close(self) -> None:
        """End it, and kill what it has left."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
        for process in self.line.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass

    def log(self) -> str:
        """What it wrote, since its first start."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def until(self, what: Callable[[], Any], timeout_s: float = START_TIMEOUT_S) -> Any:
        """Wait for something true; else the log tells what happened."""
        deadline = time.monotonic() + timeout_s
        while not (found := what()):
            assert time.monotonic() < deadline, f"not within {timeout_s} s; the log ends:\n{self.log()[-6000:]}"
            time.sleep(0.05)
        return found

    # -- HTTP ------------------------------------------------------------------------------------------------------------
    def get(self, path: str) -> Any:
        """JSON that a path gives."""
        return self.ask("GET", path)[1]

    def post(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and answer (JSON where it is some) of a POST."""
        return self.ask("POST", path, {} if body is None else body, **headers)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and answer of any request; header names with ``_`` for ``-``."""
        given = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, content, given, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, _json_or_text(response.read())
        except urllib.error.HTTPError as error:
            return error.code, _json_or_text(error.read())

    def status(self) -> dict[str, Any]:
        """What the pack says about itself."""
        found: dict[str, Any] = self.get("/distributed_comfy/status")
        return found

    def wait_ready(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """The status, once the pack has its cluster."""
        found: dict[str, Any] = self.until(lambda: (status := self.status())["session"] == "ready" and status, timeout_s)
        return found

    # -- prompts ---------------------------------------------------------------------------------------------------------
    def queue(self, prompt: Prompt, **more: Any) -> str:
        """POST a prompt as a script does; its id."""
        status, answer = self.post("/prompt", {"prompt": prompt, **more})
        assert status == 200, answer
        return str(answer["prompt_id"])

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """What became of a prompt; None while it waits or runs."""
        entry: dict[str, Any] | None = self.get(f"/history/{prompt_id}").get(prompt_id)
        return entry

    def wait(self, prompt_id: str, timeout_s: float = PROMPT_TIMEOUT_S) -> dict[str, Any]:
        """Its history, once it has ended."""
        entry: dict[str, Any] = self.until(lambda: self.history(prompt_id), timeout_s)
        return entry

    def execute(self, prompt: Prompt, **more: Any) -> dict[str, Any]:
        """Run a prompt to its success."""
        entry = self.wait(self.queue(prompt, **more))
        assert entry["status"]["status_str"] == "success", f"{entry['status']['messages']}\n{self.log()[-4000:]}"
        return entry

    def listen(self, client_id: str = "") -> Listener:
        """A websocket client; a context that ends with it."""
        return Listener(self.url, client_id or uuid.uuid4().hex)


class Listener:
    """A websocket client in a thread: keeps all that ComfyUI sends, in order.

    Args:
        url: of the server.
        client_id: to be given with a prompt whose events it is to get.
    """

    def __init__(self, url: str, client_id: str) -> None:
        self.client_id = client_id
        self.events: list[Event] = []
        """Text messages as they came: ``type`` and ``data``."""
        self.binary: list[bytes] = []
        """Previews and the like."""
        self._address = f"{url}/ws?clientId={client_id}"
        self._connected = threading.Event()
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen()), daemon=True)

    def __enter__(self) -> Listener:
        self._thread.start()
        assert self._connected.wait(30.0), "the websocket does not open"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ending.set()
        self._thread.join(10.0)

    def send(self, message: Event) -> None:
        """Say something, as ComfyUI's page does when it opens; before anything else."""
        assert self._socket is not None and self._loop is not None
        asyncio.run_coroutine_threadsafe(self._socket.send_json(message), self._loop).result(10.0)

    def of(self, *kinds: str, prompt_id: str = "") -> list[Event]:
        """Events of these types so far, of one prompt if it is named."""
        return [
            event for event in list(self.events)
            if event["type"] in kinds and (not prompt_id or event["data"].get("prompt_id") == prompt_id)
        ]  # fmt: skip

    def texts(self, node_id: str) -> list[str]:
        """Lines of text that were sent for a node, in order."""
        mark = b"\0\0\0\3" + len(node_id).to_bytes(4, "big") + node_id.encode()
        return [message.removeprefix(mark).decode() for message in list(self.binary) if message.startswith(mark)]

    def wait(self, kind: str, also: Callable[[Event], Any] = bool, timeout_s: float = PROMPT_TIMEOUT_S) -> Event:
        """The first event of a type for which ``also`` is true, which may have come already."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = next((event for event in self.of(kind) if also(event)), None)
            if found is not None:
                return found
            assert time.monotonic() < deadline, f"no {kind} within {timeout_s} s; there were {[event['type'] for event in self.events]}"
            time.sleep(0.02)

    def wait_end(self, prompt_id: str, timeout_s: float = PROMPT_TIMEOUT_S) -> Event:
        """What most scripts wait for: ``executing`` with no node."""
        return self.wait(
            "executing", lambda event: event["data"]["node"] is None and event["data"].get("prompt_id") == prompt_id, timeout_s
        )

    async def _listen(self) -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(self._address, max_msg_size=0) as socket:
            self._socket, self._loop = socket, asyncio.get_running_loop()
            self._connected.set()
            while not self._ending.is_set():
                try:
                    message = await socket.receive(timeout=0.1)
                except asyncio.TimeoutError:
                    continue
                if message.type == aiohttp.WSMsgType.TEXT:
                    self.events.append(json.loads(message.data))
                elif message.type == aiohttp.WSMsgType.BINARY:
                    self.binary.append(message.data)
                else:
                    return


def _json_or_text(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace")
