"""The state of the whole cluster in numbers: tallies and what the table says now, read in a few round trips."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from distributed_comfy.messages import ItemKind
from distributed_comfy.state.scripts import Scripts
from distributed_comfy.state.tallies import Histogram, by_label, histogram

KINDS: tuple[str, ...] = get_args(ItemKind)
ITEM_STATES = ("blocked", "pending", "waiting", "running", "done")
"""Of items of jobs that have not ended."""
JOB_STATES = ("pending", "running", "paused", "parked")
_CAPS = {"own": "job", "all": "all_jobs", "size": "first_result"}
"""Lua's words for what holds an item back."""
_UNLIMITED = 2**50
_DEFAULT_LIMIT = 4 * 2**30  # as in byte_room of _index.lua
_JOBS_PER_CALL = 25
"""The server serves nobody else meanwhile: a few hundred microseconds."""


@dataclass(frozen=True)
class Figures:
    """All numbers; the tallies only grow."""

    items: dict[tuple[str, str], int]
    """(kind, state) -> items of jobs that have not ended; every combination is there."""
    jobs: dict[str, int]
    """State -> jobs that have not ended."""
    held_back: dict[str, int]
    """Cap (``job``, ``all_jobs``, ``first_result``) -> pending items that it holds back."""
    in_flight_bytes: int
    in_flight_limit_bytes: int
    job_limit_bytes: int | None
    """Lowest cap of a job; None where no job has one."""
    unfetched_bytes: int
    waits: dict[str, Histogram]
    """By kind: from the moment an item could run to its claim."""
    runs: dict[str, Histogram]
    """By kind: engine time of done items."""
    retries: dict[str, int]
    """Cause -> attempts that ended without a result, after which the item could be claimed again."""
    failures: dict[str, int]
    """Cause -> items that failed for good."""
    ended_jobs: dict[str, int]
    lost_workers: int


def read_figures(scripts: Scripts) -> Figures:
    """The figures of this moment.

    The cost grows with the jobs that have not ended (or whose results lie unfetched), not with their items.

    Raises:
        RedisUnreachable: no answer.
    """
    client, keys = scripts.client, scripts.keys
    pipe = client.pipeline(transaction=False)
    pipe.smembers(keys("active"))
    pipe.hkeys(keys("unsettled"))
    pipe.hgetall(keys("tallies"))
    pipe.get(keys("inflight"))
    pipe.hget(keys("limits"), "all")
    active, unsettled, stored, in_flight, limit = scripts.reply(pipe.execute)
    found = _measured(scripts, sorted({*active, *unsettled}))
    tallies = {name: int(count) for name, count in stored.items()}
    job_limit = found.get("job limit", _UNLIMITED)
    return Figures(
        items={(kind, state): found.get(f"items|{kind}|{state}", 0) for kind in KINDS for state in ITEM_STATES},
        jobs={state: found.get(f"jobs|{state}", 0) for state in JOB_STATES},
        held_back={label: found.get(f"held|{hold}", 0) for hold, label in _CAPS.items()},
        in_flight_bytes=int(float(in_flight or 0)),
        in_flight_limit_bytes=int(float(limit or 0)) or _DEFAULT_LIMIT,
        job_limit_bytes=job_limit if job_limit < _UNLIMITED else None,
        unfetched_bytes=found.get("unfetched", 0),
        waits={kind: histogram(tallies, "wait", kind) for kind in KINDS},
        runs={kind: histogram(tallies, "run", kind) for kind in KINDS},
        retries=by_label(tallies, "retry"),
        failures=by_label(tallies, "failure"),
        ended_jobs={"done": 0, "failed": 0, "cancelled": 0, **by_label(tallies, "job")},
        lost_workers=tallies.get("lost workers", 0),
    )


def _measured(scripts: Scripts, job_ids: Sequence[str]) -> dict[str, int]:
    """What `measure.lua` says of all these jobs."""
    found: dict[str, int] = {}
    for first in range(0, len(job_ids), _JOBS_PER_CALL):
        flat = scripts.run("measure", *job_ids[first : first + _JOBS_PER_CALL])
        for name, text in zip(flat[0::2], flat[1::2], strict=True):
            number = int(text)
            found[name] = min(found.get(name, number), number) if name == "job limit" else found.get(name, 0) + number
    return found
