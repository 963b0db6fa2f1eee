"""How the panel answers: who may ask, work in threads of its own, and every failure in the one form that openapi.json gives it."""
from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import redis
from aiohttp import web

from distributed_comfy.errors import DistributedComfyError, PanelFault
from distributed_comfy.panel.bodies import BadRequest, body_of
from distributed_comfy.panel.callers import Refused
from distributed_comfy.panel.contract import Operation, check_body
from distributed_comfy.panel.words import split_text, status_of, told

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Judge = Callable[[web.Request], None]
T = TypeVar("T")

SECRET = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""Headers of every answer: nobody on the way may keep it."""
_BODY = "panel body"
_QUICK, _LONG, _URGENT, _FOLLOWED, _JUDGING, _DRAWING = 6, 6, 3, 8, 2, 2


class Threads:
    """Where the panel waits for Redis: neither on the event loop nor in its usual pool, which belongs to others.

    What may last (an agent, the doctor, a tunnel) has a pool of its own, so that it keeps no page from its state; so have what ends
    work, which is wanted most when all else hangs, logs that somebody follows, and the look whether a caller may ask at all.  Files are
    drawn small by two threads: each of them may hold a whole picture, and a page asks for hundreds.
    """

    def __init__(self) -> None:
        self._quick = ThreadPoolExecutor(_QUICK, thread_name_prefix="panel")
        self._long = ThreadPoolExecutor(_LONG, thread_name_prefix="panel-long")
        self._urgent = ThreadPoolExecutor(_URGENT, thread_name_prefix="panel-urgent")
        self._followed = ThreadPoolExecutor(_FOLLOWED, thread_name_prefix="panel-log")
        self._judging = ThreadPoolExecutor(_JUDGING, thread_name_prefix="panel-token")
        self._drawing = ThreadPoolExecutor(_DRAWING, thread_name_prefix="panel-picture")

    async def quick(self, call: Callable[..., T], *given: Any) -> T:
        """What a call gives that waits for Redis alone."""
        return await asyncio.get_running_loop().run_in_executor(self._quick, call, *given)

    async def quick_json(self, call: Callable[..., Any], *given: Any) -> web.Response:
        """An answer with what such a call gives, which may be long: the event loop is not to wait while it is made into text."""
        text = await self.quick(lambda: json.dumps(call(*given)))
        return web.Response(text=text, content_type="application/json", headers=SECRET)

    async def long(self, call: Callable[..., T], *given: Any, **named: Any) -> T:
        """What a call gives that may wait for more."""
        return await asyncio.get_running_loop().run_in_executor(self._long, functools.partial(call, *given, **named))

    async def urgent(self, call: Callable[..., T], *given: Any) -> T:
        """What a call gives that ends work, holds it or lets it go on."""
        return await asyncio.get_running_loop().run_in_executor(self._urgent, call, *given)

    async def follow(self, call: Callable[..., T], *given: Any) -> T:
        """What a call gives that waits for the next lines of a log."""
        return await asyncio.get_running_loop().run_in_executor(self._followed, call, *given)

    async def draw(self, call: Callable[..., T], *given: Any) -> T:
        """What a call gives that decodes a picture."""
        return await asyncio.get_running_loop().run_in_executor(self._drawing, call, *given)

    async def judge(self, judge: Judge, request: web.Request) -> None:
        """Let a judge look at a request: the token is in a file."""
        await asyncio.get_running_loop().run_in_executor(self._judging, judge, request)

    def end(self) -> None:
        """Begin nothing more."""
        for pool in (self._quick, self._long, self._urgent, self._followed, self._judging, self._drawing):
            pool.shutdown(wait=False, cancel_futures=True)


def answered(operation: Operation, handler: Handler, judge: Judge, threads: Threads) -> Handler:
    """A handler behind its judge, whose failures become answers."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            await threads.judge(judge, request)
            if operation.body is not None:
                request[_BODY] = await body_of(request)
                check_body(operation, request[_BODY])
            return await handler(request)
        except Refused as refused:
            log.info("%s %s refused: %s", request.method, request.path, refused.reason)
            return refusal(refused)
        except BadRequest as error:
            fields = {"fields": error.fields} if error.fields else {}
            return failure(400, {"code": "request_wrong", "message": str(error), "remedy": "", **fields})
        except (DistributedComfyError, redis.RedisError) as error:
            return failure(status_of(error), told(error))
        except (web.HTTPException, ConnectionError):  # an answer of its own; and a page that is gone
            raise
        except Exception as error:
            if request.writer.output_size:  # an answer has begun, and can only be cut off
                raise
            log.exception("%s %s failed; please report it", request.method, request.path)
            return failure(500, told(PanelFault(reason=f"{type(error).__name__}: {error}"[:200])))

    return answer


def body(request: web.Request) -> dict[str, Any]:
    """The JSON object of a request, which is as openapi.json wants it."""
    found: dict[str, Any] = request[_BODY]
    return found


def told_as_json(value: Any, status: int = 200) -> web.Response:
    """An answer."""
    return web.json_response(value, status=status, headers=SECRET)


def failure(status: int, error: dict[str, Any]) -> web.Response:
    """``Failure`` of openapi.json."""
    return told_as_json({"error": error}, status)


def refusal(refused: Refused) -> web.Response:
    """The same for somebody who may not ask."""
    message, remedy = split_text(refused.reason)
    return failure(refused.status, {"code": refused.code, "message": message, "remedy": remedy})
