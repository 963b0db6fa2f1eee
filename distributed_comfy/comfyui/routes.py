"""HTTP routes of the pack on ComfyUI's own server, all below ``/distributed_comfy``."""
from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from aiohttp import web

from distributed_comfy import __version__
from distributed_comfy.comfyui.pack import Pack


def install_routes(pack: Pack) -> None:
    """Add them; ComfyUI offers each below ``/api`` too."""

    async def status(_request: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(pack_status, pack))  # it may ask another process

    pack.host.server.routes.get("/distributed_comfy/status")(status)


def pack_status(pack: Pack) -> dict[str, Any]:
    """How the pack is, without secrets."""
    session = pack.session
    return {
        "version": __version__,
        "session": session.state,
        "reason": session.reason,
        "servers": session.servers.shown if session.servers else "",
        "options": pack.options.model_dump(),
        "ordinary": asdict(pack.ordinary.status()) if pack.ordinary is not None else None,
        "host": session.workers.shown(),
    }
