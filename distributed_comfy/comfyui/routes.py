"""HTTP routes of the pack on ComfyUI's own server, all below ``/distributed_comfy``; `callers` says who may use them.

What a route may do follows from how it is registered: `open_to_site` for what any page of this ComfyUI and any script may read,
`with_token` for all that changes something, starts a program or reads a log.
"""
from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

import redis
from aiohttp import web

from distributed_comfy import __version__
from distributed_comfy.comfyui.control import VERBS, Control
from distributed_comfy.comfyui.pack import Pack
from distributed_comfy.errors import ClusterUnavailable, DistributedComfyError, JobUnknown, OrderRefused, WorkerUnknown
from distributed_comfy.orchestrator.inviting import InviteOptions
from distributed_comfy.panel.bodies import BadRequest, body_of, number_of, text_of
from distributed_comfy.panel.callers import Callers, Refused
from distributed_comfy.panel.token import read_token, token_path
from distributed_comfy.settings import redact_url

log = logging.getLogger(__name__)

_LINES = 500
_SECRET = {"Cache-Control": "no-store"}
"""Headers of an answer that nobody on the way may keep."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Judge = Callable[[web.Request], None]


class Routes:
    """Adds routes to ComfyUI's table, each behind a judge; ComfyUI offers each below ``/api`` too."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack
        self.control = Control(pack)
        path = token_path(pack.settings)
        self.callers = Callers(lambda: read_token(path), pack.settings.comfyui_names.split(","))
        self.in_thread = pack.threads.run
        """Runs what may wait for a file, Redis or an agent."""

    def open_to_site(self, method: str, path: str, handler: Handler) -> None:
        """For scripts and for pages of this ComfyUI."""
        self._add(method, path, handler, self.callers.check_site)

    def with_token(self, method: str, path: str, handler: Handler) -> None:
        """For those who have the token."""
        self._add(method, path, handler, self.callers.check_token)

    def own_browser(self, method: str, path: str, handler: Handler) -> None:
        """For ComfyUI's own page in a browser on this host."""
        self._add(method, path, handler, self.callers.check_own_browser)

    async def told(self, call: Callable[..., Any], *given: Any, headers: Mapping[str, str] | None = None) -> web.Response:
        """What a call gives, as JSON; it may wait for Redis or an agent, so it runs in a thread."""
        return web.json_response(await self.in_thread(call, *given), headers=headers)

    def _add(self, method: str, path: str, handler: Handler, judge: Judge) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                await self.in_thread(judge, request)  # the token is in a file
                return await handler(request)
            except Refused as refused:
                log.info("%s %s refused: %s", request.method, request.path, refused.reason)
                return web.json_response({"error": refused.reason}, status=refused.status)
            except BadRequest as error:
                return web.json_response({"error": str(error)}, status=400)
            except DistributedComfyError as error:
                return web.json_response({"error": str(error), "code": error.code}, status=_status_of(error))
            except redis.RedisError as error:
                return web.json_response({"error": f"Redis: {redact_url(str(error))}"}, status=503)

        self.pack.host.server.routes.route(method, path)(answer)


def add_pack_routes(routes: Routes) -> None:
    """Add the pack's own."""
    _add_pack(routes)
    _add_workers(routes)
    _add_jobs(routes)


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


def _add_pack(routes: Routes) -> None:
    pack, control = routes.pack, routes.control

    async def status(_request: web.Request) -> web.Response:
        return await routes.told(pack_status, pack)  # it may ask another process

    async def token(_request: web.Request) -> web.Response:
        text = await routes.in_thread(read_token, token_path(pack.settings))
        return web.json_response({"token": text}, headers=_SECRET)

    async def options(_request: web.Request) -> web.Response:
        return web.json_response(pack.options.model_dump())

    async def change_options(request: web.Request) -> web.Response:
        return await routes.told(control.change_options, await body_of(request))

    async def clear_memory(_request: web.Request) -> web.Response:
        return web.json_response({"workers": await routes.in_thread(control.clear_memory)})

    routes.open_to_site("GET", "/distributed_comfy/status", status)
    routes.own_browser("POST", "/distributed_comfy/token", token)
    routes.open_to_site("GET", "/distributed_comfy/options", options)
    routes.with_token("POST", "/distributed_comfy/options", change_options)
    routes.with_token("POST", "/distributed_comfy/clear_memory", clear_memory)


def _add_workers(routes: Routes) -> None:
    control = routes.control

    async def workers(_request: web.Request) -> web.Response:
        return await routes.told(control.workers)

    async def add(request: web.Request) -> web.Response:
        body = await body_of(request)
        fields = body.get("fields", {})
        if not isinstance(fields, dict):
            raise BadRequest("fields must be an object, as a worker has them in workers.json")
        return await routes.told(control.add_worker, text_of(body, "name"), fields)

    async def order(request: web.Request) -> web.Response:
        verb = next((known for known in VERBS if known == request.match_info["verb"]), None)
        if verb is None:
            raise BadRequest(f"a worker can be told {', '.join(VERBS)}")
        body = await body_of(request)
        allowed = {"edit": ("fields", "restart"), "stop": ("at_once",)}.get(verb, ())
        if unknown := sorted(body.keys() - set(allowed)):
            raise BadRequest(f"{verb} knows no {', '.join(unknown)[:200]}")
        return await routes.told(functools.partial(control.order, verb, request.match_info["name"], **body))

    async def worker_log(request: web.Request) -> web.Response:
        lines = await routes.in_thread(control.log_lines, request.match_info["name"], number_of(request, "lines", _LINES))
        return web.json_response({"lines": [{"at_ms": line.at_ms, "level": line.level, "text": line.text} for line in lines]})

    routes.open_to_site("GET", "/distributed_comfy/workers", workers)
    routes.with_token("POST", "/distributed_comfy/workers", add)
    routes.with_token("POST", "/distributed_comfy/workers/{name}/{verb}", order)
    routes.with_token("GET", "/distributed_comfy/workers/{name}/log", worker_log)


def _add_jobs(routes: Routes) -> None:
    control = routes.control

    async def jobs(_request: web.Request) -> web.Response:
        return web.json_response({"jobs": await routes.in_thread(control.jobs)})

    async def cancel(request: web.Request) -> web.Response:
        return await routes.told(control.cancel_job, request.match_info["job"])

    async def invite(request: web.Request) -> web.Response:
        body = await body_of(request)
        options = InviteOptions(name=text_of(body, "name"), url=text_of(body, "url"))
        return await routes.told(control.invite, options, headers=_SECRET)

    async def invites(_request: web.Request) -> web.Response:
        return web.json_response({"invites": await routes.in_thread(control.invites)})

    async def revoke(request: web.Request) -> web.Response:
        return await routes.told(control.revoke, request.match_info["name"])

    routes.open_to_site("GET", "/distributed_comfy/jobs", jobs)
    routes.with_token("POST", "/distributed_comfy/jobs/{job}/cancel", cancel)
    routes.with_token("POST", "/distributed_comfy/invites", invite)
    routes.with_token("GET", "/distributed_comfy/invites", invites)
    routes.with_token("POST", "/distributed_comfy/invites/{name}/revoke", revoke)


def _status_of(error: DistributedComfyError) -> int:
    if isinstance(error, (WorkerUnknown, JobUnknown)):
        return 404
    if isinstance(error, OrderRefused):
        return 409
    return 503 if isinstance(error, ClusterUnavailable) else 400
