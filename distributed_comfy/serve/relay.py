"""One WebSocket, one connection to Redis: lets it in, carries it through the gate, and tells the log what it was."""
from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

from distributed_comfy import __version__
from distributed_comfy.relay.carrying import Stream, Traffic, carry
from distributed_comfy.relay.gate import Gate, Refusals, Replies
from distributed_comfy.relay.rules import Judge, JudgeOf
from distributed_comfy.relay.wire import (
    DATABASES,
    HANDSHAKE_S,
    HEALTH_PATH,
    MESSAGE_LIMIT_BYTES,
    REASON_HEADER,
    RELAY_PATH,
    VERSION_HEADER,
    Database,
)
from distributed_comfy.serve.doorman import Attempts, Login, Refused, accepted_protocols, address_of, check_way, login_of
from distributed_comfy.serve.redis_door import LoginRefused, RedisAddress, RedisAway

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 512
"""Of one user.  A worker and its engine hold about fifteen."""
_HEALTH_CACHE_S = 1.0
_KINDS_LOGGED = 1000


@dataclass
class Relay:
    """The relayed connections of one process."""

    addresses: Mapping[Database, RedisAddress]
    judge_of: JudgeOf
    """Decides who may come in at all, and what of theirs may pass."""
    allow_plain: bool = False
    """Let clients of other hosts log in over a connection that is not encrypted."""
    attempts: Attempts = field(default_factory=Attempts)
    connections: Counter[str] = field(default_factory=Counter)
    """Open now, by user."""
    refused: set[tuple[str, str, str]] = field(default_factory=set)
    """Kinds of refused requests that the log has: user, command, reason."""
    _sockets: set[asyncio.Task[object]] = field(default_factory=set)
    _health: tuple[float, dict[Database, bool]] | None = None

    def routes(self) -> list[web.RouteDef]:
        """What to add to an application: this project's own, or one that is there already."""
        return [web.get(HEALTH_PATH, self.tell_health), web.get(RELAY_PATH + "{database}", self.open)]

    async def tell_health(self, request: web.Request) -> web.Response:
        """Whether both servers are there; says nothing that helps a stranger."""
        now = time.monotonic()
        if self._health is None or now - self._health[0] > _HEALTH_CACHE_S:
            found = await asyncio.gather(*(self.addresses[database].answers() for database in DATABASES))
            self._health = now, dict(zip(DATABASES, found, strict=True))
        alive = self._health[1]
        numbers = {database: self.addresses[database].database for database in DATABASES}
        answer = {"service": "distributed-comfy", "version": __version__, "servers": alive, "databases": numbers}
        return web.json_response(answer, status=200 if all(alive.values()) else 503, headers={VERSION_HEADER: __version__})

    async def open(self, request: web.Request) -> web.StreamResponse:
        """Upgrade, and carry until one end ends; everything that can be refused is refused before the upgrade."""
        try:
            return await self._open(request)
        except Refused as refused:
            headers = {VERSION_HEADER: __version__, REASON_HEADER: refused.reason}
            if refused.status == 401:
                headers["WWW-Authenticate"] = 'Basic realm="distributed-comfy"'
            if refused.retry_after_s:
                headers["Retry-After"] = f"{refused.retry_after_s + 1:.0f}"
            return web.json_response({"error": refused.reason}, status=refused.status, headers=headers)

    async def end(self) -> None:
        """Close every connection and wait for it."""
        for task in self._sockets:
            task.cancel()
        await asyncio.gather(*self._sockets, return_exceptions=True)

    async def _open(self, request: web.Request) -> web.StreamResponse:
        database = next((name for name in DATABASES if name == request.match_info["database"]), None)
        if database is None:
            raise Refused(404, f"there are {' and '.join(DATABASES)}")
        check_way(request, allow_plain=self.allow_plain)
        address = address_of(request)
        socket = web.WebSocketResponse(
            timeout=HANDSHAKE_S, autoping=False, compress=False, max_msg_size=MESSAGE_LIMIT_BYTES, protocols=accepted_protocols(request)
        )
        socket.headers[VERSION_HEADER] = __version__
        if not socket.can_prepare(request):
            raise Refused(426, "no WebSocket: the headers Upgrade and Connection did not arrive")
        login = self._login(request, address)
        stream, judge = await self._let_in(login, database, address)
        with self._counted(login.user, stream):
            await socket.prepare(request)
            await self._carry(socket, stream, judge, f"{login.user} at {address}, {database}")
        return socket

    def _login(self, request: web.Request, address: str) -> Login:
        login = login_of(request)
        if wait_s := self.attempts.wait_s(address, login.user):
            raise Refused(429, f"too many failed logins of this user from {address}", wait_s)
        if self.connections[login.user] >= MOST_CONNECTIONS:
            raise Refused(503, f"{login.user} has {MOST_CONNECTIONS} connections already", 1.0)
        return login

    async def _let_in(self, login: Login, database: Database, address: str) -> tuple[Stream, Judge]:
        try:
            stream = await self.addresses[database].open(login.user, login.secret)
        except LoginRefused:
            self.attempts.failed(address, login.user)
            log.warning("login of %r from %s refused", login.user[:64], address)
            raise Refused(401, "Redis does not accept this name and secret") from None
        except RedisAway as error:
            log.warning("the %s server at %s: %s", database, self.addresses[database].shown, error)
            raise Refused(503, f"the {database} server: {error}", 1.0) from error
        judge = self.judge_of(database, login.user, login.secret)
        if judge is None:  # only now: whoever lacks the secret must not learn which names are of use
            stream.close()
            log.warning("user %r from %s may not use the relay", login.user[:64], address)
            raise Refused(403, "this user may not use the relay; `distributed-comfy invite` makes one that may")
        self.attempts.succeeded(address, login.user)
        return stream, judge

    @contextmanager
    def _counted(self, user: str, stream: Stream) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._sockets.add(task)
        self.connections[user] += 1
        try:
            yield
        finally:
            stream.close()
            self._sockets.discard(task)
            self.connections[user] -= 1
            self.connections += Counter()  # forgets users without any

    async def _carry(self, socket: web.WebSocketResponse, stream: Stream, judge: Judge, who: str) -> None:
        began, traffic = time.monotonic(), Traffic()
        refusals = Refusals(self._reporter(who))
        log.info("%s: connection opened", who)
        try:
            gate, replies = Gate(judge, refusals), Replies(refusals)
            ending = await carry(socket, stream, into_stream=gate.pass_on, into_socket=replies.pass_on, traffic=traffic)
        except asyncio.CancelledError:
            log.info("%s: connection closed, the relay ends", who)
            raise
        log.info(
            "%s: connection closed after %.0f s, %d bytes in, %d out, %d requests refused: %s",
            who, time.monotonic() - began, traffic.into_stream, traffic.into_socket, refusals.count, ending.reason,
        )  # fmt: skip

    def _reporter(self, who: str) -> Callable[[str, str], None]:
        """Logs each kind of refused request once."""

        def report(command: str, reason: str) -> None:
            kind = (who, command, reason)
            if kind not in self.refused and len(self.refused) < _KINDS_LOGGED:
                self.refused.add(kind)
                log.warning("%s: %s refused: %s", who, command, reason)

        return report
