"""A public address for `serve` by Cloudflare's quick tunnel: ``cloudflared tunnel --url ...``, which needs no account."""
from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from distributed_comfy.errors import TunnelEnded, TunnelFailed, TunnelMissing

log = logging.getLogger(__name__)

PROGRAM = "cloudflared"
START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 10.0
_ADDRESS = re.compile(r"https://(?!api\.)[a-z0-9-]+\.trycloudflare\.com(?![\w.-])")
"""In its log the address stands alone in a frame; api.trycloudflare.com is where it asks for one, and stands in errors."""
_LAST_LINES = 3
_LAST_WORDS_S = 2.0
_LOOK_S = 0.1
_SIGNALLED = 128
"""Added to the number of a signal, see `tunnel_keeper`."""


class Tunnel:
    """One that leads here, while its program runs.

    Args:
        program: path of cloudflared.
        process: its keeper.
    """

    def __init__(self, program: str, process: subprocess.Popen[str]) -> None:
        self.address = ""
        """``wss://...``, once it was said."""
        self._program = program
        self._process = process
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._ended = threading.Event()
        threading.Thread(target=self._hear, args=(process.stdout,), name="tunnel", daemon=True).start()

    def check(self) -> None:
        """Whether it still leads here.

        Raises:
            TunnelEnded: its program ended by itself, or somebody killed it.
        """
        if self._ended.is_set():
            raise TunnelEnded(program=self._program, reason=self._last_words())

    def wait_address(self, target: str, timeout_s: float, stop: threading.Event) -> None:
        """Until it has one, or ``stop`` is set.

        Raises:
            TunnelFailed: it ended, or said none in time.
        """
        give_up = time.monotonic() + timeout_s
        while not self.address and not stop.wait(_LOOK_S):
            if self._ended.is_set():
                raise TunnelFailed(program=self._program, reason=self._last_words(), target=target)
            if time.monotonic() >= give_up:
                raise TunnelFailed(program=self._program, reason=f"no address within {timeout_s:.0f} s", target=target)

    def _last_words(self) -> str:
        try:
            status = self._process.wait(_LAST_WORDS_S)
        except subprocess.TimeoutExpired:  # it has closed its output, and lives
            return f"it says nothing more; its last words: {' / '.join(self._last)!r}"
        by_signal = os.name == "posix" and _SIGNALLED < status <= _SIGNALLED + 64
        how = f"by signal {status - _SIGNALLED}" if by_signal else f"with exit status {status}"
        return f"it ended {how}" + (f" after saying {' / '.join(self._last)!r}" if self._last else "")

    def _hear(self, lines: IO[str]) -> None:
        """Everything it says goes to the log, for as long as it runs: a full pipe would stop it."""
        try:
            for line in lines:
                log.debug("tunnel: %s", line.rstrip())
                self._last.extend([line.strip()] if line.strip() else [])
                if not self.address and (found := _ADDRESS.search(line)):
                    self.address = found[0].replace("https://", "wss://", 1)
        except ValueError:  # the pipe was closed
            pass
        self._ended.set()


@contextmanager
def open_tunnel(
    target: str, *, program: str = PROGRAM, timeout_s: float = START_TIMEOUT_S, stop: threading.Event | None = None
) -> Iterator[Tunnel]:
    """Lead a public address to a server of this host for as long as the context lasts, and no longer than this process lives.

    Args:
        target: ``http://127.0.0.1:PORT``.
        program: name or path of cloudflared.
        timeout_s: longest wait for the address.
        stop: ends that wait; the tunnel then has no address.
    Raises:
        TunnelMissing: it is not installed.
        TunnelFailed: it ended, or gave no address in time.
    """
    found = shutil.which(program)
    if found is None:
        raise TunnelMissing(program=program, remedy=install_remedy())
    keeper = Path(__file__).with_name("tunnel_keeper.py")
    process = subprocess.Popen(
        [sys.executable, str(keeper), found, "tunnel", "--no-autoupdate", "--url", target],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C is for the owner, which then ends it
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )
    assert process.stdin is not None
    try:
        tunnel = Tunnel(found, process)
        tunnel.wait_address(target, timeout_s, stop or threading.Event())
        yield tunnel
    finally:
        process.stdin.close()
        try:
            process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def install_remedy() -> str:
    """How to get cloudflared on this system."""
    if sys.platform == "darwin":
        return "run `brew install cloudflared`"
    if sys.platform == "win32":
        return "run `winget install --id Cloudflare.cloudflared`"
    return "install cloudflared from Cloudflare's package repository or its releases on GitHub, or lead a proxy of your own to serve's port"

