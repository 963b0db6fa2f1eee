"""One embedded Redis server as a process: its config, its port and password, its start and its end.  Standard library only.

In the server's folder: ``redis.conf``, ``users.acl`` (both 0600; the second with hashes of passwords, and nowhere here a password),
``server.log``, ``server.pid``, the data, and ``alive.lock``, which the server inherits and so holds for as long as it lives, whoever
started it.  The server itself keeps ``users.acl`` (ACL SAVE), so that users that were invited outlive it; only the owner's password is new
at each start, unless the server takes the place of one that died.

Any user of this host may listen at a port that a dead server leaves.  So nobody is told a password there before the server has said in its
log, which is new at each start, that the port is its own; and a server that moves to another port gets another password.
"""
from __future__ import annotations

import ctypes
import hashlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from distributed_comfy.errors import ServerStartFailed
from distributed_comfy.file_lock import FileLock

_READY_TIMEOUT_S = 120.0
"""Long enough to load a large append-only file."""
_END_TIMEOUT_S = 5.0
_PORT_TIMEOUT_S = 5.0
"""How long a server that is started again waits for its port; an outgoing connection may have got the number."""
_PORT_INTERVAL_S = 0.25
_STARTS = 3
"""Another program may take the port between our look and the server's bind."""
_LISTENS = b"Server initialized"
"""What Redis and Valkey write when they have their ports, before they load their data."""
_LOG_START_BYTES = 2**16
_PR_SET_PDEATHSIG = 1
_SIGKILL: int = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has none, and terminates by SIGTERM

_Said = Literal["gone", "busy", "ready"]


