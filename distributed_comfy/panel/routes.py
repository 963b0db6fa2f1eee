"""The panel's routes: for each operation of openapi.json the method here that does it, named like it."""
from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from aiohttp import web

from distributed_comfy.errors import JobUnknown, NoMaster, OrderRefused, WorkerFieldsWrong, WorkerUnknown
from distributed_comfy.orchestrator.inviting import InviteOptions
from distributed_comfy.panel.answering import SECRET, Handler, Judge, Threads, answered, body, told_as_json
from distributed_comfy.panel.bodies import BadRequest, number_of
from distributed_comfy.panel.contract import contract, operations
from distributed_comfy.panel.examining import Doctor
from distributed_comfy.panel.explained import extra_arguments
from distributed_comfy.panel.inviting import PanelInvites
from distributed_comfy.panel.job_details import JobDetails
from distributed_comfy.panel.job_orders import STARTING_ORDERS, JobOrders
from distributed_comfy.panel.kept_settings import KeptSettings
from distributed_comfy.panel.page import page_routes
from distributed_comfy.panel.place import Master, Place
from distributed_comfy.panel.streams import Streams
from distributed_comfy.panel.taking_over import take_over
from distributed_comfy.panel.tunnels import LEADING, Tunnels
from distributed_comfy.panel.watch import Watch
from distributed_comfy.panel.worker_logs import ALL_LINES, LINES, LogQuery, LogReader
from distributed_comfy.panel.worker_orders import WorkerOrders
from distributed_comfy.settings import slug

_ELSEWHERE = frozenset({"get_health"})
"""Operations that the relay has."""
_JOBS = 1000
_MOST_JOBS = 10_000
_SIDE_PX, _SIDES_PX = 320, range(16, 2049)
_DAY_S = 86_400.0
_SHOWN_INLINE = ("image/", "video/", "audio/")


