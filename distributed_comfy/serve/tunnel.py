"""A public address for `serve` by Cloudflare's quick tunnel: ``cloudflared tunnel --url ...``, which needs no account."""
from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO

from distributed_comfy.errors import TunnelFailed, TunnelMissing

log = logging.getLogger(__name__)

PROGRAM = "cloudflared"
START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 10.0
_ADDRESS = re.compile(r"https://(?!api\.)[a-z0-9-]+\.trycloudflare\.com(?![\w.-])")
"""In its log the address stands alone in a frame; api.trycloudflare.com is where it asks for one, and stands in errors."""
_LAST_LINES = 3


@contextmanager
def open_tunnel(target: str, *, program: str = PROGRAM, timeout_s: float = START_TIMEOUT_S) -> Iterator[str]:
    """Lead a public ``wss://`` address to a server of this host for as long as the context lasts, and no longer than this process lives.

    Args:
        target: ``http://127.0.0.1:PORT``.
        program: name or path of cloudflared.
        timeout_s: longest wait for the address.
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
    assert process.stdout is not None
    try:
        yield _address(process.stdout, found, target, timeout_s).replace("https://", "wss://", 1)
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


def _address(lines: IO[str], program: str, target: str, timeout_s: float) -> str:
    said: SimpleQueue[str | None] = SimpleQueue()
    threading.Thread(target=_hear, args=(lines, said), name="tunnel", daemon=True).start()
    last: list[str] = []
    try:
        while (line := said.get(timeout=timeout_s)) is not None:
            if address := _ADDRESS.search(line):
                return address[0]
            last = [*last, line][-_LAST_LINES:]
        reason = f"it ended after saying {' / '.join(last)!r}" if last else "it ended at once"
    except Empty:
        reason = f"no address within {timeout_s:.0f} s"
    raise TunnelFailed(program=program, reason=reason, target=target)


def _hear(lines: IO[str], said: SimpleQueue[str | None]) -> None:
    """Everything it says goes to the log, for as long as it runs: a full pipe would stop it."""
    try:
        for line in lines:
            log.debug("tunnel: %s", line.rstrip())
            said.put(line.strip())
    except ValueError:  # the pipe was closed
        pass
    said.put(None)
