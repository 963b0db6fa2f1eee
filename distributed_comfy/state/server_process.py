"""One embedded Redis server as a process: its config, its port and password, its start and its end.  Standard library only.

In the server's folder: ``redis.conf``, ``users.acl`` (both 0600; the second with hashes of passwords, and nowhere here a password),
``server.log``, ``server.pid``, the data, and ``alive.lock``, which the server inherits and so holds for as long as it lives, whoever
started it.  The server itself keeps ``users.acl`` (ACL SAVE), so that users that were invited outlive it; only the owner's password is new
at each start, unless the server takes the place of one that died.
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
_STARTS = 3
"""Another program may take the port between our look and the server's bind."""
_PR_SET_PDEATHSIG = 1
_SIGKILL: int = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has none, and terminates by SIGTERM


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
        return probe(self._port, self._password) == "busy"

    def end_script(self) -> None:
        """See `end_script`."""
        end_script(self._port, self._password)

    @property
    def port(self) -> int:
        """On loopback; 0 before the start."""
        return self._port

    @property
    def pid(self) -> int:
        """Process id; 0 before the start."""
        return self._process.pid if self._process else 0

    def start(self, given_up: Callable[[], bool]) -> None:
        """Start and wait until it answers, on another port if that one is taken.

        Raises:
            ServerStartFailed: it ended, or does not answer, or ``given_up()`` became true.
        """
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for number in range(_STARTS):
            lock = end_leftover(self.folder)
            if number or not self._port:
                self._port = _free_port()
            try:
                self._launch(lock)
            finally:
                lock.release()  # the server holds it on, by inheritance
            if self._wait_until_ready(given_up):
                return
        raise self._failed(f"it ended with status {self._process.returncode if self._process else None}")

    def restart(self, given_up: Callable[[], bool]) -> None:
        """End it by force and start it again at its port with its password; what its disk has not heard of is lost.

        Raises:
            ServerStartFailed: see `start`.
        """
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.start(given_up)

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
            if probe(self._port, self._password) == "ready":
                return True
            if given_up():
                raise self._failed("the process that asked for it is gone")
            if time.monotonic() > deadline:
                raise self._failed(f"it did not answer within {_READY_TIMEOUT_S:g} s")
            time.sleep(0.01)
        return False

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


def end_script(port: int, password: str) -> None:
    """End the script that a busy server runs, where that has changed nothing yet; else, and where it runs none, without effect."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2.0) as connection:
        connection.sendall(b"AUTH %b\r\nSCRIPT KILL\r\n" % password.encode())
        connection.recv(1024)


def probe(port: int, password: str) -> Literal["gone", "busy", "ready"]:
    """What a server with this password on this loopback port says: nothing, that it loads or runs a script, or PONG."""
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2.0) as connection:
            connection.sendall(b"AUTH %b\r\nPING\r\n" % password.encode())
            while answer.count(b"\n") < 2 and (part := connection.recv(1024)):
                answer += part
    except OSError:
        return "gone"
    if not answer.startswith(b"+OK\r\n"):
        return "gone"
    return "ready" if answer == b"+OK\r\n+PONG\r\n" else "busy"


def write_secret(path: Path, text: str) -> None:
    """Write a file that only this user can read, whole or not at all."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, path)


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
