"""Takes prompts as ComfyUI accepts them: what it queues and what has a collector becomes a job at once, whoever posted it."""
from __future__ import annotations

import atexit
import copy
import functools
import json
import logging
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from distributed_comfy import __version__
from distributed_comfy.comfyui import foreign
from distributed_comfy.comfyui.accepted import AcceptedPrompt, Place
from distributed_comfy.comfyui.alone import open_alone
from distributed_comfy.comfyui.expansion import CAPTURE_CLASS, END_CLASS
from distributed_comfy.comfyui.guest import Guest
from distributed_comfy.comfyui.job_entry import JobPlaces
from distributed_comfy.comfyui.jobs import MasterJobs
from distributed_comfy.comfyui.keeping import JobKeeper
from distributed_comfy.comfyui.lanes import Lanes
from distributed_comfy.comfyui.local_failures import watch_execution
from distributed_comfy.comfyui.local_nodes import DistributedLocalCapture, DistributedLocalEnd, DistributedLocalTurn, DistributedLocalWait
from distributed_comfy.comfyui.master_job import MasterJob
from distributed_comfy.comfyui.master_nodes import JobNodes, MasterCollector, MasterUpscale
from distributed_comfy.comfyui.node_texts import NodeTexts
from distributed_comfy.comfyui.pack import Pack
from distributed_comfy.comfyui.participation import Participation
from distributed_comfy.comfyui.passing import JOB_CLASSES, PATHS, Passing
from distributed_comfy.comfyui.turns import TURN_CLASS, WAIT_CLASS
from distributed_comfy.engine.comfyui.device import device_class
from distributed_comfy.engine.comfyui.launch import tree_commit
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.messages import Prompt
from distributed_comfy.nodes.cut import bind
from distributed_comfy.state.records import WorkerFacts
from distributed_comfy.workflow.classes import COLLECTOR_CLASS, UPSCALE_CLASS

log = logging.getLogger(__name__)

SPOOLS = "comfyui-jobs"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def install_intake(pack: Pack) -> None:
    """Put the master's nodes in place of the passive ones, and look at what is posted."""
    host = pack.host
    commit, alone = tree_commit(host.root), open_alone(pack.session.settings)
    places = JobPlaces(
        host=host,
        cluster=pack.session.cluster,
        folder=pack.settings.cache_folder / SPOOLS,
        engine_version=f"{host.version} ({commit})" if commit else host.version,
        takes_part=lambda: pack.options.participate,
        alone=alone,
        keeper=JobKeeper(),
        lanes=Lanes(),
        saves=pack.saves,
        workers_starting=lambda cluster: () if cluster is alone else pack.session.workers.starting(cluster),
    )
    participation, texts = _participation(pack, places), NodeTexts(host)

    def over(job: MasterJob) -> None:
        texts.over(job, job.ending or "")
        participation.drop(job)

    jobs = MasterJobs(host, places, over)
    nodes = JobNodes(host, jobs, participation, texts)
    _register(pack, nodes)
    pack.context.inner = participation
    pack.jobs = jobs
    pack.session.on_left.append(jobs.leave)
    _at_exit(jobs.close)
    host.server.app.middlewares.append(intake(jobs))
    _let_pass(pack)
    watch_execution(host, participation)


def _at_exit(call: Callable[[], None]) -> None:
    """Call it before Python waits for the threads of pools, some of which wait for servers; `atexit` would come after that."""
    getattr(threading, "_register_atexit", atexit.register)(call)


def _register(pack: Pack, nodes: JobNodes) -> None:
    ours = {
        COLLECTOR_CLASS: MasterCollector, UPSCALE_CLASS: MasterUpscale, CAPTURE_CLASS: DistributedLocalCapture,
        END_CLASS: DistributedLocalEnd, TURN_CLASS: DistributedLocalTurn, WAIT_CLASS: DistributedLocalWait,
    }  # fmt: skip
    for name, node_class in ours.items():
        sampling = {"sampling": pack.host.sampling()} if name == UPSCALE_CLASS else {}
        pack.classes[name] = bind(node_class, nodes=nodes, **sampling)
    pack.classes.update({foreign.VALUE_CLASS: foreign.DistributedForeignValue, foreign.NODE_CLASS: foreign.DistributedForeignNode})


def _let_pass(pack: Pack) -> None:
    """Let ComfyUI accept prompts that name what only workers have."""
    values = foreign.ForeignValues(pack.host.nodes.NODE_CLASS_MAPPINGS)
    passing = Passing(values, lambda: pack.session.cluster(0.0).matching.live())
    pack.host.server.app.middlewares.append(passing.middleware)
    pack.host.server.add_on_prompt_handler(passing.replace)
    foreign.restore_in_metadata(pack.host.execution.DynamicPrompt)


def _participation(pack: Pack, places: JobPlaces) -> Participation:
    settings, device = pack.settings, pack.host.device

    @functools.cache
    def its_class() -> str:
        folder = places.folder
        options = EngineOptions(
            "comfyui", "", sys.executable, folder, folder, "", device=device(), comfyui_args=tuple(sys.argv[1:])
        )
        return device_class(options, places.engine_version, sys.modules["torch"])

    facts = WorkerFacts(
        f"{settings.host_name}-master", settings.host_name, "", "comfyui", places.engine_version, pid=os.getpid(),
        package_version=__version__, started_by="comfyui",
    )  # fmt: skip
    return Participation(Guest(facts), its_class, places)


def intake(jobs: MasterJobs) -> Any:
    """The middleware; ComfyUI's answer is passed on as it is, whatever happens here."""

    @web.middleware
    async def take(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method != "POST" or request.path not in PATHS:
            return await handler(request)
        with jobs.intake():
            return await accepted(request, handler)

    async def accepted(request: web.Request, handler: Handler) -> web.StreamResponse:
        answer = await handler(request)
        if answer.status != web.HTTPOk.status_code or not isinstance(answer, web.Response):
            return answer
        try:
            if accept(jobs, _place(answer)) is None:
                jobs.others_come_between()
        except Exception:  # the prompt is queued: it runs as if we were not here
            log.exception("a prompt is not distributed; please report it")
        return answer

    return take


def accept(jobs: MasterJobs, place: Place) -> MasterJob | None:
    """Make a job of a prompt that is in ComfyUI's queue; None where there is nothing to distribute.

    What counts is the prompt in the queue, not what was posted: handlers of other packs (wildcards, for one) and newer ComfyUIs change it.
    """
    entry = jobs.watch.entry(place)
    if entry is None:  # it has run already: there was nothing to wait for
        return None
    number, prompt_id, queued, extra_data, outputs = entry[:5]
    if not any(node.get("class_type") in JOB_CLASSES for node in queued.values()):
        return None
    running: Prompt = copy.deepcopy(queued)
    extra = extra_data.get("extra_pnginfo")
    return jobs.accept(
        AcceptedPrompt(
            str(prompt_id), foreign.original_of(running), running, tuple(map(str, outputs)), extra if isinstance(extra, dict) else {},
            foreign.foreign_in(running), number,
        )
    )  # fmt: skip


def _place(answer: web.Response) -> Place:
    facts = json.loads(bytes(answer.body))  # type: ignore[arg-type]  # it is JSON of ComfyUI's own
    return facts["number"], str(facts["prompt_id"])
