"""The relay of `distributed-comfy serve` on ComfyUI's own port: hosts that were invited with its address come in there.

It leads to the servers that the pack uses at the moment; the users and rights are those of any relay (docs/relay.md).
"""
from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from distributed_comfy import __version__
from distributed_comfy.comfyui.pack import Pack
from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.relay.wire import HEALTH_PATH, REASON_HEADER, RELAY_PATH, VERSION_HEADER
from distributed_comfy.serve.application import make_relay
from distributed_comfy.serve.relay import Relay


class RelayPort:
    """Holds the relay to the servers of now; a new one takes the place of one whose servers are gone."""

    def __init__(self, pack: Pack) -> None:
        self._pack = pack
        self._servers: Servers | None = None
        self._relay: Relay | None = None
        self._changing = asyncio.Lock()
        """Requests come side by side: each of them would make a relay of its own while an old one is closed."""

    async def open(self, request: web.Request) -> web.StreamResponse:
        """See `Relay.open`."""
        relay = await self._current()
        return self._none() if relay is None else await relay.open(request)

    async def tell_health(self, request: web.Request) -> web.Response:
        """See `Relay.tell_health`."""
        relay = await self._current()
        return self._none() if relay is None else await relay.tell_health(request)

    async def end(self, _application: Any = None) -> None:
        """Close what is relayed."""
        async with self._changing:
            await self._close()

    async def _current(self) -> Relay | None:
        async with self._changing:
            servers = self._pack.session.servers
            if servers is None or servers.invited_to:  # a guest of somebody's cluster lets nobody into it
                await self._close()
                return None
            if servers != self._servers:
                await self._close()
                self._servers, self._relay = servers, make_relay(servers, self._pack.session.settings.key_prefix)
            return self._relay

    async def _close(self) -> None:
        relay, self._relay, self._servers = self._relay, None, None
        if relay is not None:
            await relay.end()

    def _none(self) -> web.Response:
        session = self._pack.session
        invited = session.servers is not None and session.servers.invited_to
        reason = "this host was invited itself; its workers' hosts are invited where the cluster is" if invited else (
            f"no cluster here yet: {session.reason or session.state}"
        )
        headers = {VERSION_HEADER: __version__, REASON_HEADER: " ".join(reason.split())[:500]}
        return web.json_response({"error": reason}, status=503, headers=headers)


def add_relay(pack: Pack) -> RelayPort:
    """Offer it, at the paths that `serve` has."""
    port = RelayPort(pack)
    pack.host.server.routes.get(HEALTH_PATH)(port.tell_health)
    pack.host.server.routes.get(RELAY_PATH + "{database}")(port.open)
    pack.host.server.app.on_shutdown.append(port.end)
    return port
