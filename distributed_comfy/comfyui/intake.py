"""Takes prompts as ComfyUI accepts them: what it queues and what has a collector becomes a job at once, whoever posted it."""
from __future__ import annotations

import copy
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from distributed_comfy.comfyui.accepted import AcceptedPrompt
from distributed_comfy.comfyui.jobs import MasterJobs
from distributed_comfy.comfyui.master_job import JobPlaces
from distributed_comfy.comfyui.master_nodes import JobNodes, MasterCollector
from distributed_comfy.comfyui.pack import Pack
from distributed_comfy.engine.comfyui.launch import tree_commit
from distributed_comfy.messages import Prompt
from distributed_comfy.nodes.cut import bind
from distributed_comfy.workflow.classes import COLLECTOR_CLASS, UPSCALE_CLASS

log = logging.getLogger(__name__)

PATHS = ("/prompt", "/api/prompt")
SPOOLS = "comfyui-jobs"
_OURS = (COLLECTOR_CLASS, UPSCALE_CLASS)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def install_intake(pack: Pack) -> None:
    """Put the master's nodes in place of the passive ones, and look at what is posted."""
    host = pack.host
    commit = tree_commit(host.root)
    places = JobPlaces(
        host=host,
        cluster=pack.session.cluster,
        folder=pack.settings.cache_folder / SPOOLS,
        engine_version=f"{host.version} ({commit})" if commit else host.version,
        takes_part=lambda: pack.options.participate,
    )
    jobs = MasterJobs(host, places)
    nodes = JobNodes(host, jobs)
    pack.classes[COLLECTOR_CLASS] = bind(MasterCollector, nodes=nodes)
    pack.jobs = jobs
    host.server.app.middlewares.append(intake(jobs))


def intake(jobs: MasterJobs) -> Any:
    """The middleware; ComfyUI's answer is passed on as it is, whatever happens here."""

    @web.middleware
    async def take(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method != "POST" or request.path not in PATHS:
            return await handler(request)
        planned = _ours(await request.read())
        answer = await handler(request)
        if planned is not None and answer.status == web.HTTPOk.status_code and isinstance(answer, web.Response):
            try:
                accept(jobs, _prompt_id(answer), planned)
            except Exception:  # the prompt is queued: it runs as if we were not here
                log.exception("a prompt is not distributed; please report it")
        return answer

    return take


def accept(jobs: MasterJobs, prompt_id: str, planned: Prompt) -> None:
    """Make a job of a prompt that is in ComfyUI's queue.

    Args:
        planned: as the user gave it.
    """
    entry = jobs.watch.entry(prompt_id)
    if entry is None:  # it has run already: there was nothing to wait for
        return
    _, _, running, extra_data, outputs = entry[:5]
    extra = extra_data.get("extra_pnginfo")
    jobs.accept(
        AcceptedPrompt(prompt_id, planned, copy.deepcopy(running), tuple(map(str, outputs)), extra if isinstance(extra, dict) else {})
    )


def _ours(body: bytes) -> Prompt | None:
    """The prompt in a body that ComfyUI is about to read, if it has a node of ours."""
    if not any(name.encode() in body for name in _OURS):
        return None
    try:
        posted = json.loads(body)
        prompt = posted.get("prompt") if isinstance(posted, dict) else None
    except ValueError:
        return None
    return prompt if isinstance(prompt, dict) else None


def _prompt_id(answer: web.Response) -> str:
    return str(json.loads(bytes(answer.body))["prompt_id"])  # type: ignore[arg-type]  # it is JSON of ComfyUI's own
