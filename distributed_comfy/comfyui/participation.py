"""This ComfyUI's part in its own jobs: it takes an item when its node waits, runs it as nodes added to the prompt, and hands it in.

turn -> claim -> `expansion` -> ComfyUI runs the nodes -> captures -> spool -> the table is told -> the next turn.  The result
never leaves the process, and it lies in the spool before the table knows of it, as with every other worker's.
"""
from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import redis

from distributed_comfy.comfyui.expansion import LocalItem, OuterPrompt, expand_item
from distributed_comfy.comfyui.guest import Guest
from distributed_comfy.comfyui.job_entry import JobPlaces
from distributed_comfy.comfyui.master_job import MasterJob
from distributed_comfy.comfyui.other_workers import OtherWorkers
from distributed_comfy.comfyui.running_job import RunningJob
from distributed_comfy.comfyui.turns import AllTurns, Turns, how_many, turn_nodes
from distributed_comfy.comfyui.unfit_items import UnfitItems
from distributed_comfy.engine.comfyui.failures import is_out_of_memory
from distributed_comfy.engine.context import GraphContext
from distributed_comfy.errors import ClusterUnavailable, ConnectionLost, DistributedComfyError, NodeOutsideJob, OnlyWorkersHave, OutOfMemory
from distributed_comfy.messages import FED_KINDS, Capture, ItemResult, ItemSpec, Prompt, RunRequest, apply_patches, item_id, load
from distributed_comfy.state.records import Claim
from distributed_comfy.state.specs import unpack_spec
from distributed_comfy.transport.feed_names import Feed, bind_feed
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from distributed_comfy.transport.values import store_value
from distributed_comfy.workflow.classes import CLAIM_INPUT, KEPT_MARK, SINK_CLASS, SOURCE_CLASS

log = logging.getLogger(__name__)

_TRY_S = 0.5
"""How often an item is asked for while there was none."""
FEED_TIMEOUT_S = 600.0
"""How long a fed item waits for a value, as in the engine of a worker."""


@dataclass
class LocalRun:
    """An item that runs here."""

    job: MasterJob
    running: RunningJob
    node_id: str
    """Of the prompt: who waits for the job."""
    claim: Claim
    spec: ItemSpec
    prompt: Prompt
    """Its stage's, with its patches."""
    prefix: str
    """Of the ids of its nodes."""
    fed: GraphContext
    """What its sources supply."""
    began: float = field(default_factory=time.monotonic)
    captures: list[tuple[str, str, int, Any]] = field(default_factory=list)
    """Sink, slot, position in the list, value."""
    error: OutOfMemory | ConnectionLost | None = None
    """Why it is to run elsewhere, or again."""

    @property
    def sinks(self) -> list[str]:
        """Those of its targets that are to give something."""
        return [target for target in self.spec.targets if self.prompt[target]["class_type"] == SINK_CLASS]

    def placed(self) -> Prompt:
        """The prompt with the claim in its sources, as `engine.inputs.place_inputs` puts it there for ComfyUI's cache."""

        def place(node: dict[str, Any]) -> dict[str, Any]:
            if node["class_type"] != SOURCE_CLASS or str(node["inputs"].get(CLAIM_INPUT)).startswith(KEPT_MARK):
                return node
            return {**node, "inputs": {**node["inputs"], CLAIM_INPUT: self.claim.claim_id}}

        return {node_id: place(node) for node_id, node in self.prompt.items()}