class ServerProcess:
    """One server on a free loopback port with a random password; or where one was before, if its port is free.

    Args:
        folder: of this server; created.
        program: absolute path.
        options: config lines beside the common ones.
        data_matters: ask it to end in good order instead of killing it.
        before: URL of the one before, whose clients may still look for it there; empty: none.
    """

    def __init__(self, folder: Path, program: str, options: dict[str, str], *, data_matters: bool, before: str = "") -> None:
        self.folder = folder
        self._program = program
        self._options = options
        self._end_signal = signal.SIGTERM if data_matters else _SIGKILL
        place = urlsplit(before)
        self._password = place.password or secrets.token_urlsafe(24)
        self._port = place.port or 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """With the password."""
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def is_stuck(self) -> bool:
        """Whether it answers that it does something else: runs a script for more than five seconds, by default."""
        return self._probe() == "busy"

    def end_script(self) -> None:
        """End the script that it runs, where that has changed nothing yet; else, and where it runs none, without effect."""
        with suppress(OSError):
            _ask(self._port, self._password, "SCRIPT KILL", self._listens)

    @property
    def port(self) -> int:
        """On loopback; 0 before the start."""
        return self._port

    @property
    def pid(self) -> int:
        """Process id; 0 before the start."""
        return self._process.pid if self._process else 0

    def start(self, given_up: Callable[[], bool]) -> None:
        """Start and wait until it answers, on another port, with another password, if that one is taken.

        Raises:
            ServerStartFailed: it ended, or does not answer, or ``given_up()`` became true.
        """
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for number in range(_STARTS):
            if number or not self._port:
                self._port, self._password = _free_port(), secrets.token_urlsafe(24)
            if self._comes_up(given_up):
                return
        raise self._ended()

    def restart(self, given_up: Callable[[], bool]) -> None:
        """End it by force and start it again at its port with its password, never elsewhere; what its disk has not heard of is lost.

        Raises:
            ServerStartFailed: see `start`; or the port stayed taken, or a stranger listens there, who has heard clients reconnect.
        """
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        (self.folder / "server.pid").unlink(missing_ok=True)  # whoever holds the lock now only looks (`is_at_work`)
        deadline = time.monotonic() + _PORT_TIMEOUT_S
        while not self._comes_up(given_up):
            if given_up() or time.monotonic() > deadline or _somebody_listens(self._port):
                raise self._ended()
            time.sleep(_PORT_INTERVAL_S)

    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def end(self) -> None:
        """End the process, by force if it does not follow; without effect if it never ran."""
        if self._process is None:
            return
        self._process.send_signal(self._end_signal)
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _comes_up(self, given_up: Callable[[], bool]) -> bool:
        """Start it once where it is to be; see `_wait_until_ready`."""
        with suppress(PermissionError):  # on Windows one that outlived its keeper has it open; it is emptied by `_launch`
            (self.folder / "server.log").unlink(missing_ok=True)  # before the lock is held, see `is_at_work`
        lock = end_leftover(self.folder)
        try:
            self._launch(lock)
        finally:
            lock.release()  # the server holds it on, by inheritance
        return self._wait_until_ready(given_up)

    def _launch(self, lock: FileLock) -> None:
        write_secret(self.folder / "redis.conf", self._config())
        write_secret(self.folder / "users.acl", self._users())
        (self.folder / "server.pid").unlink(missing_ok=True)
        with (self.folder / "server.log").open("wb") as output:
            self._process = subprocess.Popen(
                [self._program, str(self.folder / "redis.conf")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                pass_fds=[lock.descriptor] if os.name == "posix" else [],
                preexec_fn=_end_with_parent(self._end_signal) if sys.platform == "linux" else None,
            )

    def _config(self) -> str:
        options = {
            "bind": "127.0.0.1",
            "protected-mode": "yes",
            "port": str(self._port),
            "aclfile": str(self.folder / "users.acl"),
            "daemonize": "no",
            "dir": str(self.folder),
            "pidfile": str(self.folder / "server.pid"),
            "logfile": "",
            "save": "",
            "tcp-backlog": "128",
            "maxmemory-policy": "noeviction",
            **self._options,
        }
        # Redis reads quoted text with JSON's escapes for quotes and backslashes.
        return "".join(f"{name} {json.dumps(value, ensure_ascii=False)}\n" for name, value in options.items())

    def _users(self) -> str:
        """The owner with this start's password, and whoever else the server knew before."""
        file = self.folder / "users.acl"
        known = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        owner = f"user default on #{hashlib.sha256(self._password.encode()).hexdigest()} ~* &* +@all"
        kept = [line for line in known if line.startswith("user ") and not line.startswith("user default ")]
        return "".join(f"{line}\n" for line in (owner, *kept))

    def _wait_until_ready(self, given_up: Callable[[], bool]) -> bool:
        """True when it answers, False when it ended."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while self.is_running():
            if self._probe() == "ready":
                return True
            if given_up():
                raise self._failed("the process that asked for it is gone")
            if time.monotonic() > deadline:
                raise self._failed(f"it did not answer within {_READY_TIMEOUT_S:g} s")
            time.sleep(0.01)
        return False

    def _probe(self) -> _Said:
        return probe(self._port, self._password, self._listens)

    def _listens(self) -> bool:
        return self.is_running() and _says_that_it_listens(self.folder)

    def _ended(self) -> ServerStartFailed:
        return self._failed(f"it ended with status {self._process.returncode if self._process else None}")

    def _failed(self, reason: str) -> ServerStartFailed:
        lines = (self.folder / "server.log").read_text(errors="replace").split("\n")
        said = " | ".join([line.strip() for line in lines if line.strip()][-3:])
        return ServerStartFailed(program=self._program, reason=f"{reason}; its last lines: {said or '(none)'}")


def end_leftover(folder: Path) -> FileLock:
    """End a server that an earlier run left in this folder, and take its lock.

    That the lock is held proves that the server lives, so the process id in its own file is not a reused one.

    Raises:
        ServerStartFailed: it does not end.
    """
    lock = FileLock(folder / "alive.lock", inheritable=True)
    for number in (signal.SIGTERM, _SIGKILL):
        if lock.try_acquire():
            return lock
        try:
            os.kill(int((folder / "server.pid").read_text()), number)
        except (OSError, ValueError):  # it has just ended, or is too young to have written the file
            pass
        if lock.acquire(_END_TIMEOUT_S):
            return lock
    raise ServerStartFailed(program="the server", reason=f"one of an earlier run still works in {folder} and cannot be ended")


def is_at_work(folder: Path) -> bool:
    """Whether a server lives in this folder, whoever started it, and has its port.

    The lock first: once it is held for a new server, the log of the one before is gone.  A server on Windows inherits no lock.
    """
    if os.name == "nt":
        return _says_that_it_listens(folder)
    lock = FileLock(folder / "alive.lock")
    try:
        if lock.try_acquire():
            lock.release()
            return False
    except FileNotFoundError:  # no such folder
        return False
    return _says_that_it_listens(folder)


def probe(port: int, password: str, is_ours: Callable[[], bool]) -> _Said:
    """What a server with this password on this loopback port says: nothing, that it loads or runs a script, or PONG.

    Args:
        port: where it was last.
        password: goes only to a server of ours.
        is_ours: asked when somebody has taken the connection: whether our server listens there, so that it can be nobody else.
    """
    try:
        answer = _ask(port, password, "PING", is_ours)
    except OSError:
        return "gone"
    if not answer.startswith(b"+OK\r\n"):
        return "gone"
    return "ready" if answer == b"+OK\r\n+PONG\r\n" else "busy"


def _ask(port: int, password: str, command: str, is_ours: Callable[[], bool]) -> bytes:
    """The two answers to a login and a command, or none; see `probe`."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=2.0) as connection:
        if not is_ours():
            return b""
        connection.sendall(f"AUTH {password}\r\n{command}\r\n".encode())
        while answer.count(b"\n") < 2 and (part := connection.recv(1024)):
            answer += part
    return answer


def _says_that_it_listens(folder: Path) -> bool:
    try:
        with (folder / "server.log").open("rb") as log:
            return _LISTENS in log.read(_LOG_START_BYTES)
    except FileNotFoundError:
        return False


def write_secret(path: Path, text: str) -> None:
    """Write a file that only this user can read, whole or not at all."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, path)


def _somebody_listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2.0):
        return True
    return False


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _end_with_parent(number: int) -> Callable[[], None]:
    """What a server does between fork and exec, so that the kernel sends it ``number`` when its parent dies.

    The signal follows the thread that forked, so this is for the keeper, which forks from its main thread only.
    """
    prctl, parent_pid = ctypes.CDLL(None).prctl, os.getpid()

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent_pid:  # it died before the line above
            os._exit(1)

    return prepare
