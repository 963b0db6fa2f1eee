"""`distributed-comfy serve`: keeps the cluster's servers and an HTTP server before them until it is told to end."""
from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from aiohttp import web

from distributed_comfy.errors import TunnelEnded
from distributed_comfy.orchestrator.servers import Servers, redis_servers
from distributed_comfy.orchestrator.sweeping import sweeping
from distributed_comfy.panel.place import TakeOver
from distributed_comfy.relay.address import is_loopback
from distributed_comfy.serve.application import ServeOptions, listening, make_application, make_relay
from distributed_comfy.serve.tunnel import Tunnel, open_tunnel
from distributed_comfy.settings import Settings

log = logging.getLogger(__name__)

_LOOK_S = 0.1


@dataclass(frozen=True)
class Serving:
    """What is up."""

    url: str
    """Of the HTTP server."""
    join_url: str
    """What workers are given: that of the tunnel where there is one."""
    servers: Servers
    panel_url: str = ""
    """Of the panel's page; empty where there is none."""
    panel_token: str = field(default="", repr=False)
    """What the page asks for; behind ``#token=`` in its address nobody needs to be asked."""


def serve_relay(
    settings: Settings, options: ServeOptions, ready: Callable[[Serving], None], stop: threading.Event, taken_over: TakeOver | None = None
) -> None:
    """Serve until ``stop`` is set.

    Args:
        settings: which servers; without any the embedded ones, which this process then keeps alive.
        options: where to listen.
        ready: called when everything is up.
        stop: ends it.
        taken_over: see `panel.place.Place.taken_over`; None: the relay alone, without the panel.
    Raises:
        SettingInvalid, ClusterUnavailable, TunnelMissing: at the start.
        TunnelEnded: later, where its address has come to lead nowhere, and nobody comes by another one.
    """
    with redis_servers(settings) as servers, sweeping(servers, settings.key_prefix):
        site = Site(settings, options, servers, taken_over)
        asyncio.run(_serve(site, ready, stop))


@dataclass(frozen=True)
class Site:
    """What is served."""

    settings: Settings
    options: ServeOptions
    servers: Servers
    taken_over: TakeOver | None

    def application(self) -> web.Application:
        """The relay, and the panel where that is wanted."""
        application = make_application(make_relay(self.servers, self.settings.key_prefix, allow_plain=self.options.allow_plain))
        if self.taken_over is not None:
            from distributed_comfy.serve.panel_host import ServePlace, add_panel  # brings much that the relay alone can do without

            place = ServePlace(self.settings, self.servers, self.taken_over, _tunnel_to(self.settings))
            add_panel(application, place, allow_plain=self.options.allow_plain)
        return application

    def go_on(self, application: web.Application, error: TunnelEnded) -> None:
        """Tell that the tunnel has ended, where others still come by another address.

        Raises:
            TunnelEnded: nobody does.
        """
        if self.options.only_tunnel:
            raise error
        log.error("%s; serve goes on without it, for those who come by its other addresses", error)
        if self.taken_over is not None:
            from distributed_comfy.serve.panel_host import PANEL

            application[PANEL].tunnels.lose(error)

    def panel_at(self, url: str) -> tuple[str, str]:
        """See `Serving.panel_url`, and its token."""
        if self.taken_over is None:
            return "", ""
        from distributed_comfy.serve.panel_host import panel_address

        return panel_address(self.settings, url)


async def _serve(site: Site, ready: Callable[[Serving], None], stop: threading.Event) -> None:
    options, servers = site.options, site.servers
    with ExitStack() as ending:
        application = site.application()
        async with listening(application, options) as url:
            join_url, tunnel = url.replace("http", "ws", 1), None
            if options.tunnel:
                opening = open_tunnel(url.replace("0.0.0.0", "127.0.0.1"), stop=stop)
                tunnel = await asyncio.to_thread(ending.enter_context, opening)
                if not tunnel.address:  # told to end before it had one
                    return
                join_url = tunnel.address
            if not options.tls_cert and not options.allow_plain and not is_loopback(options.host):
                log.warning("%s is not encrypted, so logins are refused unless a proxy before it says that its clients use HTTPS", url)
            ready(Serving(url, join_url, servers, *site.panel_at(url)))
            await _keep(tunnel, stop, partial(site.go_on, application))


async def _keep(tunnel: Tunnel | None, stop: threading.Event, go_on: Callable[[TunnelEnded], None]) -> None:
    while not stop.is_set():
        await asyncio.sleep(_LOOK_S)
        if tunnel is not None and not stop.is_set():
            try:
                await asyncio.to_thread(tunnel.check)
            except TunnelEnded as error:
                tunnel = None
                go_on(error)


def _tunnel_to(settings: Settings) -> Callable[[Callable[[str], None], threading.Event], None]:
    """What leads a public address to a relay of its own, which has no panel."""

    def lead(ready: Callable[[str], None], stop: threading.Event) -> None:
        serve_relay(settings, ServeOptions(port=0, tunnel=True, only_tunnel=True), lambda serving: ready(serving.join_url), stop)

    return lead
