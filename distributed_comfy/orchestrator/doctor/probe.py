"""One small item for one worker: a plain picture through ticket, claim, engine, blob store and back, and then no trace of it."""
from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy
import redis

from distributed_comfy.errors import DistributedComfyError, from_wire
from distributed_comfy.messages import Capability, ItemResult, JobRecord, Requirement, TensorRef
from distributed_comfy.orchestrator.doctor.findings import Finding, fail, ok, warn
from distributed_comfy.planning.plan import JobPlan, PlanOptions, plan_job
from distributed_comfy.planning.requirements import signature
from distributed_comfy.state.jobs import Submission
from distributed_comfy.state.probes import ProbeTable
from distributed_comfy.state.records import JobState, WorkerState
from distributed_comfy.transport.frames import decode_tensor
from distributed_comfy.workflow.parse import parse_prompt
from tasks.cluster import Cluster

PROBE_SETTINGS: Mapping[str, object] = {"owner_ttl_s": 60.0, "job_ttl_s": 60, "blob_ttl_s": 60}
"""Settings of the cluster that probes run on: should this process be killed, what is left of them goes by itself soon."""

_ANSWER_S = 20.0
_POLL_S = 0.03
_CALL_S = 0.5
"""How often the worker is called again: one that has described itself anew meanwhile serves only what matches its new description."""
_COLOUR = 0x336699
_SIDE_PX = 16
_PROMPT = {
    "picture": {"class_type": "EmptyImage", "inputs": {"width": _SIDE_PX, "height": _SIDE_PX, "batch_size": 1, "color": _COLOUR}},
    "collect": {"class_type": "DistributedCollector", "inputs": {"images": ["picture", 0], "load_balance": False}},
}


@dataclass(frozen=True)
class _Answer:
    """What became of a probe."""

    wrong: str | None
    """Empty: all is right; None: there was no answer in time."""
    taken: bool = False
    """Of one without an answer: whether the worker had it."""


def check_by_probe(cluster: Cluster, probes: ProbeTable, worker: WorkerState, capability: Capability, stop: threading.Event) -> Finding:
    """Send a worker one item with the lowest priority, and look at what comes back.

    Args:
        cluster: opened with `PROBE_SETTINGS`.
        probes: on the same server.
        worker: an idle one.
        capability: what it can run.
        stop: ends the wait.
    """
    check, name = f"worker {worker.facts.name}", worker.facts.name
    log_remedy = f"look into the logs of {name} on {worker.facts.host}"
    began = time.monotonic()
    try:
        answer = _run(cluster, probes, name, capability, stop)
    except (DistributedComfyError, redis.RedisError) as error:
        return fail(check, f"a probe item could not be followed: {error}", "see what is said about the Redis above")
    if answer.wrong is None and answer.taken:
        return fail(check, f"took a probe item and has not finished it within {_ANSWER_S:.0f} s", log_remedy)
    if answer.wrong is None:
        return _unanswered(cluster, check, name, log_remedy)
    if answer.wrong:
        return fail(check, f"a probe item {answer.wrong}", log_remedy)
    what = f"{worker.facts.engine} {worker.facts.engine_version}".strip()
    return ok(check, f"{what} on {worker.facts.device}: a probe item came back right in {time.monotonic() - began:.2f} s")


def _unanswered(cluster: Cluster, check: str, name: str, log_remedy: str) -> Finding:
    now = {other.facts.name: other for other in cluster.workers.workers()}.get(name)
    if now is None or now.state in ("lost", "down"):
        return warn(check, "went away during the probe", log_remedy)
    if now.state == "busy":
        return ok(check, f"got other work before the probe: {', '.join(now.claims)}")
    found = f"did not take a probe item within {_ANSWER_S:.0f} s although it is {now.state}"
    return fail(check, found, f"{log_remedy}, and start it again")


def _run(cluster: Cluster, probes: ProbeTable, worker: str, capability: Capability, stop: threading.Event) -> _Answer:
    """Submit, wait, look; leaves nothing in either server."""
    plan = plan_job(parse_prompt(_PROMPT), PlanOptions(items=1), [capability])
    job_id, owner = secrets.token_hex(6), f"doctor-{secrets.token_hex(4)}"
    # No worker has the tag, so only the pinned one serves this signature.
    needs = Requirement(capability.engine, plan.requirement.node_classes, tags=(f"doctor-{job_id}",))
    try:
        cluster.jobs.submit(_submission(cluster, plan, job_id, needs), owner)
        state = _wait(cluster, job_id, stop, lambda: probes.pin(signature(needs), worker))
        done = cluster.jobs.result(job_id, 0)
        if done is not None:
            return _Answer(_why_wrong(cluster, done[1], worker))
        if state.error:
            return _Answer(f"failed: {from_wire(state.error)}")
        return _Answer(None, taken=state.state == "running")
    finally:
        _remove(cluster, probes, job_id)


def _submission(cluster: Cluster, plan: JobPlan, job_id: str, needs: Requirement) -> Submission:
    record = JobRecord(
        job_id=job_id,
        submitter="doctor",
        priority=0,
        items=1,
        prompts=tuple(plan.prompts),
        original_prompt_hash=plan.original_prompt_hash,
        collectors=plan.collectors,
        requirement=needs,
        host=cluster.settings.host_name,
        title="doctor",
    )
    prompts = {**plan.prompts, plan.original_prompt_hash: plan.original_prompt}
    return Submission(record, plan.items, prompts, signature(needs))


def _wait(cluster: Cluster, job_id: str, stop: threading.Event, call: Callable[[], object]) -> JobState:
    deadline, call_at = time.monotonic() + _ANSWER_S, 0.0
    while True:
        if time.monotonic() >= call_at:
            call()
            call_at = time.monotonic() + _CALL_S
        state = cluster.jobs.job_state(job_id)
        if state.ended or time.monotonic() >= deadline or stop.wait(_POLL_S):
            return state


def _remove(cluster: Cluster, probes: ProbeTable, job_id: str) -> None:
    if not probes.forget(job_id):
        cluster.jobs.cancel(job_id, "the probe took too long")
        probes.forget(job_id)
    cluster.blobs.drop_job(job_id)


def _why_wrong(cluster: Cluster, result: ItemResult, worker: str) -> str:
    """Empty where the picture is the right one, made by the right worker."""
    if result.worker != worker:
        return f"was made by {result.worker}"
    values = [capture.value for capture in result.captures]
    if len(values) != 1 or not isinstance(values[0], TensorRef):
        return f"came back with {len(values)} values instead of one picture"
    try:
        picture = decode_tensor(cluster.blobs.get(values[0].blob), limit_bytes=cluster.settings.blob_limit_bytes)
    except DistributedComfyError as error:
        return f"came back unreadable: {error}"
    colour = numpy.array([_COLOUR >> shift & 0xFF for shift in (16, 8, 0)], numpy.float32) / 255
    right = picture.shape == (1, _SIDE_PX, _SIDE_PX, 3) and bool(numpy.allclose(picture, colour, atol=1 / 512))
    return "" if right else "came back with wrong pixels"
