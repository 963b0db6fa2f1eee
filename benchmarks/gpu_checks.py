"""What must hold on a real device: interrupts, warm models, memory given back, and life after running out of memory."""
from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu_ours import Ours
from benchmarks.rig import BenchmarkFailed

STEPS_BEFORE_CANCEL = 3
WAIT_S = 300.0
FREE_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Cancelled:
    """One job that was cancelled while it was sampled."""

    stopped_s: float
    """From just before the call of cancel to ComfyUI's end of the prompt."""
    next_s: float
    """... to the beginning of the next job's item, which was submitted just after the cancel: now the worker was free."""
    steps_after: int
    """Model calls that began after the cancel."""
    reads: int
    """Model files read for the next picture."""
    moves: int
    """Models moved to the device for it."""


@dataclass(frozen=True)
class Freed:
    """The device's memory round an order to clear it."""

    loaded_bytes: int
    freed_bytes: int
    again_bytes: int
    """After the next picture."""
    free_s: float
    """From the order until the memory was back."""
    next_s: float
    """The next picture, models read and moved again."""
    reads: int
    moves: int


@dataclass(frozen=True)
class Exhausted:
    """An item that needs more memory than there is, and what came after it."""

    error: str
    """Of the job."""
    cause: dict[str, Any] = field(default_factory=dict)
    """Code and fields of the item's error."""
    attempts: int = 0
    seconds: float = 0.0
    """From submission to the end of the job."""
    freed_bytes: int = 0
    """Device memory in use just after it."""
    next_s: float = 0.0
    """The next picture."""
    engine_lives: bool = False
    """The same engine process made it."""


def cancel(ours: Ours) -> Cancelled:
    """Cancel a job in the middle of sampling, and submit the next one at once."""
    place, trace = ours.place, ours.trace
    began = time.time()
    with ours.queued(place.job_prompt("save", 1), 1) as job:
        trace.wait("step", STEPS_BEFORE_CANCEL, began, timeout_s=WAIT_S)
        cancelled = time.time()
        ours.cluster.jobs.cancel(job.record.job_id, "the benchmark")
        picture(ours)
    stopped = trace.wait("prompt:end", 1, cancelled, timeout_s=WAIT_S).at
    begun = trace.wait("prompt:begin", 1, cancelled, timeout_s=WAIT_S).at
    steps = trace.count("step", cancelled, stopped)
    return Cancelled(stopped - cancelled, begun - cancelled, steps, trace.count("read", stopped), trace.count("to_device", stopped))


def free(ours: Ours) -> Freed:
    """Clear the memory of a warm worker, then make a picture."""
    loaded = ours.place.used_bytes(ours.engine_pid)
    ordered = time.time()
    ours.cluster.workers.free(ours.name)
    freed, when = _settled(ours)
    again = time.time()
    next_s = picture(ours)
    moves, reads = ours.trace.count("to_device", again), ours.trace.count("read", again)
    return Freed(loaded, freed, ours.place.used_bytes(ours.engine_pid), when - ordered, next_s, reads, moves)


def _settled(ours: Ours) -> tuple[int, float]:
    """The memory in use when it has fallen and stays, and when it fell last; without a GPU it need not fall at all."""
    began = when = time.time()
    first = lowest = ours.place.used_bytes(ours.engine_pid)
    while time.time() - when < 1.0 or (lowest == first and ours.place.on_gpu and time.time() - began < FREE_TIMEOUT_S):
        now = ours.place.used_bytes(ours.engine_pid)
        if now < lowest:
            lowest, when = now, time.time()
    return lowest, when


def run_out_of_memory(ours: Ours) -> Exhausted:
    """A job that cannot fit, then one that can."""
    place, size = ours.place, ours.place.size
    changes: dict[str, Any] = {"batch": size.too_many} if place.on_gpu and size.too_many else {"hog": True}
    began = time.time()
    delivery = ours.run(place.job_prompt("save", 1, **changes), 1)
    seconds = time.time() - began
    if delivery.error is None:
        raise BenchmarkFailed("the job that cannot fit into memory was done")
    attempts = ours.trace.count("prompt:begin", began)
    ours.wait_idle()
    used = place.used_bytes(ours.engine_pid)
    next_s = picture(ours)
    cause = delivery.error.fields.get("error") or {}
    lives = ours.trace.count("prompt:end", began) == attempts + 1
    return Exhausted(str(delivery.error), dict(cause), attempts, seconds, used, next_s, lives)


def picture(ours: Ours) -> float:
    """Make one picture; seconds."""
    began = time.time()
    delivery = ours.run(ours.place.job_prompt("save", 1), 1)
    if delivery.error is not None:
        raise delivery.error
    return time.time() - began
