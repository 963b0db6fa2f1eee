"""`distributed-comfy serve`: keeps the cluster's servers and an HTTP server before them until it is told to end."""
from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from distributed_comfy.orchestrator.servers import Servers, redis_servers
from distributed_comfy.orchestrator.sweeping import sweeping
from distributed_comfy.relay.address import is_loopback
from distributed_comfy.serve.application import ServeOptions, listening, make_application, make_relay
from distributed_comfy.serve.tunnel import open_tunnel
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


def serve_relay(settings: Settings, options: ServeOptions, ready: Callable[[Serving], None], stop: threading.Event) -> None:
    """Serve until ``stop`` is set.

    Args:
        settings: which servers; without any the embedded ones, which this process then keeps alive.
        options: where to listen.
        ready: called when everything is up.
        stop: ends it.
    Raises:
        SettingInvalid, ClusterUnavailable, TunnelMissing: at the start.
    """
    with redis_servers(settings) as servers, sweeping(servers, settings.key_prefix):
        asyncio.run(_serve(servers, settings.key_prefix, options, ready, stop))


async def _serve(servers: Servers, prefix: str, options: ServeOptions, ready: Callable[[Serving], None], stop: threading.Event) -> None:
    relay = make_relay(servers, prefix, allow_plain=options.allow_plain)
    with ExitStack() as ending:
        async with listening(make_application(relay), options) as url:
            join_url = url.replace("http", "ws", 1)
            if options.tunnel:
                join_url = await asyncio.to_thread(ending.enter_context, open_tunnel(url.replace("0.0.0.0", "127.0.0.1")))
            if not options.tls_cert and not options.allow_plain and not is_loopback(options.host):
                log.warning("%s is not encrypted, so logins are refused unless a proxy before it says that its clients use HTTPS", url)
            ready(Serving(url, join_url, servers))
            while not stop.is_set():
                await asyncio.sleep(_LOOK_S)
