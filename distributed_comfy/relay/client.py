"""`relay_urls`: two Redis URLs of this host that lead to a cluster through its relay, for as long as the context lasts."""
from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from distributed_comfy.errors import RelayUnreachable, SettingInvalid, from_wire
from distributed_comfy.relay.address import relay_address
from distributed_comfy.relay.order import Order
from distributed_comfy.relay.wire import DATABASES

log = logging.getLogger(__name__)

_END_TIMEOUT_S = 5.0
_RESTART_S = 0.5
_LONGEST_SOCKET_PATH = 90
"""Systems allow 104 to 108 bytes."""
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
_RUN = "import sys; sys.path[0] = sys.argv[1]; from distributed_comfy.relay.process import main; sys.exit(main())"
"""With this package in the place of the current folder, which may hold modules of any kind."""


class RelayUrls(NamedTuple):
    """Where worker and engine find the two servers; both hold the secret."""

    redis_url: str
    blob_url: str


@dataclass(frozen=True)
class RelayOptions:
    """How the relay is reached."""

    unix: bool | None = None
    """Whether the URLs are Unix sockets; None: where this system has them."""
    allow_plain: bool = False
    """Let the secret cross a network unencrypted, as in a VPN."""


_DEFAULTS = RelayOptions()


@contextmanager
def relay_urls(url: str, user: str, secret: str, *, ca: str = "", options: RelayOptions = _DEFAULTS) -> Iterator[RelayUrls]:
    """Reach a cluster through its relay; what is opened for that is only for this user of this host.

    Args:
        url: of the relay, ``wss://host/path``.
        user: of Redis, as the invite says.
        secret: of the user.
        ca: certificate (PEM) of the authority that signed the relay's; empty: those that the system trusts.
        options: rarely others than the defaults.
    Raises:
        SettingInvalid: the address is none, or ``ws://`` to another host, or the CA is none.
        RelayUnreachable, RelayTlsFailed, RelayRefused, RelayForbidden, RelayAbsent, RelayWithoutWebSockets: at the start.  Later the
            forwarder tries again for as long as the context lasts.
    """
    address = relay_address(url)
    if address.in_the_clear and not options.allow_plain:
        raise SettingInvalid(name="the relay's address", reason=f"{address.base} would send the secret unencrypted; use wss://")
    level = logging.getLogger().getEffectiveLevel()
    with _socket_folder(options.unix) as folder:
        keeper = _Keeper(Order(url, user, secret, ca, str(folder or ""), level=level), address.base)
        try:
            yield keeper.start()
        finally:
            keeper.end()


@contextmanager
def _socket_folder(unix: bool | None) -> Iterator[Path | None]:
    """A folder that only this user may enter; None where ports on loopback are used."""
    wanted = hasattr(socket, "AF_UNIX") and sys.platform != "win32" if unix is None else unix
    roots = [root for root in (tempfile.gettempdir(), "/tmp") if len(root.encode()) < _LONGEST_SOCKET_PATH - 30 and os.path.isdir(root)]
    if not wanted or not roots:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="dc-relay-", dir=roots[0]))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Keeper:
    """Keeps a forwarder running at the same two doors; one that was killed is started again."""

    def __init__(self, order: Order, url: str) -> None:
        self._order = order
        self._url = url
        self._ending = threading.Event()
        self._starting = threading.Lock()
        self._process = _launch(order)
        self._thread = threading.Thread(target=self._keep, name="relay", daemon=True)

    def start(self) -> RelayUrls:
        """Wait until the doors are open; errors as `relay_urls`."""
        answer = _answer(_lines(self._process))
        if "error" in answer:
            raise from_wire(answer["error"])
        if "state" not in answer:
            raise RelayUnreachable(url=self._url, reason="its forwarder on this host ended at once")
        ports = [urlsplit(answer[database]).port or 0 for database in DATABASES]
        self._order = replace(self._order, check=False, ports=tuple(ports))
        log.info("reaching the cluster through the relay at %s", self._url)
        self._thread.start()
        return RelayUrls(answer["state"], answer["blobs"])

    def end(self) -> None:
        """End the forwarder and wait for it."""
        self._ending.set()
        with self._starting:
            process = self._process
        assert process.stdin is not None
        with suppress(OSError):  # it has ended already, and not all that it was told had arrived
            process.stdin.close()
        try:
            process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._thread.ident is not None:
            self._thread.join(_END_TIMEOUT_S)

    def _keep(self) -> None:
        while True:
            with suppress(ValueError), _lines(self._process) as lines:  # the last line of one that was killed may be half of one
                while _answer(lines):
                    pass
            status = self._process.wait()
            if self._ending.wait(_RESTART_S):
                return
            log.warning("the relay's forwarder on this host has ended (%d); it is started again", status)
            with self._starting:
                if not self._ending.is_set():
                    self._process = _launch(self._order)


def _launch(order: Order) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN, _PACKAGE_ROOT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in the terminal is for the worker, which still has to give back what it holds
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has just ended, which its answer will tell
        process.stdin.write(order.line())
        process.stdin.flush()
    return process


def _lines(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


def _answer(lines: IO[bytes]) -> dict[str, Any]:
    """The first line that is no line of the log."""
    for line in lines:
        fields: dict[str, Any] = json.loads(line)
        if "text" not in fields:
            return fields
        log.log(fields["level"], "%s", fields["text"])
    return {}
