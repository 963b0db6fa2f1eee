"""The control: plain ComfyUI, its own ``main.py`` and queue, prompts by HTTP, watched through the trace alone.

Nothing asks the server while it works: an answer would take time from its sampling thread.
"""
from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.gpu_place import Place, Seat
from benchmarks.gpu_server import PROMPT_TIMEOUT_S, Server, open_server
from benchmarks.gpu_trace import Trace
from distributed_comfy.messages import Prompt


class Plain:
    """A running server; `open_plain` starts one."""

    def __init__(self, place: Place, server: Server, trace: Trace, output: Path) -> None:
        self.place, self.server = place, server
        self.trace = trace
        self.pid = server.process.pid
        self._output = output

    def run(self, prompts: Sequence[Prompt]) -> tuple[float, float]:
        """Post prompts at once and wait until the last has ended: when the first was posted, and when that was.

        Raises:
            BenchmarkFailed: one was refused, failed or did not end.
        """
        began = time.time()
        ids = [self.server.queue(prompt) for prompt in prompts]
        limit_s = PROMPT_TIMEOUT_S
        ended = self.trace.wait("prompt:end", len(prompts), began, timeout_s=limit_s, alive=lambda: self.server.alive)
        for prompt_id in ids:
            self.server.check(prompt_id, 10.0)
        return began, ended.at

    def clear_output(self) -> int:
        """Delete what was saved; how many bytes that was."""
        files = list(self._output.rglob("*.png"))
        size = sum(path.stat().st_size for path in files)
        for path in files:
            path.unlink()
        return size


@contextmanager
def open_plain(place: Place, seat: Seat | None = None, name: str = "plain") -> Iterator[Plain]:
    """ComfyUI's server on loopback, with the device, threads and folders of the workers."""
    seat = seat or Seat(name, place.device, (), place.threads)
    folders = place.new_folder(f"{name}-files")
    for each in ("output", "temp"):
        (folders / each).mkdir()
    output, temp = folders / "output", folders / "temp"
    arguments = ["--base-directory", str(place.base), "--output-directory", str(output), "--temp-directory", str(temp)]
    with open_server(place, seat, name, arguments, {}) as server:
        yield Plain(place, server, Trace(place.base / "trace" / str(server.process.pid)), output)
