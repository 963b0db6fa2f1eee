"""The endpoints of ComfyUI-Distributed that scripts of its users call, answered in its shape from this cluster.

A worker has the id that it had there, where it was imported, else its name; both are understood.  What would start a program, change
something or read a log needs the token; docs/comfyui-migration.md has the table.
"""
from __future__ import annotations

import asyncio
import platform
import socket
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import redis
from aiohttp import web

from distributed_comfy.comfyui.compat_config import OPTION_OF, as_old_configuration, device_of, fields_of, option_change
from distributed_comfy.comfyui.old_ids import LONGEST, id_of, name_of, old_ids, unknown_id
from distributed_comfy.comfyui.queueing import post_prompt
from distributed_comfy.comfyui.routes import Handler, Routes
from distributed_comfy.errors import DistributedComfyError, WorkerUnknown
from distributed_comfy.host_messages import HostVerb
from distributed_comfy.panel.bodies import BadRequest, body_of, number_of, text_of
from distributed_comfy.settings import slug
from distributed_comfy.state.records import HostDevice, HostRecord, HostWorker
from distributed_comfy.state.worker_log import LogLine
from distributed_comfy.workflow.classes import COLLECTOR_CLASS, UPSCALE_CLASS

PREFIX = "/distributed"
LONGEST_PROMPT_BYTES = 64 * 2**20
_LINES = 500
_STARTED_WITHIN_S = 5.0
_POLL_S = 0.1
_RUNNING = ("starting", "running", "draining", "stopping")
_GONE = "files are not read by path any more: POST /upload/image brings one in, and GET /view shows those of the input and output folders"


