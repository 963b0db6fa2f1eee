"""Two doors on this host, one for each database, that only who has the worker's own secret may use; behind each connection a WebSocket.

Nothing is opened to others: a door is a Unix socket that only this user may use, or where there are none (Windows) a port on loopback. Each
asks for user and secret as Redis would, before anything is sent to the relay.
"""
from __future__ import annotations

import asyncio
import hmac
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import aiohttp

from distributed_comfy.errors import ClusterUnavailable, RelayForbidden, RelayRefused
from distributed_comfy.relay.carrying import Stream, carry
from distributed_comfy.relay.dialing import Dialer
from distributed_comfy.relay.requests import FirstRequest, NotARequest, make_request
from distributed_comfy.relay.wire import DATABASES, HANDSHAKE_S, MESSAGE_BYTES, CloseCode, Database

log = logging.getLogger(__name__)

_LOGIN_BYTES = 2**14


@dataclass
class Forwarder:
    """Connections of this host's worker and engine to one relay."""

    dialer: Dialer
    session: aiohttp.ClientSession
    folder: Path | None
    """Where the sockets are made; None: ports on loopback."""
    ports: Sequence[int] = (0, 0)
    """These, where they are not 0."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _told: str = ""
    _databases: dict[str, int] = field(default_factory=dict)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Mapping[Database, str]]:
        """The doors, and the Redis URL of each."""
        async with AsyncExitStack() as ending:
            urls: dict[Database, str] = {}
            for database, port in zip(DATABASES, self.ports, strict=True):
                server, urls[database] = await self._door(database, port)
                ending.callback(server.close)
            try:
                yield urls
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    async def check(self) -> None:
        """Open one connection to each database, and close it.

        Raises:
            ClusterUnavailable: see `Dialer.open`.
        """
        for database in DATABASES:
            socket = await self.dialer.open(self.session, database)
            await socket.close()
        self._databases = await self.dialer.databases(self.session)

    async def _door(self, database: Database, port: int) -> tuple[asyncio.Server, str]:
        login = f"{quote(self.dialer.user, safe='')}:{quote(self.dialer.secret, safe='')}@"
        handler, number = self._handler(database), self._databases.get(database, 0)
        if self.folder is None:
            server = await asyncio.start_server(handler, "127.0.0.1", port, limit=MESSAGE_BYTES)
            return server, f"redis://{login}127.0.0.1:{server.sockets[0].getsockname()[1]}/{number}"
        path = self.folder / database
        before = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(handler, path, limit=MESSAGE_BYTES)
        finally:
            os.umask(before)
        return server, f"unix://{login}{quote(str(path))}?db={number}"

    def _handler(self, database: Database) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.set_write_buffer_limits(high=2 * MESSAGE_BYTES)
            task = asyncio.get_running_loop().create_task(self._serve(database, Stream(reader, writer, "the worker")))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return handle

    async def _serve(self, database: Database, stream: Stream) -> None:
        try:
            first = await asyncio.wait_for(self._let_in(stream), HANDSHAKE_S)
            if first is None:
                return
            socket = await self.dialer.open(self.session, database, lambda: not stream.reader.at_eof())
        except ClusterUnavailable as error:
            self._tell(str(error))
            await _answer(stream, _error_reply(error))
            return
        except (OSError, NotARequest, TimeoutError, asyncio.TimeoutError) as error:
            log.debug("%s: a connection of this host ended before it had logged in: %s", database, error)
            stream.close()
            return
        self._tell("")
        greeting, rest = first
        try:
            if greeting:
                await socket.send_bytes(greeting)
            else:
                stream.writer.write(b"+OK\r\n")
            if rest:
                await socket.send_bytes(rest)
        except (ConnectionError, RuntimeError) as error:
            log.debug("%s: the connection ended at once: %s", database, error)
        ending = await carry(socket, stream)
        log.debug("%s: connection closed: %s (%d)", database, ending.reason, ending.code)
        if ending.code != CloseCode.DONE and not self._told:
            self._tell(f"connections through the relay at {self.dialer.address.base} end: {ending.reason}; they are opened again")

    async def _let_in(self, stream: Stream) -> tuple[bytes, bytes] | None:
        """What Redis still has to be told of a login that is right, and what came after it; None where it is wrong.

        Raises:
            NotARequest, OSError: no Redis client is at the other end, or none any more.
        """
        first = FirstRequest(_LOGIN_BYTES)
        while True:
            data = await stream.reader.read(MESSAGE_BYTES)
            if not data:
                raise ConnectionResetError("closed")
            if first.feed(data):
                break
        login, greeting = split_login(first.arguments)
        if login is None:
            await _answer(stream, b"-NOAUTH Authentication required.\r\n")
            return None
        expected = (self.dialer.user.encode(), self.dialer.secret.encode())
        same = [hmac.compare_digest(given, wanted) for given, wanted in zip(login, expected, strict=True)]
        if not all(same):
            await _answer(stream, b"-WRONGPASS invalid username-password pair or user is disabled.\r\n")
            return None
        return greeting, first.rest

    def _tell(self, problem: str) -> None:
        """Say once that the relay cannot be used, and once that it can be again."""
        if problem and problem != self._told:
            log.warning("%s", problem)
        elif self._told and not problem:
            log.info("the relay at %s answers again", self.dialer.address.base)
        self._told = problem


def split_login(arguments: Sequence[bytes]) -> tuple[tuple[bytes, bytes] | None, bytes]:
    """User and secret of a first request, None where it has none, and what remains for Redis, which the relay has logged in already."""
    name = arguments[0].upper()
    if name == b"AUTH" and len(arguments) == 3:
        return (arguments[1], arguments[2]), b""
    if name == b"HELLO" and len(arguments) >= 5 and arguments[2].upper() == b"AUTH":
        return (arguments[3], arguments[4]), make_request(arguments[0], arguments[1], *arguments[5:])
    return None, b""


def _error_reply(error: ClusterUnavailable) -> bytes:
    """An error as Redis would say it, with the word by which clients know whether to try again."""
    if isinstance(error, RelayRefused):
        return f"-WRONGPASS {error.reason}; ask for a new one\r\n".encode()
    return f"-{'NOPERM' if isinstance(error, RelayForbidden) else 'LOADING'} {error}\r\n".encode()


async def _answer(stream: Stream, reply: bytes) -> None:
    try:
        stream.writer.write(reply)
        await asyncio.wait_for(stream.writer.drain(), 1.0)
        stream.writer.close()
    except (OSError, TimeoutError, asyncio.TimeoutError):
        stream.close()