class Panel:
    """One per process.

    Args:
        place: what serves it.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.threads = Threads()
        self.watch = Watch(place, lambda: self.tunnels.shown())
        self.tunnels = Tunnels(place, lambda: self.watch.now_ms, self.watch.look_soon)
        self._logs = LogReader(place)
        self._streams = Streams(self.watch, self._logs, self.threads)
        self._workers, self._job_orders = WorkerOrders(place), JobOrders(place)
        self._details = JobDetails(place, self.watch.steps, self.watch.jobs)
        self._invites, self._doctor, self._settings = PanelInvites(place, self.tunnels), Doctor(place), KeptSettings(place.own)

    def routes(self, judge: Judge) -> list[web.RouteDef]:
        """What to add to an application.

        Args:
            judge: raises `callers.Refused` for whoever may not use what needs the token.
        """
        found = []
        for operation in operations():
            if operation.name not in _ELSEWHERE:
                handler: Handler = getattr(self, operation.name)
                judged = _nobody if operation.is_open else judge
                found.append(web.route(operation.method, operation.path, answered(operation, handler, judged, self.threads)))
        return [*found, *page_routes()]

    def halt(self) -> None:
        """Let everything end that runs in threads; returns at once."""
        self.watch.end()
        self._doctor.end()
        self.tunnels.halt()

    async def end(self, _application: Any = None) -> None:
        """Close streams and tunnel; what waits in threads is not waited for."""
        self._streams.end()
        self.watch.end()
        self._doctor.end()
        if self.tunnels.shown()["state"] in LEADING:
            await self.threads.urgent(self.tunnels.close)
        self.threads.end()

    # -- state -----------------------------------------------------------------------------------------------------------
    async def get_openapi(self, _request: web.Request) -> web.StreamResponse:
        """What page and server agree on."""
        return web.json_response(contract(), headers={"Cache-Control": "no-cache"})

    async def get_state(self, _request: web.Request) -> web.StreamResponse:
        """Everything."""
        return await self.threads.quick_json(self.watch.state)

    async def follow_events(self, request: web.Request) -> web.StreamResponse:
        """Everything, then what changes."""
        job_id = request.query.get("job", "")
        if job_id:
            _check_job(job_id)  # one that is gone meanwhile, or not to be asked for now, must not cost a page all the rest
        return await self._streams.state(request, job_id)

    async def get_hosts(self, _request: web.Request) -> web.StreamResponse:
        """Hosts alone."""
        return told_as_json({"hosts": (await self.threads.quick(self.watch.state))["hosts"]})

    async def forget_host(self, request: web.Request) -> web.StreamResponse:
        """One that is not heard of any more."""
        name = request.match_info["name"]
        if name != slug(name):
            raise OrderRefused(what=f"host {name[:100]}", reason="no host is called so")
        return await self._ordered(self._workers.forget_host, name)

    async def list_settings(self, _request: web.Request) -> web.StreamResponse:
        """Timeouts and limits."""
        return await self.threads.quick_json(self._settings.shown)

    async def change_settings(self, request: web.Request) -> web.StreamResponse:
        """For the next start."""
        return await self.threads.quick_json(self._settings.change, body(request)["changes"])

    async def list_extra_arguments(self, _request: web.Request) -> web.StreamResponse:
        """Of ComfyUI."""
        return told_as_json({"arguments": extra_arguments()})

    # -- workers ---------------------------------------------------------------------------------------------------------
    async def add_worker(self, request: web.Request) -> web.StreamResponse:
        """One more."""
        given = body(request)
        return await self._ordered(self._workers.add, given.get("host", ""), given.get("name", ""), _fields(given))

    async def edit_worker(self, request: web.Request) -> web.StreamResponse:
        """Another configuration."""
        given, name = body(request), _worker(request)
        changes: dict[str, Any] = {"restart": given.get("restart", False), "new": given.get("name", "")}
        return await self._ordered(self._workers.edit, name, _fields(given), **changes)

    async def remove_worker(self, request: web.Request) -> web.StreamResponse:
        """One less."""
        return await self._ordered(self._workers.remove, _worker(request))

    async def order_worker(self, request: web.Request) -> web.StreamResponse:
        """Start, stop and so on."""
        given, name = body(request), _worker(request)
        return await self._ordered(self._workers.order, name, given["order"], at_once=given.get("at_once", False))

    async def order_all(self, request: web.Request) -> web.StreamResponse:
        """The same for all."""
        given = body(request)
        return await self._ordered(self._workers.order_all, given["order"], given.get("host", ""))

    async def _ordered(self, order: Callable[..., dict[str, Any]], *given: Any, **named: Any) -> web.StreamResponse:
        answer = await self.threads.long(order, *given, **named)
        self.watch.look_soon()
        return told_as_json(answer)

    async def _ordered_now(self, order: Callable[..., dict[str, Any]], *given: Any) -> web.StreamResponse:
        answer = await self.threads.urgent(order, *given)
        self.watch.look_soon()
        return told_as_json(answer)

    # -- logs ------------------------------------------------------------------------------------------------------------
    async def read_log(self, request: web.Request) -> web.StreamResponse:
        """The last lines, or those that were searched for."""
        lines = number_of(request, "lines", LINES)
        if not 1 <= lines <= ALL_LINES:
            raise BadRequest(f"lines must be from 1 to {ALL_LINES}")
        search, level, source = (request.query.get(name, "") for name in ("search", "level", "source"))
        query = LogQuery(lines, search, level, source)
        return await self.threads.quick_json(self._logs.read, _worker(request), query)

    async def follow_log(self, request: web.Request) -> web.StreamResponse:
        """Lines as they come."""
        after = request.query.get("after", "")
        if after and not all(part.isdigit() for part in after.split("-", 1)):
            raise BadRequest("after must be the id of a line")
        return await self._streams.log(request, _worker(request), after)

    async def download_log(self, request: web.Request) -> web.StreamResponse:
        """All lines as a file."""
        name = _worker(request)
        text = await self.threads.quick(self._logs.text, name)
        return web.Response(text=text, content_type="text/plain", charset="utf-8", headers={**SECRET, **_as_file(f"{name}.log")})

    # -- jobs ------------------------------------------------------------------------------------------------------------
    async def list_jobs(self, request: web.Request) -> web.StreamResponse:
        """The newest first."""
        limit, wanted = number_of(request, "limit", _JOBS), request.query.get("state", "")
        states = contract()["components"]["schemas"]["JobState"]["enum"]
        if wanted and wanted not in states:
            raise BadRequest(f"state must be one of {', '.join(states)}")
        if not 1 <= limit <= _MOST_JOBS:
            raise BadRequest(f"limit must be from 1 to {_MOST_JOBS}")
        found = (await self.threads.quick(self.watch.state))["jobs"].values()
        jobs = [job for job in found if wanted in ("", job["state"])]
        return told_as_json({"jobs": sorted(jobs, key=lambda job: -job["created_ms"])[:limit], "total": len(jobs)})

    async def get_job(self, request: web.Request) -> web.StreamResponse:
        """With its items and results."""
        job_id = _job(request)
        return await self.threads.quick_json(self._details.shown, job_id, self.watch.estimate(job_id))

    async def order_job(self, request: web.Request) -> web.StreamResponse:
        """Cancel, retry and so on."""
        given, job_id = body(request), _job(request)

        def order() -> dict[str, Any]:
            text = self._job_orders.order(job_id, given["order"], priority=given.get("priority"), reason=given.get("reason", ""))
            return {"text": text, "job": self._details.job(job_id, self.watch.estimate(job_id))}

        return await (self._ordered if given["order"] in STARTING_ORDERS else self._ordered_now)(order)

    async def get_preview(self, request: web.Request) -> web.StreamResponse:
        """A picture of an item."""
        index, side = request.match_info["index"], _side(request)
        if not (index.isascii() and index.isdecimal() and len(index) <= 6):
            raise BadRequest("the item must be a number")
        picture = await self.threads.quick(self._details.preview, _job(request), int(index), side)
        return web.Response(body=picture.content, content_type=picture.media_type, headers=SECRET)

    async def list_results(self, request: web.Request) -> web.StreamResponse:
        """Files on this host."""
        return await self.threads.quick_json(self._details.results, _job(request))

    async def get_result(self, request: web.Request) -> web.StreamResponse:
        """One of them, or a small picture of it; what a browser could run as a page of this site is only given to be saved."""
        if "side" in request.query:
            picture = await self.threads.draw(self._details.thumbnail, _job(request), request.match_info["path"], _side(request))
            return web.Response(body=picture.content, content_type=picture.media_type, headers=SECRET)
        path, kind = await self.threads.quick(self._details.file, _job(request), request.match_info["path"])
        saves = request.query.get("download", "") not in ("", "0", "false") or not kind.startswith(_SHOWN_INLINE) or "svg" in kind
        sandbox = {"Content-Security-Policy": "sandbox; default-src 'none'"}
        return web.FileResponse(path, headers={**SECRET, **sandbox, "Content-Type": kind, **(_as_file(path.name) if saves else {})})

    # -- the cluster -----------------------------------------------------------------------------------------------------
    async def list_invites(self, _request: web.Request) -> web.StreamResponse:
        """Invited hosts."""
        return told_as_json({"invites": await self.threads.long(self._invites.all)})

    async def invite_host(self, request: web.Request) -> web.StreamResponse:
        """One more; the answer is a password."""
        given = body(request)
        options = InviteOptions(
            name=given.get("name", ""), url=given.get("url", ""), bind=given.get("bind", ""),
            expires_s=float(given.get("expires_s", _DAY_S)), check=given.get("check", True),
        )  # fmt: skip
        return await self._ordered(self._invites.invite, options, by_tunnel=given.get("tunnel", False))

    async def revoke_invite(self, request: web.Request) -> web.StreamResponse:
        """One less."""
        return await self._ordered(self._invites.revoke, request.match_info["name"])

    async def get_tunnel(self, _request: web.Request) -> web.StreamResponse:
        """How the public address is."""
        return told_as_json(self.tunnels.shown())

    async def open_tunnel(self, _request: web.Request) -> web.StreamResponse:
        """Open it."""
        return await self._ordered(self.tunnels.open)

    async def close_tunnel(self, _request: web.Request) -> web.StreamResponse:
        """Close it."""
        return await self._ordered_now(self.tunnels.close)

    async def examine(self, request: web.Request) -> web.StreamResponse:
        """The doctor's report."""
        return told_as_json(await self.threads.long(self._doctor.report, engine=body(request).get("engine", False)))

    async def import_config(self, request: web.Request) -> web.StreamResponse:
        """Take over the configuration of another project."""
        given = body(request)
        return await self._ordered(take_over, self.place, given["text"], dry_run=given.get("dry_run", False))

    # -- the master ------------------------------------------------------------------------------------------------------
    async def get_master(self, _request: web.Request) -> web.StreamResponse:
        """The ComfyUI that serves the page."""
        return told_as_json(await self.threads.quick(self._master("master").shown))

    async def change_options(self, request: web.Request) -> web.StreamResponse:
        """Options of the node pack."""
        master, given = self._master("options"), body(request)

        def change() -> dict[str, Any]:
            master.change(given)
            return master.shown()

        return await self._ordered(change)

    async def interrupt(self, request: web.Request) -> web.StreamResponse:
        """End one job, those of this master, or all."""
        given = body(request)
        if given.get("job"):
            _check_job(given["job"])
        return await self._ordered_now(self._job_orders.interrupt, given["what"], given.get("job", ""))

    def _master(self, what: str) -> Master:
        if self.place.master is None:
            raise NoMaster(what=what)
        return self.place.master


def _nobody(_request: web.Request) -> None:
    """Refuses nobody."""


def _check_job(job_id: str) -> None:
    """Nothing else is made a part of a key."""
    if not re.fullmatch("[0-9a-f]{12}", job_id, re.ASCII):
        raise JobUnknown(job_id=job_id[:100])


def _job(request: web.Request) -> str:
    job_id = request.match_info["job"]
    _check_job(job_id)
    return job_id


def _side(request: web.Request) -> int:
    side = number_of(request, "side", _SIDE_PX)
    if side not in _SIDES_PX:
        raise BadRequest(f"side must be from {_SIDES_PX[0]} to {_SIDES_PX[-1]}")
    return side


def _worker(request: web.Request) -> str:
    name = request.match_info["name"]
    if name != slug(name):
        raise WorkerUnknown(name=name[:100])
    return name


def _fields(given: dict[str, Any]) -> dict[str, Any]:
    fields = given.get("fields", {})
    if not isinstance(fields, dict):
        raise WorkerFieldsWrong(shown="fields must be an object", wrong={"fields": "must be an object"})
    return fields


def _as_file(name: str) -> dict[str, str]:
    """Headers that let a browser save an answer under a name."""
    return {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}"}
