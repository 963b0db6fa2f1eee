"""Two servers with users, as whoever runs Redis of their own has them, that a test can restart; and workers under such users."""
from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from distributed_comfy.access.roles import Place, Role, UserScope
from distributed_comfy.access.users import ServerUsers, hashed
from tests.command_line import until
from tests.conftest import missing_service

PREFIX = "dc:"
SECRET = "canary-users-secret"


@dataclass
class Server:
    """One server on loopback with an aclfile; everybody on this machine is its owner."""

    program: str
    folder: Path
    place: Place
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The owner's."""
        return f"redis://127.0.0.1:{self.port}/0"

    def url_of(self, user: str) -> str:
        """A user's."""
        return f"redis://{user}:{SECRET}@127.0.0.1:{self.port}/0"

    def client(self, user: str = "") -> Any:
        """A connection of a user, or of the owner."""
        return redis.Redis.from_url(self.url_of(user) if user else self.url, decode_responses=True)

    def users(self) -> ServerUsers:
        """What invitations are made with."""
        return ServerUsers(self.client(), self.place, self.url)

    def put(self, user: str, role: Role, host: str = "") -> None:
        """Make a user that lasts."""
        users = self.users()
        users.put(user, hashed(SECRET), role, UserScope(PREFIX, host))
        assert users.save()

    def denials(self) -> set[str]:
        """What was refused since the last call: ``reason object context``."""
        client = self.client()
        found = {" ".join(entry[name] for name in ("reason", "object", "context")) for entry in client.acl_log()}
        client.acl_log_reset()
        return found

    def start(self) -> None:
        """Start it with what it had on disk."""
        log = (self.folder / "log").open("ab")
        fixed = [
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.folder),
            "--save",
            "",
            "--maxmemory-policy",
            "noeviction",
        ]
        keeps = ["--appendonly", "yes" if self.place != "blobs" else "no", "--aclfile", str(self.folder / "users.acl")]
        debug = ["--enable-debug-command", "yes", "--enable-module-command", "yes"]  # so that only its rules can keep a user from them
        self.process = subprocess.Popen([self.program, *fixed, *keeps, *debug], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        until(self._answers)

    def stop(self) -> None:
        """End it in good order."""
        if self.process:
            self.process.terminate()
            self.process.wait(timeout=20)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:  # not yet
            return False


@dataclass
class Servers:
    """State and blobs."""

    state: Server
    blobs: Server
    both: tuple[Server, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.both = (self.state, self.blobs)

    def put(self, user: str, role: Role, host: str = "") -> dict[str, str]:
        """A user on both; the settings of a process that is it."""
        for server in self.both:
            server.put(user, role, host)
        return {"redis_url": self.state.url_of(user), "blob_url": self.blobs.url_of(user), **({"host": host} if host else {})}


@contextmanager
def servers_with_users(folder: Path) -> Iterator[Servers]:
    """Started, and stopped at the end."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        missing_service("a redis-server or valkey-server in PATH", "install one (Debian, Ubuntu: apt-get install redis-server)")
    places: tuple[Place, ...] = ("state", "blobs")
    servers = Servers(*(Server(os.path.abspath(program), folder / place, place, _free_port()) for place in places))
    try:
        for server in servers.both:
            server.folder.mkdir(parents=True)
            (server.folder / "users.acl").write_text("user default on nopass ~* &* +@all\n")
            server.start()
        yield servers
    finally:
        for server in servers.both:
            server.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
