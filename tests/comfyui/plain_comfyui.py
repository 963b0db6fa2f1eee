"""Plain ComfyUI, untouched: its own server on loopback, prompts by HTTP, float32 results by TinyDump.  The reference for exactness."""
from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

START_TIMEOUT_S = 120.0
PROMPT_TIMEOUT_S = 120.0

Prompt = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class PlainComfyUI:
    """A running server; `plain_comfyui` starts one."""

    url: str
    input: Path
    output: Path
    pid: int = 0

    def execute(self, prompt: Prompt) -> dict[str, Any]:
        """Run a prompt and give its history entry; anything but success is an AssertionError with ComfyUI's words."""
        prompt_id = str(uuid.uuid4())
        self._ask("/prompt", {"prompt": prompt, "prompt_id": prompt_id})
        deadline = time.monotonic() + PROMPT_TIMEOUT_S
        while time.monotonic() < deadline:
            entry: dict[str, Any] | None = self._ask(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
                return entry
            time.sleep(0.02)
        raise AssertionError(f"ComfyUI did not finish within {PROMPT_TIMEOUT_S} s")

    def images(self, prompt: Prompt, node_id: str, slot: int = 0) -> NDArray[numpy.float32]:
        """What ``node_id`` gives at ``slot`` as [B, H, W, C] float32, bit for bit."""
        name = uuid.uuid4().hex
        dump = {"class_type": "TinyDump", "inputs": {"images": [node_id, slot], "filename_prefix": name}}
        self.execute({**prompt, f"dump-{name}": dump})
        path = self.output / f"{name}.npy"
        array: NDArray[numpy.float32] = numpy.load(path)
        path.unlink()
        return array

    def object_info(self) -> dict[str, Any]:
        """ComfyUI's own listing of its node classes."""
        return self._ask("/object_info")

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                answer: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"ComfyUI refuses {path}: {error.read().decode()[:2000]}") from error
        return answer


@contextmanager
def plain_comfyui(
    root: Path, python: str, base_directory: Path, folder: Path, *, threads: int, port: int = 0
) -> Iterator[PlainComfyUI]:
    """ComfyUI as a user would start it, on the CPU, with ``threads`` threads; input, output, temp and database in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        port = int(probe.getsockname()[1])
    command = [
        python, str(root / "main.py"), "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base_directory),
        "--input-directory", str(folder / "input"), "--output-directory", str(folder / "output"), "--temp-directory", str(folder),
        "--disable-auto-launch", "--disable-api-nodes",
        "--database-url", f"sqlite:///{(folder / 'comfyui.db').as_posix()}",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    for own in ("input", "output"):
        (folder / own).mkdir(exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
    try:
        plain = PlainComfyUI(f"http://127.0.0.1:{port}", folder / "input", folder / "output", process.pid)
        _wait_until_it_answers(plain, process, folder / "log")
        yield plain
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_until_it_answers(plain: PlainComfyUI, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            plain._ask("/prompt")
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError(f"ComfyUI did not start:\n{log.read_text(errors='replace')[-4000:]}")
