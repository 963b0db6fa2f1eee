"""Jobs as the panel shows them: state, place in the queue, when each will probably be done, and what it can be told."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from distributed_comfy.errors import ValidationRefused
from distributed_comfy.panel.unserved import Words
from distributed_comfy.panel.words import item_error, split_text
from distributed_comfy.state.records import JobState

_ORDERS = {
    "pending": ("cancel", "pause", "priority"), "running": ("cancel", "pause", "priority"), "paused": ("resume", "cancel", "priority"),
    "parked": ("collect", "cancel", "pause", "priority"), "done": (), "failed": ("retry",), "cancelled": ("retry",),
}  # fmt: skip
_COLLECTOR_MS = 20_000
"""What a process may take that begins to collect a job."""
_STILL_S = 2.0
_STILL_PART = 0.1
"""An estimate that moves by less than this part of what is left, or these seconds, stays as it was told."""
_LEAST_DONE = 2
_STEPS = ((20, 1), (200, 10), (float("inf"), 100))
"""Up to which place in the queue it is told in which steps."""


@dataclass(frozen=True)
class Estimate:
    """Where a job stands."""

    position: int = 0
    ends_ms: int = 0


@dataclass(frozen=True)
class Pace:
    """How fast a job was seen to go."""

    since_ms: int
    done: int
    """Items that were done then."""


def shown_job(job_id: str, state: JobState, estimate: Estimate, *, mine: bool, unserved: Words = ("", "")) -> dict[str, Any]:
    """As ``Job`` of openapi.json."""
    reason, remedy = why(state) if state.ended or not unserved[0] else unserved
    orders = [] if _is_invalid(state) else list(_ORDERS[state.state])
    return {
        "id": job_id, "title": state.title, "state": state.state, "reason": reason, "remedy": remedy, "user": state.submitter,
        "host": state.host, "mine": mine, "priority": state.priority, "created_ms": state.created_ms, "ended_ms": state.ended_ms,
        "counts": {name: state.counts[name] for name in ("total", "pending", "running", "done", "failed")}, "tiles": state.tiles,
        "tiles_done": state.tiles_done, "stages": state.stages, "retried": state.retried_ms > 0,
        "position": estimate.position, "ends_ms": estimate.ends_ms,
        "orders": orders,
    }  # fmt: skip


def with_time_for_a_collector(state: JobState, now_ms: int) -> JobState:
    """A job that has just been told to go on: who collects it is on the way, and nothing is wrong yet where nobody does."""
    if state.state != "parked" or now_ms - state.retried_ms > _COLLECTOR_MS:
        return state
    return replace(state, state="pending", reason="")


def _is_invalid(state: JobState) -> bool:
    """Whether it can only fail again, wherever it runs."""
    error = item_error(state.error)
    return state.state == "failed" and error is not None and error["code"] == ValidationRefused.code


def why(state: JobState) -> tuple[str, str]:
    """Why it waits, failed or was cancelled, and what to do."""
    error = item_error(state.error)
    if error is not None:
        where = f"node {error['node_id']} ({error['node_class']}): " if error["node_id"] else ""
        return (error["message"] if error["message"].startswith("node ") else where + error["message"]), error["remedy"]
    return split_text(state.reason)


@dataclass(frozen=True)
class Power:
    """What works on the jobs."""

    workers: int
    """That take items."""
    item_s: float
    """Mean engine time of an item; 0: nobody knows."""


def estimates(
    jobs: Mapping[str, JobState], paces: Mapping[str, Pace], before: Mapping[str, Estimate], now_ms: int, power: Power
) -> dict[str, Estimate]:
    """Where each job that has not ended stands.

    Priorities, then age, decide here; the table lets users take turns besides, so it is an estimate.

    Args:
        jobs: those that have not ended.
        paces: how fast they go.
        before: what was told of them last.
        now_ms: Redis time.
        power: of all workers.
    """
    found: dict[str, Estimate] = {}
    position, ahead = 0, 0
    for job_id, state in in_turn(jobs):
        left = state.counts["pending"] + state.counts["running"]
        waits = state.state == "pending"
        position += waits
        ahead += left
        seconds = _own_s(state, paces.get(job_id), now_ms) or (ahead * power.item_s / power.workers if power.workers else 0.0)
        told = before.get(job_id, Estimate())
        found[job_id] = Estimate(_round(position) if waits else 0, _steady(told.ends_ms, now_ms, seconds))
    return found


def in_turn(jobs: Mapping[str, JobState]) -> Iterable[tuple[str, JobState]]:
    """Those that run or wait, in the order in which they probably come."""
    live = [(job_id, state) for job_id, state in jobs.items() if state.state in ("pending", "running")]
    return sorted(live, key=lambda pair: (pair[1].state == "pending", -pair[1].priority, pair[1].created_ms))


def _round(position: int) -> int:
    """Exact where it matters: else each job that begins would change the row of every other one that waits."""
    step = next(step for limit, step in _STEPS if position <= limit)
    return -(-position // step) * step


def _own_s(state: JobState, pace: Pace | None, now_ms: int) -> float:
    """Seconds that are left of a job that is under way, by its own pace; 0 where that is not known."""
    if pace is None or not state.counts["running"]:
        return 0.0
    done = state.counts["done"] - pace.done
    if done < _LEAST_DONE or now_ms <= pace.since_ms:
        return 0.0
    return (state.counts["pending"] + state.counts["running"]) * (now_ms - pace.since_ms) / 1000 / done


def _steady(told_ms: int, now_ms: int, seconds: float) -> int:
    """When that is over; what was told last where that is near enough."""
    if seconds <= 0:
        return 0
    ends_ms = now_ms + round(seconds * 1000)
    near_ms = max(_STILL_S, _STILL_PART * seconds) * 1000
    return told_ms if told_ms and abs(told_ms - ends_ms) <= near_ms and told_ms > now_ms else ends_ms
