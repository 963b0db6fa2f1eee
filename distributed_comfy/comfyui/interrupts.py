"""ComfyUI's routes that end prompts, for those that do not run in this ComfyUI itself, and for jobs of one that does.

ComfyUI's own answer to an interrupt of one prompt sets a flag that ends whatever this ComfyUI runs, and it takes every prompt that it
shows as running for its own.  So an interrupt of a prompt that runs elsewhere must not reach it.  And a node of its own may not heed
the flag for long, a decoder or a loader for one: what others do for the prompt ends at once all the same.
"""
from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractContextManager
from typing import Any, Protocol

import aiohttp
from aiohttp import web

from distributed_comfy.comfyui.accepted import Place

_PATHS = ("/interrupt", "/api/interrupt")
_JOBS = "(?:/api){0,2}/jobs"
"""ComfyUI has these routes below ``/api`` already, and offers each a second time below another."""
_CANCEL = re.compile(_JOBS + "/([^/]+)/cancel")
"""What pages of newer versions ask for instead."""
_CANCEL_MANY = re.compile(_JOBS + "/cancel")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Middleware = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]
PassOn = Callable[[web.Request, Any], Awaitable[tuple[int, Any]]]


class Elsewhere(Protocol):
    """Prompts of this ComfyUI's queue that do not run in this ComfyUI itself."""

    def runs(self, prompt_id: str) -> bool:
        """Whether this one runs elsewhere."""

    def interrupt(self, prompt_id: str | None) -> bool:
        """End a prompt that runs elsewhere, and another of the same id that runs here (None: all that run elsewhere); False: none runs."""

    def staying(self, prompt_ids: Collection[str]) -> AbstractContextManager[None]:
        """While the context lasts, none of these leaves ComfyUI's queue to run elsewhere."""


class Here(Protocol):
    """Prompts that this ComfyUI runs, and of which others do a part."""

    def running(self, prompt_id: str | None) -> list[Place]:
        """Which of this id run now (None: of any), as ComfyUI would find them."""

    def interrupt(self, places: list[Place]) -> None:
        """End what others do for these; returns at once."""


def interrupt_middleware(elsewhere: Elsewhere, here: Here | None, pass_on: PassOn) -> Middleware:
    """What aiohttp calls before ComfyUI's handlers.

    Args:
        elsewhere: see `Elsewhere`.
        here: see `Here`; None where there are no jobs.
        pass_on: asks ComfyUI for the same with another body; status and JSON of its answer.
    """

    @web.middleware
    async def ordinary_interrupt(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method != "POST":
            return await handler(request)
        if cancelled := _CANCEL.fullmatch(request.path):
            with elsewhere.staying([cancelled[1]]):
                return web.json_response({"cancelled": True}) if elsewhere.interrupt(cancelled[1]) else await handler(request)
        if _CANCEL_MANY.fullmatch(request.path):
            named = await _named(request)
            with elsewhere.staying(named):
                return await _cancel_many(named, elsewhere, request, handler, pass_on)
        if request.path in _PATHS:
            return await _interrupt(elsewhere, here, request, handler)
        return await handler(request)

    return ordinary_interrupt


async def _interrupt(elsewhere: Elsewhere, here: Here | None, request: web.Request, handler: Handler) -> web.StreamResponse:
    """First ComfyUI, then what others do for what ran before: the next prompt, which may have begun meanwhile, keeps its job."""
    prompt_id = await _prompt_id(request)
    running = here.running(prompt_id) if here is not None else []
    answer = await _interrupt_prompt(prompt_id, elsewhere, request, handler)
    if here is not None:
        here.interrupt(running)
    return answer


async def _interrupt_prompt(
    prompt_id: str | None, elsewhere: Elsewhere, request: web.Request, handler: Handler
) -> web.StreamResponse:
    if prompt_id is None:
        elsewhere.interrupt(None)
        return await handler(request)
    with elsewhere.staying([prompt_id]):
        return web.Response() if elsewhere.interrupt(prompt_id) else await handler(request)


async def _cancel_many(
    named: list[str], elsewhere: Elsewhere, request: web.Request, handler: Handler, pass_on: PassOn
) -> web.StreamResponse:
    """End those that run elsewhere, and let ComfyUI end the others; where it refuses to, none is ended."""
    there = [prompt_id for prompt_id in named if elsewhere.runs(prompt_id)]
    if not there:
        return await handler(request)
    wanted = await request.json()
    others = [one for one in wanted["job_ids"] if one not in there]
    try:
        status, answer = await pass_on(request, {**wanted, "job_ids": others}) if others else (web.HTTPOk.status_code, {})
        if status != web.HTTPOk.status_code:
            return web.json_response(answer, status=status)
        cancelled = isinstance(answer, dict) and bool(answer.get("cancelled"))
        late = [prompt_id for prompt_id in there if not elsewhere.interrupt(prompt_id)]
        if late:  # they have ended, or have come back into the queue
            _, answer = await pass_on(request, {**wanted, "job_ids": late})
            cancelled = cancelled or (isinstance(answer, dict) and bool(answer.get("cancelled")))
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
        reason = f"ComfyUI does not take the cancellation: {error or type(error).__name__}"
        return web.json_response({"error": reason}, status=web.HTTPInternalServerError.status_code)
    return web.json_response({"cancelled": cancelled or len(late) < len(there)})


async def _prompt_id(request: web.Request) -> str | None:
    """The one prompt that is meant; None for all, as ComfyUI reads it."""
    prompt_id = (await _wanted(request)).get("prompt_id")
    return str(prompt_id) if prompt_id else None


async def _named(request: web.Request) -> list[str]:
    """The prompts in a list; what else is in it only ComfyUI can judge."""
    named = (await _wanted(request)).get("job_ids")
    return [one for one in named if isinstance(one, str)] if isinstance(named, list) else []


async def _wanted(request: web.Request) -> dict[str, Any]:
    """The JSON object that was sent; empty where it is none."""
    try:
        wanted: Any = await request.json()
    except ValueError:
        return {}
    return wanted if isinstance(wanted, dict) else {}
