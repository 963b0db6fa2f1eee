"""ComfyUI's /interrupt, for prompts that do not run in this ComfyUI itself.

ComfyUI's own answer to an interrupt of one prompt sets a flag that ends whatever this ComfyUI runs, and it takes every prompt that it
shows as running for its own.  So an interrupt of a prompt that runs elsewhere must not reach it.
"""
from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

_PATHS = ("/interrupt", "/api/interrupt")
_CANCEL = re.compile(r"(?:/api)?/jobs/([^/]+)/cancel")
"""What pages of newer versions ask for instead."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Middleware = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]


def interrupt_middleware(interrupt: Callable[[str | None], bool]) -> Middleware:
    """What aiohttp calls before ComfyUI's handlers.

    Args:
        interrupt: ends a prompt that runs elsewhere (None: all of them); False where there is none such.
    """

    @web.middleware
    async def ordinary_interrupt(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method != "POST":
            return await handler(request)
        if cancelled := _CANCEL.fullmatch(request.path):
            if interrupt(cancelled[1]):
                return web.json_response({"cancelled": True})
        elif request.path in _PATHS:
            prompt_id = await _prompt_id(request)
            if interrupt(prompt_id) and prompt_id is not None:
                return web.Response(status=200)
        return await handler(request)

    return ordinary_interrupt


async def _prompt_id(request: web.Request) -> str | None:
    """The one prompt that is meant; None for all, as ComfyUI reads it."""
    try:
        wanted: Any = await request.json()
    except ValueError:
        return None
    prompt_id = wanted.get("prompt_id") if isinstance(wanted, dict) else None
    return str(prompt_id) if prompt_id else None
