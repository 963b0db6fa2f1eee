"""HTTP connections that say nothing: each gets a few seconds for the head of a request, and strangers take no room from others.

aiohttp itself waits without end for the rest of a head that has begun.  A connection that has become a WebSocket is no longer looked at.
"""
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import web

from distributed_comfy.relay.address import is_loopback
from distributed_comfy.state.waiting_room import WaitingRoom

HEAD_TIMEOUT_S = 10.0
"""From the beginning of a connection, or from the answer before, to the end of a request's head; of TLS' handshake before it as well."""


class Guard:
    """The connections of one listening server whose request has not come yet."""

    def __init__(self, room: WaitingRoom | None = None, timeout_s: float = HEAD_TIMEOUT_S) -> None:
        self._room = room or WaitingRoom()
        self._timeout_s = timeout_s

    def handler(self, server: web.Server) -> GuardedHandler:
        """The protocol of one more connection."""
        return GuardedHandler(self, server, loop=asyncio.get_running_loop(), access_log=None)

    def wait_for(self, handler: GuardedHandler, transport: asyncio.Transport) -> asyncio.TimerHandle:
        """Give a connection its time; gives what ends it."""
        self._room.enter(_group(handler, transport), handler, transport.abort)
        return asyncio.get_running_loop().call_later(self._timeout_s, transport.abort)

    def leave(self, handler: GuardedHandler, transport: asyncio.Transport) -> None:
        """Its request has come, or it is gone."""
        self._room.leave(_group(handler, transport), handler)


class GuardedHandler(web.RequestHandler):
    """aiohttp's protocol of one connection, with a time for each head."""

    def __init__(self, guard: Guard, server: web.Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._guard = guard
        self._waits_on: asyncio.Transport | None = None
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        self._waits_on = cast(asyncio.Transport, transport)
        super().connection_made(transport)
        self.wait()

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is gone."""
        self.heard()
        self._waits_on = None
        super().connection_lost(exc)

    def wait(self) -> None:
        """The next head is awaited."""
        if self._waits_on is not None and not self._waits_on.is_closing():
            self._end = self._guard.wait_for(self, self._waits_on)

    def heard(self) -> None:
        """It has come; without effect where none was awaited."""
        end, self._end = self._end, None
        if end is not None and self._waits_on is not None:
            end.cancel()
            self._guard.leave(self, self._waits_on)


@web.middleware
async def tell_guard(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    """Lets the guard know when a request has come and when it was answered."""
    connection = request.protocol
    if not isinstance(connection, GuardedHandler):
        return await handler(request)
    connection.heard()
    try:
        return await handler(request)
    finally:
        connection.wait()


def _group(handler: GuardedHandler, transport: asyncio.Transport) -> str:
    """A proxy on this host is the address of everybody, so there each connection counts for itself."""
    peer = transport.get_extra_info("peername")
    address = str(peer[0]) if isinstance(peer, tuple) else ""
    return address if address and not is_loopback(address) else f"near:{id(handler)}"
