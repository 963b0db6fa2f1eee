"""What a ticket does: claim one item, run it in the engine, enter its end in the table."""
from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Literal, NoReturn, TypeVar

import redis
from celery.exceptions import Ignore

from distributed_comfy.errors import (
    CacheUnwritable,
    ClusterUnavailable,
    DistributedComfyError,
    FrameEncodingMissing,
    ItemInterrupted,
    MessageVersionUnknown,
    OutOfMemory,
    RemoteError,
    ValidationRefused,
    WorkerLacks,
    WorkerLost,
)
from distributed_comfy.log_lines import now_about
from distributed_comfy.messages import (
    FED_KINDS,
    InputFile,
    ItemResult,
    ItemSpec,
    JobRecord,
    Prompt,
    RunRequest,
    apply_patches,
    item_id,
    load,
)
from distributed_comfy.state.records import Claim
from distributed_comfy.state.specs import has_template, unpack_spec
from distributed_comfy.state.workers import GiveBackReason
from distributed_comfy.transport.feed_names import Feed, bind_feed
from distributed_comfy.transport.values import value_blobs
from tasks.inputs import bring_inputs
from tasks.item_events import NO_WORK, NodeTraceback, TicketEvents, node_class_of, node_traceback
from tasks.runtime import WorkerRuntime

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 2.0

Outcome = Literal["again", "failed", "taken away"]
"""Of an attempt that did not finish its item."""


def run_ticket(runtime: WorkerRuntime, events: TicketEvents) -> str:
    """Claim and run one item.

    Args:
        runtime: the worker.
        events: tell monitors which item this task turned out to be.
    Returns:
        The item's id and how long it took, or `NO_WORK`.
    Raises:
        DistributedComfyError: the item failed for good, and with it the job; the table knows it already, monitors learn it so.
        Ignore: the item will run again, or was taken away from this worker; monitors were told which.
    """
    claim_id = runtime.held.new()
    now_about()
    try:
        claim = _claim(runtime, claim_id)
        if claim is None:
            events.no_work()
            return NO_WORK
        now_about(claim.job_id, claim.index)  # also for what Celery logs after this returns
        runtime.held.advance(claim_id, "reserved")
        return f"{item_id(claim.job_id, claim.index)}: {_run_claim(runtime, claim, events)}"
    finally:
        runtime.held.drop(claim_id)
        runtime.activity.end(claim_id)


def _claim(runtime: WorkerRuntime, claim_id: str) -> Claim | None:
    if runtime.draining.is_set() or not runtime.wait_able(0):
        return None
    try:
        return runtime.cluster.workers.claim(runtime.name, runtime.incarnation, claim_id)
    except WorkerLost:
        log.warning("worker %s was declared dead while it asked for an item", runtime.name)
        return None


def _run_claim(runtime: WorkerRuntime, claim: Claim, events: TicketEvents) -> str:
    incarnation = runtime.incarnation
    try:
        request, spec = _request(runtime, claim)
        runtime.activity.begin(request)
        events.item_started(claim.job_id, spec, node_class_of(spec, request.prompt, request.original_prompt))
        log.info("item %s starts (attempt %d, seed %s)", item_id(claim.job_id, claim.index), claim.attempt, spec.seed or "-")
        bring_inputs(runtime.cluster, request, runtime.engine.options.cache_folder, lambda: runtime.is_wanted(claim.claim_id))
        future: Future[ItemResult] = runtime.engine.run(request)
        if not runtime.is_wanted(claim.claim_id):  # since the last look; the engine knew nothing of it then
            runtime.engine.interrupt(claim.claim_id)
        runtime.held.advance(claim.claim_id, "started")
        result = future.result()
    except DistributedComfyError as error:
        _end_task(_give_back(runtime, incarnation, claim, error), error, events)
    except Exception as error:  # the task boundary: whatever it was, the item must not hang in the table
        _give_back(runtime, incarnation, claim, RemoteError(original_code=type(error).__name__, details=str(error)))
        raise
    runtime.held.advance(claim.claim_id, "ending")
    if enter_result(runtime, incarnation, claim, result):
        runtime.activity.done()
        log.info("item %s is done in %.2f s", item_id(claim.job_id, claim.index), result.seconds)
        return f"done in {result.seconds:.2f} s"
    events.item_taken_away()
    raise Ignore("the item went elsewhere")


def enter_result(runtime: WorkerRuntime, incarnation: str, claim: Claim, result: ItemResult) -> bool:
    """Hand an item's result in; False where another worker has the item by now, and nothing of this result stays."""
    if _patiently(runtime, lambda: runtime.cluster.workers.complete(runtime.name, incarnation, claim, result)):
        return True
    _say_gone(runtime, claim)
    _unlink(runtime, result)
    return False


def _say_gone(runtime: WorkerRuntime, claim: Claim) -> None:
    item = item_id(claim.job_id, claim.index)
    log.info("worker %s: item %s (claim %s) went elsewhere; how it ended here does not count", runtime.name, item, claim.claim_id)


