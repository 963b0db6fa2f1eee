"""Asks what workers have, before ComfyUI validates a prompt that needs it: `foreign.ForeignValues` knows it then, and no loop waits.

What ComfyUI refuses all the same is what they do not have either: `refusals` says so in its answer.
"""
from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import redis
from aiohttp import web

from distributed_comfy.comfyui.foreign import ForeignValues
from distributed_comfy.comfyui.refusals import Asked, with_the_workers
from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.messages import Capability, Prompt
from distributed_comfy.workflow.classes import COLLECTOR_CLASS, UPSCALE_CLASS
from distributed_comfy.workflow.parse import parse_prompt

log = logging.getLogger(__name__)

PATHS = ("/prompt", "/api/prompt")
JOB_CLASSES = (COLLECTOR_CLASS, UPSCALE_CLASS)
"""Classes of the nodes that get what they give from a job."""
LIVE_S = 3.0
"""How long a prompt waits for what the workers have; after that it is validated as it is."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_NOBODY = Asked()
_asked: ContextVar[Asked] = ContextVar("what workers said of a posted prompt", default=_NOBODY)


class Passing:
    """One per process.

    Args:
        values: what this ComfyUI lists.
        live: asks for the capabilities of the live workers, by name; it may wait.
    """

    def __init__(self, values: ForeignValues, live: Callable[[], Mapping[str, Capability]]) -> None:
        self._values = values
        self._live = live
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="distributed-comfy intake")
        self.middleware = self._middleware()

    def replace(self, posted: dict[str, Any]) -> dict[str, Any]:
        """The body of a ``POST /prompt`` as ComfyUI is to validate it."""
        parsed = _with_jobs(posted)
        if parsed is None:
            return posted
        try:
            changed = self._values.replace(parsed, tuple(_asked.get().live.values()))
        except DistributedComfyError as error:  # ComfyUI says what is wrong with it
            log.debug("a prompt is validated as it is: %s", error)
            return posted
        return posted if changed is parsed else {**posted, "prompt": changed}

    def _middleware(self) -> Any:
        @web.middleware
        async def ask_first(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.method != "POST" or request.path not in PATHS:
                return await handler(request)
            asked = await self._ask(await request.read())
            _asked.set(asked)
            return with_the_workers(await handler(request), asked)

        return ask_first

    async def _ask(self, body: bytes) -> Asked:
        """What live workers have, where this prompt needs something that is not here."""
        if not any(name.encode() in body for name in JOB_CLASSES):
            return _NOBODY
        asked = _NOBODY
        try:
            parsed = _with_jobs(json.loads(body))
            missing = self._values.missing(parsed) if parsed is not None else {}
            if parsed is None or not missing:
                return _NOBODY
            asked = Asked(parsed, missing)
            asking = asyncio.get_running_loop().run_in_executor(self._threads, lambda: dict(self._live()))
            return replace(asked, live=await asyncio.wait_for(asking, LIVE_S))
        except (DistributedComfyError, redis.RedisError, ValueError) as error:
            log.debug("a prompt is validated as it is: %s", error)
            return replace(asked, unanswered=str(error))
        except asyncio.TimeoutError:
            log.warning("a prompt needs what is not here, and the cluster did not say within %.0f s whether a worker has it", LIVE_S)
            return replace(asked, unanswered=f"the cluster did not answer within {LIVE_S:.0f} s")


def _with_jobs(posted: Any) -> Prompt | None:
    """The prompt of a body, where some of its nodes get what they give from a job."""
    prompt = posted.get("prompt") if isinstance(posted, dict) else None
    if not isinstance(prompt, dict):
        return None
    if not any(isinstance(node, dict) and node.get("class_type") in JOB_CLASSES for node in prompt.values()):
        return None
    try:
        return parse_prompt(prompt).prompt
    except DistributedComfyError as error:  # ComfyUI says what is wrong with it
        log.debug("a prompt is validated as it is: %s", error)
        return None
