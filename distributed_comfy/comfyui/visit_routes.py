"""The routes by which workers of engine `attach` send tensors to this ComfyUI and take them from it; the words are `pack_words`.

They want the key that is made of the pack's token, and nothing else opens them; the key opens nothing else.
"""
from __future__ import annotations

import asyncio
import hmac
import re
import sys
from collections.abc import Awaitable, Callable
from functools import cache
from weakref import WeakKeyDictionary

from aiohttp import web

from distributed_comfy import __version__
from distributed_comfy.comfyui.routes import Routes
from distributed_comfy.comfyui.surroundings import for_workers
from distributed_comfy.comfyui.visits import OpenVisit, VisitContext, Visits
from distributed_comfy.engine.attach.pack_words import (
    ATTACH_PATH,
    NOT_FOR_IT,
    RECORDS_LIMIT_BYTES,
    VISITS_PATH,
    WANTED_S,
    PackFacts,
    Visit,
)
from distributed_comfy.engine.comfyui.device import device_class
from distributed_comfy.engine.comfyui.launch import tree_commit
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.errors import FrameTooLarge
from distributed_comfy.messages import from_plain, to_plain
from distributed_comfy.pack_token import KEY_HEADER, attach_key
from distributed_comfy.panel.bodies import BadRequest, body_of, number_of
from distributed_comfy.panel.callers import Refused
from distributed_comfy.panel.token import read_token, token_path
from distributed_comfy.settings import slug

_CLAIM = re.compile(r"[A-Za-z0-9_-]{1,80}")
_PIECE_BYTES = 2**20
_STUCK_S = 60.0
"""A frame that does not move for so long is given up."""
_ENDED, _TOO_MANY = 404, 429

VisitHandler = Callable[[web.Request, OpenVisit], Awaitable[web.StreamResponse]]