def _patiently(runtime: WorkerRuntime, tell: Callable[[], T]) -> T:
    """Tell the table how an item ended, for as long as it takes it to answer: the work is done and the claim still held.

    Raises:
        ClusterUnavailable, redis.RedisError: the worker is told to end before the table answers.
    """
    wait_s = _FIRST_WAIT_S
    while True:
        try:
            return tell()
        except (ClusterUnavailable, redis.RedisError) as error:
            if runtime.stopped or runtime.draining.is_set():
                raise
            if wait_s == _FIRST_WAIT_S:
                log.warning("worker %s: the table does not answer (%s); the result waits for it", runtime.name, error)
        time.sleep(wait_s)
        wait_s = min(wait_s * 2, _LONGEST_WAIT_S)


def _end_task(outcome: Outcome, error: DistributedComfyError, events: TicketEvents) -> NoReturn:
    """End the Celery task as the item's attempt ended; all that matters is in the table already."""
    if outcome == "taken away":
        events.item_taken_away()
        raise Ignore(str(error)) from error
    if outcome == "again":
        events.item_failed_for_now(error)
        raise Ignore(str(error)) from error
    raise error from NodeTraceback(node_traceback(error))


def _request(runtime: WorkerRuntime, claim: Claim) -> tuple[RunRequest, ItemSpec]:
    record, prompts, templates = _job_texts(runtime, claim)
    spec = unpack_spec(templates, claim.index, claim.packed_spec)
    prompt = apply_patches(prompts[spec.prompt_hash], spec.patches)
    request = RunRequest(
        claim_id=claim.claim_id,
        job_id=claim.job_id,
        index=claim.index,
        kind=spec.kind,
        prompt=prompt,
        targets=spec.targets,
        original_prompt=prompts[record.original_prompt_hash],
        extra_pnginfo=record.extra_pnginfo,
        input_files=tuple(entry for entry in record.input_files if _loads(prompt, entry)),
        feed=_feed(runtime, claim) if spec.kind in FED_KINDS else {},
        attempt=claim.attempt,
        frames=record.frames,
        echoes=record.echoes,
    )
    return request, spec


def _job_texts(runtime: WorkerRuntime, claim: Claim) -> tuple[JobRecord, dict[str, Prompt], list[str]]:
    """What all items of the job share; read again where its owner has added items of another sort since."""
    texts = runtime.job_texts(claim.job_id)
    if not has_template(texts[2], claim.packed_spec):
        runtime.job_texts.cache_clear()
        texts = runtime.job_texts(claim.job_id)
    return texts


def _loads(prompt: Prompt, entry: InputFile) -> bool:
    """Whether this item's prompt names the file: items may load different ones with the same node."""
    return entry.node_id in prompt and prompt[entry.node_id]["inputs"].get(entry.input) == entry.value


def _feed(runtime: WorkerRuntime, claim: Claim) -> Feed:
    text = runtime.cluster.jobs.feed(claim.job_id, claim.index)
    return bind_feed(load(Feed, text), claim.claim_id) if text else {}


def _give_back(runtime: WorkerRuntime, incarnation: str, claim: Claim, error: DistributedComfyError) -> Outcome:
    runtime.held.advance(claim.claim_id, "ending")
    item = item_id(claim.job_id, claim.index)
    how = _how(runtime, error, item)
    if how == "release":
        log.info("item %s is given back: %s", item, error)
    else:
        log.warning("item %s failed on %s (%s): %s", item, runtime.name, how, error)
        runtime.activity.failed(error, item)
    try:
        outcome = _patiently(runtime, lambda: runtime.cluster.workers.give_back(runtime.name, incarnation, claim, how, error))
    except (ClusterUnavailable, redis.RedisError) as lost:
        log.warning("item %s could not be given back (%s); its lease or the next sign of life does it", item, lost)
        outcome = "lost"
    else:
        if outcome == "lost":
            _say_gone(runtime, claim)
    if isinstance(error, WorkerLacks):
        runtime.engine.describe()
    if how == "release" or outcome == "lost":
        return "taken away"
    return "failed" if outcome == "failed" else "again"


def _how(runtime: WorkerRuntime, error: DistributedComfyError, item: str) -> GiveBackReason:
    if isinstance(error, ItemInterrupted):
        return "release"
    if isinstance(error, (WorkerLacks, FrameEncodingMissing, MessageVersionUnknown)):
        return "lacks"
    if isinstance(error, CacheUnwritable) or (isinstance(error, OutOfMemory) and runtime.ran_out_before(item)):
        return "elsewhere"  # this worker is free at once, and would take the item again and again while the others are busy
    if isinstance(error, ValidationRefused):
        return "refused"
    return "retry" if error.retryable or isinstance(error, RemoteError) else "final"


def _unlink(runtime: WorkerRuntime, result: ItemResult) -> None:
    """A refused result deletes its own blobs; their names hold the claim id, so nobody else's."""
    blobs = [blob for capture in result.captures for blob in value_blobs(capture.value)]
    runtime.cluster.blobs.unlink([*blobs, *(file.blob for file in result.files)])


def ticket_body(runtime: WorkerRuntime, dispatcher: Callable[[], Any]) -> Callable[..., str]:
    """The function behind the Celery task.

    Args:
        runtime: the worker.
        dispatcher: gives Celery's event dispatcher, or None while there is none.
    """

    def run_item(task: Any, worker: str) -> str:
        """Come and claim; the worker's name is only for the router."""

        return run_ticket(runtime, TicketEvents(dispatcher, task.request.id))

    return run_item