class CompatibleRoutes:
    """The handlers; all of them ask the same `Control` as the pack's own routes."""

    def __init__(self, routes: Routes) -> None:
        self._pack = routes.pack
        self._control = routes.control
        self._in_thread = routes.in_thread

    # -- prompts ---------------------------------------------------------------------------------------------------------
    async def queue(self, request: web.Request) -> web.Response:
        """Queue a prompt as ``POST /prompt`` does, which distributes it as well."""
        body = await body_of(request, LONGEST_PROMPT_BYTES)
        posted, wanted = prompt_request(body), wanted_workers(body)  # whatever is wrong is said before anything is queued
        try:
            status, answer = await post_prompt(self._pack.host, posted, request)
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
            return web.json_response({"error": f"ComfyUI does not take the prompt: {error or type(error).__name__}"}, status=500)
        if status != web.HTTPOk.status_code or not isinstance(answer, dict):
            return web.json_response(answer, status=status)
        count = await self._in_thread(self._worker_count, wanted, posted["prompt"])
        return web.json_response({**answer, "worker_count": count, "auto_prepare_supported": True})

    async def queue_status(self, request: web.Request) -> web.Response:
        """Whether a job, or a prompt of this ComfyUI, is not over."""
        job_id = request.match_info["job_id"]
        return web.json_response({"exists": await self._in_thread(self._control.has_job, job_id), "job_id": job_id})

    def _worker_count(self, wanted: frozenset[str] | None, prompt: dict[str, Any]) -> int:
        """Workers that can have a part of it now; a prompt without nodes of ours has none."""
        if not any(isinstance(node, dict) and node.get("class_type") in (COLLECTOR_CLASS, UPSCALE_CLASS) for node in prompt.values()):
            return 0
        try:
            names = {worker["name"] for worker in self._control.workers()["cluster"] if not worker["drained"] and not worker["guest"]}
        except (DistributedComfyError, redis.RedisError):
            return 0  # the prompt is queued already: an error would have the script send it again
        return len(names if wanted is None else names & {name_of(self._record(), given) for given in wanted})

    # -- configuration ---------------------------------------------------------------------------------------------------
    async def configuration(self, _request: web.Request) -> web.Response:
        """Workers of this host and others, settings as they are called there."""
        return web.json_response(await self._in_thread(self._configuration))

    def _configuration(self) -> dict[str, Any]:
        record = self._record()
        try:
            found = self._control.workers()["cluster"]
            others = [worker for worker in found if not worker["guest"] and (record is None or worker["host"] != record.host)]
        except DistributedComfyError:
            others = []
        master = {"name": socket.gethostname(), "host": "", "port": self._pack.host.server.port}
        return as_old_configuration(record, others, self._pack.options, master)

    async def update_worker(self, request: web.Request) -> web.Response:
        """Change a worker of this host, or add one."""
        body = await body_of(request)
        given = _worker_id(body)
        fields, enabled = fields_of(body, socket_names=(socket.gethostname(), "localhost", "127.0.0.1", ""))
        return web.json_response({"status": "success", "worker_id": await self._in_thread(self._update_worker, given, fields, enabled)})

    def _update_worker(self, given: str, fields: dict[str, Any], enabled: bool | None) -> str:
        """Change a worker, or add it; being enabled starts it as little as it does there.  Gives its id."""
        record = self._record()
        name = name_of(record, given)
        if not self._control.kept(name):
            self._control.add_worker(name, {"device": usual_device(self._pack.session.workers.devices), **fields, "enabled": False})
            fields = {}
        elif enabled is False:
            self._control.order("disable", name)
        if enabled:
            fields = {**fields, "enabled": True}
        if fields:
            self._control.order("edit", name, fields=fields)
        return id_of(record, name)

    async def delete_worker(self, request: web.Request) -> web.Response:
        """Take a worker off this host."""
        answer = await self._in_thread(self._order, "remove", _worker_id(await body_of(request)))
        return web.json_response({"status": "success", "message": answer["text"]})

    async def update_setting(self, request: web.Request) -> web.Response:
        """Change an option."""
        body = await body_of(request)
        key = text_of(body, "key")
        if "value" not in body or not key:
            raise BadRequest("key and value are needed")
        if key not in OPTION_OF:
            message = f"{key[:100]} has no meaning here and is ignored; {', '.join(OPTION_OF)} have one"
            return web.json_response({"status": "success", "message": message})
        await self._in_thread(self._control.change_options, dict([option_change(key, body["value"])]))
        return web.json_response({"status": "success"})

    # -- workers of this host --------------------------------------------------------------------------------------------
    async def launch_worker(self, request: web.Request) -> web.Response:
        """Start a worker as it is configured; no argument of it comes with the request."""
        given = _worker_id(await body_of(request))
        found = await self._in_thread(self._worker, given)
        if found.phase in _RUNNING:
            answer = {"error": f"worker {found.name} is {found.phase}", "pid": found.pid, "log_file": _log_file(found)}
            return web.json_response(answer, status=409)
        text = (await self._in_thread(self._order, "start", given))["text"]
        found = await self._settled(given, lambda worker: worker.pid > 0 or worker.phase == "failed")
        if found.phase == "failed":
            return web.json_response({"error": found.reason or text}, status=422)  # as it is configured
        return web.json_response({"status": "success", "pid": found.pid, "message": text, "log_file": _log_file(found)})

    async def stop_worker(self, request: web.Request) -> web.Response:
        """Let a worker finish its item and end."""
        given = _worker_id(await body_of(request))
        found = await self._in_thread(self._worker, given)
        text = (await self._in_thread(self._order, "stop", given))["text"]
        return web.json_response({"status": "success", "pid": found.pid, "message": text, "log_file": _log_file(found)})

    async def managed_workers(self, _request: web.Request) -> web.Response:
        """Processes of the workers that this host keeps."""
        record = await self._in_thread(self._record)
        running = {
            id_of(record, worker.name): {"pid": worker.pid, "log_file": _log_file(worker), "name": worker.name}
            for worker in (record.workers if record else ()) if worker.pid
        }  # fmt: skip
        return web.json_response({"status": "success", "managed_workers": running})

    async def worker_status(self, _request: web.Request) -> web.Response:
        """What the workers of this host do."""
        return web.json_response({"status": "success", "worker_statuses": await self._in_thread(self._worker_statuses)})

    def _worker_statuses(self) -> dict[str, Any]:
        try:
            table = {worker["name"]: worker for worker in self._control.workers()["cluster"]}
        except DistributedComfyError:
            table = {}
        statuses: dict[str, Any] = {}
        record = self._record()
        for worker in record.workers if record else ():
            seen = table.get(worker.name)
            items = len(seen["items"]) if seen else 0
            statuses[id_of(record, worker.name)] = {
                "online": seen is not None, "enabled": worker.enabled, "processing": items > 0, "queue_count": items,
                **({"error": worker.reason} if worker.reason else {}),
            }  # fmt: skip
        return statuses

    async def worker_log(self, request: web.Request) -> web.Response:
        """The last lines of a worker of any host."""
        wanted = number_of(request, "lines", _LINES)
        lines = await self._in_thread(self._log_lines, request.match_info["worker_id"], wanted + 1)
        shown = [line.text for line in lines[-wanted:]] if wanted > 0 else []
        answer = {"status": "success", "content": "\n".join(shown), "truncated": len(lines) > len(shown), "lines_shown": len(shown)}
        return web.json_response(answer)

    async def clear_memory(self, _request: web.Request) -> web.Response:
        """Free the devices of this ComfyUI and of its host's workers."""
        await self._in_thread(self._control.clear_memory)
        return web.json_response({"status": "success"})

    # -- this host -------------------------------------------------------------------------------------------------------
    async def network_info(self, _request: web.Request) -> web.Response:
        """Addresses and GPUs of this host."""
        return web.json_response(await self._in_thread(self._network_info))

    def _network_info(self) -> dict[str, Any]:
        found = [each.address for addresses in psutil.net_if_addrs().values() for each in addresses if each.family == socket.AF_INET]
        near = [address for address in found if not address.startswith(("127.", "169.254."))]
        devices = self._pack.session.workers.devices
        gpus = [device.name for device in devices if device.name != "cpu"]
        own = next((name.partition(":")[2] for name in sorted(self._pack.session.workers.own) if name.startswith("cuda")), "")
        return {
            "status": "success", "hostname": socket.gethostname(), "all_ips": near, "recommended_ip": near[0] if near else "127.0.0.1",
            "cuda_device": int(own) if own else None, "cuda_device_count": len(gpus),
        }  # fmt: skip

    async def system_info(self, _request: web.Request) -> web.Response:
        """What this host is."""
        facts = {"system": platform.system(), "release": platform.release(), "machine": platform.machine()}
        answer = {"status": "success", "hostname": socket.gethostname(), "machine_id": _machine_id(), "platform": facts}
        return web.json_response(answer)

    async def gone(self, _request: web.Request) -> web.Response:
        """What read files by path."""
        return web.json_response({"error": _GONE}, status=410)

    # -- shared ----------------------------------------------------------------------------------------------------------
    def _record(self) -> HostRecord | None:
        return self._pack.session.workers.record()

    def _worker(self, given: str) -> HostWorker:
        """A worker of this host, by id or name."""
        record = self._record()
        name = name_of(record, given)
        found = next((worker for worker in (record.workers if record else ()) if worker.name == name), None)
        if found is None:
            raise unknown_id(record, given)
        return found

    def _order(self, verb: HostVerb, given: str) -> dict[str, Any]:
        """Tell a worker something, by id or name."""
        record = self._record()
        try:
            return self._control.order(verb, name_of(record, given))
        except WorkerUnknown as error:
            raise unknown_id(record, given) from error

    def _log_lines(self, given: str, lines: int) -> list[LogLine]:
        """Of a worker by its id, or exactly its name."""
        record = self._record()
        try:
            return self._control.log_lines(name_of(record, given) if given in old_ids(record).values() else given, lines)
        except WorkerUnknown as error:
            raise unknown_id(record, given) from error

    async def _settled(self, given: str, so: Callable[[HostWorker], bool]) -> HostWorker:
        """The worker once something is so of it, or after a few seconds as it is then."""
        for _ in range(int(_STARTED_WITHIN_S / _POLL_S)):
            found = await self._in_thread(self._worker, given)
            if so(found):
                return found
            await asyncio.sleep(_POLL_S)
        return await self._in_thread(self._worker, given)


