"""DistributedCollector (and the upscale) inside the master's ComfyUI: they wait for their job, and nothing before them runs here."""
from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from distributed_comfy.comfyui.host import ComfyHost
from distributed_comfy.comfyui.jobs import MasterJobs
from distributed_comfy.comfyui.master_job import MasterJob, is_cancelled
from distributed_comfy.comfyui.node_texts import NodeTexts
from distributed_comfy.comfyui.participation import Participation
from distributed_comfy.comfyui.previews import preview_for_page
from distributed_comfy.comfyui.turns import OVER, Turns
from distributed_comfy.errors import JobFailed, ValidationRefused, WorkerNodeFailed
from distributed_comfy.nodes.collector import DistributedCollector
from distributed_comfy.nodes.upscale import UltimateSDUpscaleDistributed
from distributed_comfy.workflow.classes import COLLECTOR_SLOTS

log = logging.getLogger(__name__)

POLL_S = 0.1
THREADS = 8
"""Nodes of one prompt that ask at the same time; others take their turn."""
_OTHER_VERSION = "This ComfyUI accepted the prompt, so that worker has another version of the node; update its node packs, or these here."

T = TypeVar("T")


@dataclass(frozen=True)
class _Given:
    """What a node shows, and what it gives."""

    shown: dict[str, Any]
    values: tuple[Any, ...]


class JobNodes:
    """What the node classes ask: one per process.

    Args:
        host: this ComfyUI.
        jobs: of its prompts.
        participation: its own part in them.
        texts: at nodes.
    """

    def __init__(self, host: ComfyHost, jobs: MasterJobs, participation: Participation, texts: NodeTexts) -> None:
        self.host = host
        self.jobs = jobs
        self.participation = participation
        self._texts = texts
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="distributed-comfy nodes")

    def distributes(self, node_id: str) -> bool:
        """Whether a node gets what it gives from a job; ComfyUI may have begun its prompt before that is known."""
        if self.jobs.of_node(node_id) is None:
            self.jobs.wait_for_intakes()
        return self.jobs.of_node(node_id) is not None

    async def wait(self, job: MasterJob, node_id: str, outputs: int) -> Any:
        """What the node gives, when it is here; where this ComfyUI takes part, nodes that ComfyUI is to add before.

        Args:
            job: that it waits for.
            node_id: the node.
            outputs: of the node.
        Raises:
            The error with which the job failed; ComfyUI's own where the prompt was interrupted.
        """
        participation = self.participation
        found = await self._until(
            job, node_id, lambda: _Given(job.shown(node_id), job.values(node_id)), lambda: participation.take_turns(job, node_id, outputs)
        )
        if not isinstance(found, _Given):
            return found
        self._texts.stays(node_id)
        return {"ui": found.shown, "result": found.values} if found.shown else found.values

    async def turn(self, turns: Turns, turn_id: str) -> Any:
        """Nodes that ComfyUI is to add: an item to run.  `OVER`, when all that the node behind the turn waits for is here.

        Raises:
            As `wait`.
        """
        return await self._until(turns.job, turns.node_id, lambda: (OVER,), lambda: self.participation.begin(turns, turn_id))

    async def _until(self, job: MasterJob, node_id: str, values: Callable[[], Any], begin: Callable[[], Any]) -> Any:
        """Wait for a job, and show how far it is: what there is when all that a node gives is here, or what can be begun before that."""
        job.start()
        view = _View(self.host, self._texts, node_id)
        try:
            while True:
                self._check()
                view.show(job)
                found = await self.unless_interrupted(self._look, job, node_id, values, begin)
                if found is not None:
                    break
                await asyncio.sleep(POLL_S)
        except self.host.model_management.InterruptProcessingException:
            self._texts.over(job, "interrupted")
            raise
        except Exception:
            self._texts.over(job, "error")
            raise
        view.show(job)
        return found

    async def unless_interrupted(self, call: Callable[..., T], *args: Any) -> T:
        """What a call gives that may take long, as servers do that are away: ComfyUI's interrupt does not wait for it.

        Not in the loop's own threads, for whose end ComfyUI would wait.
        """
        running = asyncio.get_running_loop().run_in_executor(self._threads, call, *args)
        while not running.done():
            self._check()
            await asyncio.wait([running], timeout=POLL_S)
        self._check()
        return running.result()

    def _check(self) -> None:
        """
        Raises:
            ComfyUI's own exception, where the prompt was interrupted; or where ComfyUI ends, which is no error of the node's.
        """
        if self.jobs.closed.is_set():
            raise self.host.model_management.InterruptProcessingException
        self.host.model_management.throw_exception_if_processing_interrupted()

    def _look(self, job: MasterJob, node_id: str, values: Callable[[], Any], begin: Callable[[], Any]) -> Any:
        if job.running is not None and job.running.has(node_id):
            return values()
        if job.phase == "failed" and job.interrupted and is_cancelled(job.error):  # also where a node has swallowed ComfyUI's flag
            raise self.host.model_management.InterruptProcessingException
        if job.phase == "failed":
            raise _as_comfyui_shows_it(job)
        return begin()


