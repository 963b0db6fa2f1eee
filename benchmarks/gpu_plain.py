"""The control: plain ComfyUI, its own ``main.py`` and queue, prompts by HTTP, watched through the trace alone.

Nothing asks the server while it works: an answer would take time from its sampling thread.
"""
from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu_place import Place
from benchmarks.gpu_trace import Trace
from benchmarks.rig import BenchmarkFailed
from distributed_comfy.engine.locate import device_environment
from distributed_comfy.messages import Prompt

START_TIMEOUT_S = 300.0
PROMPT_TIMEOUT_S = 300.0


class Plain:
    """A running server; `open_plain` starts one."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], trace: Trace, output: Path) -> None:
        self.trace = trace
        self.pid = process.pid
        self._url = url
        self._process = process
        self._output = output

    def run(self, prompts: Sequence[Prompt]) -> tuple[float, float]:
        """Post prompts at once and wait until the last has ended: when the first was posted, and when that was.

        Raises:
            BenchmarkFailed: one was refused, failed or did not end.
        """
        began = time.time()
        ids = [self._ask("/prompt", {"prompt": prompt})["prompt_id"] for prompt in prompts]
        limit_s = PROMPT_TIMEOUT_S
        ended = self.trace.wait("prompt:end", len(prompts), began, timeout_s=limit_s, alive=lambda: self._process.poll() is None)
        for prompt_id in ids:
            self._check(prompt_id)
        return began, ended.at

    def clear_output(self) -> int:
        """Delete what was saved; how many bytes that was."""
        files = list(self._output.rglob("*.png"))
        size = sum(path.stat().st_size for path in files)
        for path in files:
            path.unlink()
        return size

    def _check(self, prompt_id: str) -> None:
        """The history appears just after the prompt's end."""
        give_up = time.monotonic() + 10
        while not (entry := self._ask(f"/history/{prompt_id}").get(prompt_id)):
            if time.monotonic() > give_up:
                raise BenchmarkFailed(f"ComfyUI has no history of prompt {prompt_id}")
            time.sleep(0.02)
        if entry["status"]["status_str"] != "success":
            raise BenchmarkFailed(f"plain ComfyUI: {entry['status']['messages'][-1]}")

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                answer: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            raise BenchmarkFailed(f"plain ComfyUI refuses {path}: {error.read().decode()[:2000]}") from error
        return answer


@contextmanager
def open_plain(place: Place) -> Iterator[Plain]:
    """ComfyUI's server on loopback, with the device, threads and folders of the workers."""
    folder = place.new_folder("plain")
    for name in ("web", "output"):
        (folder / name).mkdir()
    (folder / "web" / "index.html").touch()
    port = _free_port()
    log = folder / "plain.log"
    environment = {**os.environ, **device_environment(place.device, os.environ)}
    environment.update(OMP_NUM_THREADS=str(place.threads), MKL_NUM_THREADS=str(place.threads))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [place.python, str(place.comfyui / "main.py"), *_arguments(place, folder, port)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(url, process, log)
        yield Plain(url, process, Trace(place.base / "trace" / str(process.pid)), folder / "output")
    finally:
        process.terminate()
        process.wait(timeout=60)
        shutil.copy(log, place.folder / "plain.log")


def _arguments(place: Place, folder: Path, port: int) -> list[str]:
    arguments = [
        "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(place.base), "--output-directory", str(folder / "output"),
        "--temp-directory", str(folder), "--front-end-root", str(folder / "web"), "--disable-auto-launch", "--disable-api-nodes",
        "--database-url", f"sqlite:///{(folder / 'comfyui.db').as_posix()}",
    ]  # fmt: skip
    return arguments if place.on_gpu else [*arguments, "--cpu"]


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
    raise BenchmarkFailed(f"plain ComfyUI did not start: {log.read_text(errors='replace')[-3000:]}")