def add_compatible_routes(routes: Routes) -> None:
    """Add them beside the pack's own."""
    old = CompatibleRoutes(routes)
    open_ones: tuple[tuple[str, str, Handler], ...] = (
        ("POST", "/queue", old.queue),
        ("GET", "/queue_status/{job_id}", old.queue_status),
        ("GET", "/config", old.configuration),
        ("GET", "/managed_workers", old.managed_workers),
        ("GET", "/local-worker-status", old.worker_status),
        ("GET", "/network_info", old.network_info),
        ("GET", "/system_info", old.system_info),
        ("POST", "/load_image", old.gone),
        ("POST", "/check_file", old.gone),
    )
    for method, path, handler in open_ones:
        routes.open_to_site(method, PREFIX + path, handler)
    guarded: tuple[tuple[str, str, Handler], ...] = (
        ("POST", "/config/update_worker", old.update_worker),
        ("POST", "/config/delete_worker", old.delete_worker),
        ("POST", "/config/update_setting", old.update_setting),
        ("POST", "/launch_worker", old.launch_worker),
        ("POST", "/stop_worker", old.stop_worker),
        ("POST", "/clear_memory", old.clear_memory),
        ("GET", "/worker_log/{worker_id}", old.worker_log),
        ("GET", "/remote_worker_log/{worker_id}", old.worker_log),
    )
    for method, path, handler in guarded:
        routes.with_token(method, PREFIX + path, handler)