class VisitRoutes:
    """Answers workers."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._pack = routes.pack
        self._visits = Visits(self._pack.host, self._pack.settings.blob_limit_bytes)
        self._news: WeakKeyDictionary[OpenVisit, asyncio.Event] = WeakKeyDictionary()
        self._device_class = cache(self._read_device_class)

    def add(self) -> None:
        """Let nodes of workers' prompts find their values, and workers in."""
        context = self._pack.context
        context.inner = VisitContext(self._visits, self._pack.host.executing, context.inner)
        one = VISITS_PATH + "/{claim}"
        self._routes.open_to_site("GET", ATTACH_PATH, self._facts)
        self._routes.open_to_site("POST", VISITS_PATH, self._open)
        self._of_visit("GET", f"{one}/wanted", self._wanted)
        self._of_visit("PUT", f"{one}/blob", self._take)
        self._of_visit("GET", f"{one}/captures", self._captures)
        self._of_visit("GET", f"{one}/blob", self._give)
        self._routes.open_to_site("DELETE", one, self._end)

    def _of_visit(self, method: str, path: str, handler: VisitHandler) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            await self._require_key(request)
            visit = self._visits.of_claim(request.match_info["claim"])
            if visit is None:
                return web.json_response({"error": "there is no such visit (any more)"}, status=_ENDED)
            with visit.heard():
                return await handler(request, visit)

        self._routes.open_to_site(method, path, answer)

    async def _require_key(self, request: web.Request) -> None:
        """
        Raises:
            Refused: 401.
        """
        if not await self._has_key(request):
            remedy = "set DC_COMFYUI_TOKEN of the worker to what `distributed-comfy comfyui token` prints here"
            raise Refused(401, f"{KEY_HEADER} is missing or wrong; {remedy}")

    async def _has_key(self, request: web.Request) -> bool:
        token = await self._routes.in_thread(read_token, token_path(self._pack.settings))
        return hmac.compare_digest(request.headers.get(KEY_HEADER, "").encode("utf-8", "replace"), attach_key(token).encode())

    # -- answers --------------------------------------------------------------------------------------------------------
    async def _facts(self, request: web.Request) -> web.Response:
        allowed = await self._has_key(request)
        its_class = await self._routes.in_thread(self._device_class) if allowed else ""
        return web.json_response(to_plain(PackFacts(__version__, allowed, its_class)))

    async def _open(self, request: web.Request) -> web.Response:
        await self._require_key(request)
        body = await body_of(request, RECORDS_LIMIT_BYTES)
        visit = await self._routes.in_thread(from_plain, Visit, body)
        if not _CLAIM.fullmatch(visit.claim_id) or not visit.worker or visit.worker != slug(visit.worker):
            raise BadRequest("a visit has a claim and a worker, in the letters of such names")
        if await self._routes.in_thread(self._waits_for, visit.job_id):
            return web.json_response({"error": "another ComfyUI than the one that waits for the job"}, status=NOT_FOR_IT)
        news, loop = asyncio.Event(), asyncio.get_running_loop()
        try:
            opened = self._visits.open(visit, lambda: _wake(loop, news))
        except FrameTooLarge as error:
            lacks = f"room for what the item is fed with in its ComfyUI ({error})"
            return web.json_response({"error": lacks}, status=NOT_FOR_IT)
        if opened is None:
            return web.json_response({"error": "too many visits at the same time"}, status=_TOO_MANY)
        self._news[opened] = news
        return web.json_response({"files": await self._routes.in_thread(self._visits.kept_files, visit.worker)})

    async def _wanted(self, _request: web.Request, visit: OpenVisit) -> web.Response:
        news = self._news[visit]
        news.clear()
        if not visit.blobs.wanted() and not visit.ended:
            try:
                await asyncio.wait_for(news.wait(), WANTED_S)
            except asyncio.TimeoutError:
                pass
        return web.json_response({"blobs": visit.blobs.wanted()})

    async def _take(self, request: web.Request, visit: OpenVisit) -> web.Response:
        blob, size = request.query.get("id", ""), number_of(request, "size", 0)
        if not 0 < size <= visit.blobs.room_for(blob):
            raise BadRequest("nothing waits for such a frame")
        frame = bytearray()  # it takes the memory of what has come, not of what was announced
        while piece := await asyncio.wait_for(request.content.read(_PIECE_BYTES), _STUCK_S):
            frame += piece
            if len(frame) > size:
                raise BadRequest("the frame is longer than it was said to be")
        if len(frame) != size:
            raise BadRequest("the frame is shorter than it was said to be")
        visit.blobs.arrive(blob, frame)
        return web.json_response({})

    async def _captures(self, _request: web.Request, visit: OpenVisit) -> web.Response:
        return web.json_response(to_plain(await self._routes.in_thread(visit.result)))

    async def _give(self, request: web.Request, visit: OpenVisit) -> web.StreamResponse:
        pieces = visit.blobs.given(request.query.get("id", ""))
        if pieces is None:
            return web.json_response({"error": "there is no such frame"}, status=_ENDED)
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.content_length = sum(len(piece) for piece in pieces)
        await response.prepare(request)
        for piece in pieces:
            view = memoryview(piece)
            for start in range(0, len(view), _PIECE_BYTES):
                await asyncio.wait_for(response.write(view[start : start + _PIECE_BYTES]), _STUCK_S)
        await response.write_eof()
        return response

    async def _end(self, request: web.Request) -> web.Response:
        await self._require_key(request)
        await self._routes.in_thread(self._visits.end, request.match_info["claim"])
        return web.json_response({})

    # -- this ComfyUI ---------------------------------------------------------------------------------------------------
    def _waits_for(self, job_id: str) -> bool:
        """Whether a prompt of this ComfyUI waits for the job: an item behind it in the queue would never run."""
        return self._pack.jobs is not None and self._pack.jobs.has_job(job_id)

    def _read_device_class(self) -> str:
        """As a worker on this device would have it: what chooses the device is no flag of its own then."""
        host, folder = self._pack.host, self._pack.settings.cache_folder
        commit, arguments = tree_commit(host.root), tuple(for_workers(sys.argv[1:]))
        options = EngineOptions("comfyui", "", sys.executable, folder, folder, "", device=host.device(), comfyui_args=arguments)
        return device_class(options, f"{host.version} ({commit})" if commit else host.version, sys.modules["torch"])


def add_visit_routes(routes: Routes) -> None:
    """Let workers of engine `attach` in."""
    VisitRoutes(routes).add()


def _wake(loop: asyncio.AbstractEventLoop, news: asyncio.Event) -> None:
    """From any thread; a loop that has ended has nobody who waits."""
    try:
        loop.call_soon_threadsafe(news.set)
    except RuntimeError:
        pass