class Participation:
    """One per process; safe to use from several threads.  It is the `NodeContext` of the nodes of local items.

    Args:
        guest: this ComfyUI in the table.
        device_class: of its device, for the results.
        places: shared by all jobs.
    """

    def __init__(self, guest: Guest, device_class: Callable[[], str], places: JobPlaces) -> None:
        self._guest = guest
        self._device_class = device_class
        self._takes_part = places.takes_part
        self._host = places.host
        self._runs: dict[str, LocalRun] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self.turns = AllTurns()
        self._others = OtherWorkers()
        self._tried: dict[str, float] = defaultdict(float)
        self._unfit = UnfitItems(places.host)
        self._out_of_items: set[str] = set()
        """Jobs of which there was nothing to take at the last try."""
        self._too_large: set[str] = set()
        """Jobs of which an item ran out of memory here: they are left to workers, where there are any."""

    # -- for whoever waits
    def take_turns(self, job: MasterJob, node_id: str, outputs: int) -> dict[str, Any] | None:
        """What the node gives ComfyUI, where this ComfyUI may take items of its job: turns, and one that waits for them.

        Args:
            job: that the node waits for.
            node_id: the node.
            outputs: of the node.
        """
        running = self._may_take(job)
        if running is None:
            return None
        wait, nodes = turn_nodes(self.turns.add(job, node_id, outputs), how_many(running))
        return {"result": tuple([wait, slot] for slot in range(outputs)), "expand": nodes}

    def begin(self, turns: Turns, turn_id: str) -> dict[str, Any] | None:
        """Take an item, if there is one for this ComfyUI: what the turn gives ComfyUI to run it."""
        job = turns.job
        running = self._may_take(job)
        if running is None or not self._is_due(running):
            return None
        try:
            claim = self._guest.claim(running.cluster, running.record.job_id, self._unfit.of(job, running).keys())
        except (ClusterUnavailable, redis.RedisError) as error:
            log.debug("no item for this ComfyUI: %s", error)
            return None
        if claim is None:
            self._out_of_items.add(running.record.job_id)
            return None
        self._out_of_items.discard(running.record.job_id)
        run = self._begin(job, running, turns.node_id, claim)
        return self._expand(run, turns, turn_id) if run is not None else None

    def _begin(self, job: MasterJob, running: RunningJob, node_id: str, claim: Claim) -> LocalRun | None:
        """A claimed item for the node that waits, or nothing: then it is given back."""
        try:
            run = self._run(job, running, node_id, claim)
        except (ClusterUnavailable, redis.RedisError) as error:
            log.info("item %s does not begin here: %s", item_id(claim.job_id, claim.index), error)
            self._guest.give_back(running.cluster, claim, "release")
            return None
        except DistributedComfyError as error:
            log.warning("item %s cannot run here: %s", item_id(claim.job_id, claim.index), error)
            self._unfit.add(job, running, claim.index, f"could not begin: {error}")
            self._guest.give_back(running.cluster, claim, "release", error)
            return None
        if why := self._unfit.why(job, run.prompt, run.spec.patches):
            self._unfit.add(job, running, claim.index, why)
            self._guest.give_back(running.cluster, claim, "release", OnlyWorkersHave(what=why.removeprefix("lacks ")))
            return None
        return run

    def _run(self, job: MasterJob, running: RunningJob, node_id: str, claim: Claim) -> LocalRun:
        """All that is known about a claimed item; see `_begin`."""
        spec = _spec(running, claim)
        prompt = apply_patches(dict(running.plan.prompts[spec.prompt_hash]), spec.patches)
        text = running.cluster.jobs.feed(claim.job_id, claim.index) if spec.kind in FED_KINDS else ""
        request = RunRequest(
            claim.claim_id, claim.job_id, claim.index, spec.kind, prompt, spec.targets, job.accepted.planned,
            feed=bind_feed(load(Feed, text), claim.claim_id) if text else {},
        )  # fmt: skip
        fed = GraphContext(running.cluster.blobs, feed_timeout_s=FEED_TIMEOUT_S)
        fed.begin(request, check=self._host.model_management.throw_exception_if_processing_interrupted)
        return LocalRun(job, running, node_id, claim, spec, prompt, f"{node_id}~{next(self._numbers)}.", fed)

    def _expand(self, run: LocalRun, turns: Turns, turn_id: str) -> dict[str, Any] | None:
        accepted, claim = run.job.accepted, run.claim
        item = LocalItem(run.placed(), run.spec.targets, claim.claim_id, run.node_id)
        expansion = expand_item(item, OuterPrompt(accepted.planned, accepted.running, accepted.runs_anyway), run.prefix)
        with self._lock:
            over = run.job.over
            if not over:
                self._runs[claim.claim_id] = run
        if over:  # while the table was asked
            self._guest.give_back(run.running.cluster, claim, "release")
            return None
        log.info("item %s starts in this ComfyUI (seed %s)", item_id(claim.job_id, claim.index), run.spec.seed or "-")
        turns.made[turn_id] = tuple(expansion.nodes)
        return {"result": ([expansion.end, 0],), "expand": expansion.nodes}

    # -- for the nodes of an item
    def supply(self, node_id: str, slot: str) -> list[Any]:
        """See `nodes.context.NodeContext.supply`."""
        run = self._run_of(node_id)
        if run is None:
            raise NodeOutsideJob(node_id=node_id)
        return run.fed.supply(node_id.removeprefix(run.prefix), slot)

    def capture(self, node_id: str, slot: str, values: list[Any]) -> None:
        """See `nodes.context.NodeContext.capture`: no item here has a sink.

        Raises:
            NodeOutsideJob: always.
        """
        raise NodeOutsideJob(node_id=node_id)

    def take(self, claim_id: str, sink: str, slot: str, values: list[Any]) -> None:
        """Keep what reached a sink; an item that is over takes nothing."""
        with self._lock:
            run = self._runs.get(claim_id)
        if run is not None:
            run.captures += [(sink, slot, position, value) for position, value in enumerate(values) if value is not None]

    def fails(self, node_id: str, error: Exception) -> bool:
        """Whether a failed node's item is to be tried elsewhere, so that the prompt goes on."""
        run = self._run_of(node_id)
        if run is None:
            return False
        if isinstance(error, ConnectionLost):
            log.info("item %s runs again: %s", item_id(run.claim.job_id, run.claim.index), error)
            run.error = error
            return True
        if not is_out_of_memory(self._host.model_management, error):
            return False
        log.warning("item %s ran out of memory here: %s", item_id(run.claim.job_id, run.claim.index), error)
        inner = node_id.removeprefix(run.prefix)
        run.error = OutOfMemory(
            device=self._guest.name, node_id=inner, class_type=run.prompt[inner]["class_type"] if inner in run.prompt else "",
            exception_type=type(error).__name__, exception_message=str(error), traceback="",
        )  # fmt: skip
        self._host.model_management.unload_all_models()
        return True

    def leftovers(self, node_id: str) -> tuple[str, ...] | None:
        """See `local_failures.LocalItems.leftovers`."""
        return self.turns.leftovers(node_id)

    def users_node(self, node_id: str) -> str:
        """The node of the user's prompt that a node of a local item was made from; the same id for all others."""
        run = self._run_of(node_id)
        inner = node_id.removeprefix(run.prefix) if run is not None else node_id
        return inner if run is not None and inner in run.job.accepted.running else node_id

    def _run_of(self, node_id: str) -> LocalRun | None:
        with self._lock:
            return next((run for run in self._runs.values() if node_id.startswith(run.prefix)), None)

    def finish(self, claim_id: str) -> bool:
        """Hand in an item whose nodes have run, or give it back; False where its prompt is over."""
        with self._lock:
            run = self._runs.pop(claim_id, None)
        if run is None:
            return False
        job_id, index = run.claim.job_id, run.claim.index
        if run.error is not None:
            if isinstance(run.error, OutOfMemory):
                self._too_large.add(job_id)
            self._guest.give_back(run.running.cluster, run.claim, "retry", run.error)
            return True
        store = MemoryBlobStore()
        try:
            result = self._result(run, store)
            run.running.spool.add(index, claim_id, result, store)
        except DistributedComfyError as error:  # too large for a frame, a disk that is full: the others run in vain
            self._guest.give_back(run.running.cluster, run.claim, "final", error)
            raise
        try:
            taken = self._guest.complete(run.running.cluster, run.claim, result)
        except (ClusterUnavailable, redis.RedisError) as error:  # it lies in the spool: the collector tells the table when it answers
            log.warning("item %s is done, and the table does not answer: %s", item_id(job_id, index), error)
        else:
            elsewhere = "" if taken else "; it was done elsewhere, too"
            log.info("item %s is done here in %.2f s%s", item_id(job_id, index), result.seconds, elsewhere)
        self._tried[job_id] = 0.0
        return True

    def drop(self, job: MasterJob) -> None:
        """The job's prompt is over: what runs of it here does not any more."""
        with self._lock:
            runs = [run for run in self._runs.values() if run.job is job]
            for run in runs:
                del self._runs[run.claim.claim_id]
        for run in runs:
            self._guest.give_back(run.running.cluster, run.claim, "release")
        self.turns.drop(job)
        self._unfit.forget(job.job_id)
        self._out_of_items.discard(job.job_id)
        self._too_large.discard(job.job_id)
        self._others.forget(job.job_id)
        self._tried.pop(job.job_id, None)

    def _result(self, run: LocalRun, store: MemoryBlobStore) -> ItemResult:
        job_id, limit_bytes = run.claim.job_id, run.running.cluster.settings.blob_limit_bytes
        seconds = time.monotonic() - run.began

        def stored() -> Iterator[Capture]:
            for number, (sink, slot, position, value) in enumerate(run.captures):
                name = f"{job_id}:{run.claim.index}:{run.claim.claim_id}:value{number}"
                yield Capture(sink, slot, position, store_value(store, name, value, job_id=job_id, limit_bytes=limit_bytes))

        captures = tuple(stored())
        reached = {capture.node_id for capture in captures}
        return ItemResult(
            captures=captures,
            blocked=tuple(sink for sink in run.sinks if sink not in reached),
            worker=self._guest.name,
            device_class=self._device_class(),
            engine="comfyui",
            seconds=seconds,
        )

    # -- whether to
    def _is_due(self, running: RunningJob) -> bool:
        job_id, now = running.record.job_id, time.monotonic()
        if now - self._tried[job_id] < _TRY_S:
            return False
        self._tried[job_id] = now
        return True

    def _may_take(self, job: MasterJob) -> RunningJob | None:
        """The job as it is collected, where this ComfyUI may take items of it.

        That is what the user wants; and where no worker is left, this ComfyUI makes all of it.
        """
        running = job.running
        if running is None or job.phase != "running":
            return None
        here, stuck = self._lacking(job, running)
        others_can = self._others.can_run(job, running, here, stuck)
        if self._kept_from_all(job, running):
            return None
        wanted = self._takes_part() and running.record.job_id not in self._too_large
        return running if not others_can or wanted else None

    def _lacking(self, job: MasterJob, running: RunningJob) -> tuple[str, bool]:
        """What this ComfyUI lacks for items that are left, in words, and whether there is no other left that it could take."""
        if from_all := self._kept_from_all(job, running):
            return from_all, True
        return self._unfit.left(job, running), running.record.job_id in self._out_of_items

    def _kept_from_all(self, job: MasterJob, running: RunningJob) -> str:
        """What this ComfyUI lacks for every item; empty where it could run some."""
        if self._host.cannot_add_nodes:
            return f"this ComfyUI {self._host.cannot_add_nodes}"
        if not job.can_run_here:
            return f"this ComfyUI lacks {', '.join(job.accepted.foreign)}"
        need, own = running.record.requirement, self._device_class()
        if need is not None and need.device_class not in ("", own):
            return f"this ComfyUI lacks device class {need.device_class} (it has {own})"
        return ""


def _spec(running: RunningJob, claim: Claim) -> ItemSpec:
    if claim.index < len(running.plan.items):
        return running.plan.items[claim.index]
    _, templates = running.cluster.jobs.prompts(claim.job_id)
    return unpack_spec(templates, claim.index, claim.packed_spec)