def prompt_request(body: dict[str, Any]) -> dict[str, Any]:
    """The body of a ``POST /prompt`` that queues what the body of a ``POST /distributed/queue`` has.

    Raises:
        BadRequest: there is no prompt in it.
    """
    workflow = body.get("workflow")
    prompt = body.get("prompt")
    if prompt is None and isinstance(workflow, dict):
        prompt = workflow.get("prompt")
    if not isinstance(prompt, dict) or not prompt:
        raise BadRequest("prompt must be an object: a workflow in API format")
    posted: dict[str, Any] = {"prompt": prompt}
    if client_id := text_of(body, "client_id"):
        posted["client_id"] = client_id
    ui = workflow.get("workflow", workflow) if isinstance(workflow, dict) else None
    if isinstance(ui, dict) and "nodes" in ui:  # what the editor saved goes into the files, as with the editor's own button
        posted["extra_data"] = {"extra_pnginfo": {"workflow": ui}}
    return posted


def wanted_workers(body: dict[str, Any]) -> frozenset[str] | None:
    """The workers that the caller names; None where it names none, so that all may take part.

    Raises:
        BadRequest: they are no list of names, or of objects with one.
    """
    named = body.get("enabled_worker_ids", body.get("workers"))
    if named is None:
        return None
    if not isinstance(named, list):
        raise BadRequest("enabled_worker_ids must be a list")
    ids = [each.get("id") if isinstance(each, dict) else each for each in named]
    if not all(isinstance(each, (str, int)) for each in ids):
        raise BadRequest("enabled_worker_ids must have names of workers, or objects with an id")
    return frozenset(map(str, ids))


def _worker_id(body: dict[str, Any]) -> str:
    found = body.get("worker_id")
    given = str(found).strip()[:LONGEST] if isinstance(found, (str, int)) and not isinstance(found, bool) else ""
    if not slug(given):
        raise BadRequest("worker_id must be the id of a worker, or its name")
    return given


def usual_device(devices: Iterable[HostDevice]) -> str:
    """The device of a worker for which none is named: as there the first GPU, unless this host is known to have none."""
    names = [device.name for device in devices]
    return device_of(None) if not names or device_of(None) in names else names[0]


def _log_file(worker: HostWorker) -> str:
    return str(Path(worker.log_folder) / "worker.log") if worker.log_folder else ""


def _machine_id() -> str:
    """The same at each call, and of no use elsewhere."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, socket.gethostname()))