class _View:
    """The bar, the text and the previews at one node."""

    def __init__(self, host: ComfyHost, texts: NodeTexts, node_id: str) -> None:
        self._host, self._texts, self._node_id = host, texts, node_id
        self._bar: Any = None
        self._shown: tuple[int, int, str] | None = None

    def show(self, job: MasterJob) -> None:
        """Send what has changed."""
        look = job.progress.look()
        if self._bar is None and look.total:
            self._bar = self._host.progress_bar(look.total, self._node_id)
        state = (look.done, look.total, look.text)
        if self._bar is not None and (state != self._shown or look.preview):
            self._bar.update_absolute(look.done, look.total, self._preview(look.preview))
        if self._shown is None or look.text != self._shown[2]:
            self._texts.show(job, self._node_id, look.text)
        self._shown = state

    def _preview(self, picture: bytes) -> Any:
        return preview_for_page(picture, self._host.preview_side_px) if picture else None


def _as_comfyui_shows_it(job: MasterJob) -> Exception:
    """The job's error; a worker's own with the node, the exception and the traceback there."""
    error = job.error
    assert error is not None
    if not isinstance(error, JobFailed):
        return RuntimeError(f"{error}; queue the prompt again") if is_cancelled(error) else error
    cause = error.fields.get("error") or {}
    more = _OTHER_VERSION if cause.get("code") == ValidationRefused.code else str((cause.get("fields") or {}).get("traceback", ""))
    return WorkerNodeFailed(summary=str(error), worker_traceback=more.rstrip())


class MasterCollector(DistributedCollector):
    """Collects what the job of this prompt made; its inputs are lazy, so nothing before it runs here unless it asks."""

    nodes: ClassVar[JobNodes]
    """Set in the subclass that `bind` makes."""

    FUNCTION = "collect"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The collector's own; lazy, and with what tells it which node of which prompt it is."""
        declared = super().INPUT_TYPES()
        lazy = {slot: (declared["optional"][slot][0], {"lazy": True}) for slot in COLLECTOR_SLOTS}
        hidden = {**declared["hidden"], "unique_id": "UNIQUE_ID"}
        return {**declared, "optional": {**declared["optional"], **lazy}, "hidden": hidden}

    def check_lazy_status(self, unique_id: str, **inputs: Any) -> list[str]:
        """Nothing, where there is a job; else all that is wired."""
        if self.nodes.distributes(unique_id):
            return []
        return [slot for slot in COLLECTOR_SLOTS if slot in inputs and inputs[slot] is None]

    async def collect(self, unique_id: str, **inputs: Any) -> Any:
        """What the job collected; what came in, where there is no job."""
        job = self.nodes.jobs.of_node(unique_id)
        return self.run(**inputs) if job is None else await self.nodes.wait(job, unique_id, len(COLLECTOR_SLOTS))


class MasterUpscale(UltimateSDUpscaleDistributed):
    """Gives the image that the job of this prompt upscaled; its links are lazy, so no model loads here."""

    nodes: ClassVar[JobNodes]
    """Set in the subclass that `bind` makes."""

    FUNCTION = "upscale"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The upscale's own; the links are lazy."""
        declared = super().INPUT_TYPES()
        links = {name: kind[0] for name, kind in declared["required"].items() if len(kind) == 1 and isinstance(kind[0], str)}
        lazy = {name: (kind, {"lazy": True}) for name, kind in links.items()}
        hidden = {**declared["hidden"], "unique_id": "UNIQUE_ID"}
        return {**declared, "required": {**declared["required"], **lazy}, "hidden": hidden}

    def check_lazy_status(self, unique_id: str, **inputs: Any) -> list[str]:
        """Nothing is ever asked for."""
        self.nodes.distributes(unique_id)
        return []

    async def upscale(self, unique_id: str, **inputs: Any) -> Any:
        """The upscaled image.

        Raises:
            UpscaleUndistributed: there is no job: another node made this one.
        """
        job = self.nodes.jobs.of_node(unique_id)
        if job is None:
            return self.run(**inputs)
        return await self.nodes.wait(job, unique_id, 1)
