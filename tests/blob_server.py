"""A server that a test stops and starts again: without further options it keeps nothing on the disk, as for blobs in production."""
from __future__ import annotations

import subprocess
from pathlib import Path

import redis

from tests.conftest import free_port, wait_until_it_answers


class BlobServer:
    """One server on a loopback port of its own; running when it is made."""

    def __init__(self, program: str, folder: Path, *options: str) -> None:
        folder.mkdir()
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.folder = folder
        self._command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Empty, where it was before."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until_it_answers(self.url, self._process, self.folder / "log")

    def signal(self, number: int) -> None:
        """SIGSTOP and SIGCONT, for one that hangs for a while."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL; nothing listens on the port until `start`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    def keys(self) -> int:
        """How many chunks and sets lie there."""
        with redis.Redis.from_url(self.url) as client:
            return int(client.dbsize())
