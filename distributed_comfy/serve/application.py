"""The HTTP application of `distributed-comfy serve`, and its server in a thread or in the foreground."""
from __future__ import annotations

import asyncio
import errno
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from distributed_comfy.errors import SettingInvalid
from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.relay.rules import Judge
from distributed_comfy.relay.wire import Database
from distributed_comfy.serve.guarded import HEAD_TIMEOUT_S, Guard, tell_guard
from distributed_comfy.serve.host_rules import host_judge
from distributed_comfy.serve.redis_door import redis_address
from distributed_comfy.serve.relay import Relay
from distributed_comfy.state.door import allow_open_files

RELAY = web.AppKey("relay", Relay)


@dataclass(frozen=True)
class ServeOptions:
    """Where and how to listen."""

    host: str = "127.0.0.1"
    port: int = 8187
    """0: a free one."""
    tls_cert: Path | None = None
    """PEM, with the chain; None: plain HTTP, for a proxy or tunnel on this host."""
    tls_key: Path | None = None
    """PEM; None: in the same file as the certificate."""
    allow_plain: bool = False
    """See `Relay.allow_plain`."""
    tunnel: bool = False
    """Lead a public address here, see `serve.tunnel`."""
    only_tunnel: bool = False
    """Nobody comes by any other address: end with the tunnel."""


def make_relay(servers: Servers, prefix: str, *, allow_plain: bool = False) -> Relay:
    """The relay to a cluster's two servers, for workers of invited hosts."""
    addresses = {"state": redis_address(servers.redis_url), "blobs": redis_address(servers.blob_url)}

    def judge_of(database: Database, user: str, secret: str) -> Judge | None:
        return host_judge(prefix, database, addresses[database].database, user, secret)

    return Relay({"state": addresses["state"], "blobs": addresses["blobs"]}, judge_of, allow_plain)


def make_application(relay: Relay) -> web.Application:
    """An application with the relay's routes alone; others may be added before it starts."""
    application = web.Application(middlewares=[tell_guard])
    application[RELAY] = relay
    application.add_routes(relay.routes())
    application.on_shutdown.append(_end_relay)
    return application


async def _end_relay(application: web.Application) -> None:
    await application[RELAY].end()


@asynccontextmanager
async def listening(application: web.Application, options: ServeOptions) -> AsyncIterator[str]:
    """The application at work; gives its address.

    Raises:
        SettingInvalid: cannot listen there, or the certificate cannot be used.
    """
    context = _tls_context(options)
    runner, guard = web.AppRunner(application, access_log=None, shutdown_timeout=3.0), Guard()
    await runner.setup()
    listener: asyncio.Server | None = None
    try:
        server, shake_s = runner.server, HEAD_TIMEOUT_S if context else None
        assert server is not None
        allow_open_files()
        try:
            listener = await asyncio.get_running_loop().create_server(
                lambda: guard.handler(server), options.host, options.port, ssl=context, ssl_handshake_timeout=shake_s, reuse_address=True
            )
        except OSError as error:
            raise _cannot_listen(options, error) from error
        port = listener.sockets[0].getsockname()[1]
        shown = f"[{options.host}]" if ":" in options.host else options.host
        yield f"{'https' if context else 'http'}://{shown}:{port}"
    finally:
        if listener is not None:
            listener.close()
        await runner.cleanup()


def _cannot_listen(options: ServeOptions, error: OSError) -> SettingInvalid:
    said = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
    reason = f"cannot listen on {options.host}:{options.port}: {said}"
    if error.errno == errno.EADDRINUSE:
        remedy = "another program listens there: end it (is it another `serve`?), or choose another --port (0: a free one)"
        return SettingInvalid(name="--port", reason=f"{reason}; {remedy}")
    if error.errno == errno.EACCES:
        return SettingInvalid(name="--port", reason=f"{reason}; choose a --port above 1023, with a proxy before it for another")
    return SettingInvalid(name="--host", reason=f"{reason}; give an address of this computer, or 0.0.0.0 for all of them")


def _tls_context(options: ServeOptions) -> ssl.SSLContext | None:
    if options.tunnel and options.tls_cert:
        raise SettingInvalid(name="--tunnel", reason="not together with --tls-cert: the tunnel brings its own certificate")
    if options.tls_cert is None:
        if options.tls_key is not None:
            raise SettingInvalid(name="--tls-key", reason="given without --tls-cert")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    except OSError as error:  # ssl.SSLError is one
        raise SettingInvalid(name="--tls-cert", reason=f"certificate and key cannot be used: {error}") from error
    return context
