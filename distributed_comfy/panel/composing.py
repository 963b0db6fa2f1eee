"""Puts what Redis says together as the page has it, and makes again only what is made of something new."""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from distributed_comfy.agent.up import agent_runs, find_local_agent
from distributed_comfy.messages import parse_item_id
from distributed_comfy.panel.job_views import Estimate, Pace, Power, estimates, shown_job, with_time_for_a_collector
from distributed_comfy.panel.place import Place
from distributed_comfy.panel.pulse import Findings, Pulse
from distributed_comfy.panel.rows import RowMaker
from distributed_comfy.panel.server_looks import Server
from distributed_comfy.panel.steps import StepPlace, StepView
from distributed_comfy.panel.unserved import Words
from distributed_comfy.panel.worker_views import WorkerSources, shown_host, shown_worker, unknown_worker
from distributed_comfy.state.records import HostRecord, HostWorker, JobState

_FEW_BUSY = 10
_STEPS_S = 1.0
"""How often steps of many busy workers are told; those of a few are told at each look."""
_LOCAL_S = 2.0
_STILL_MS = 1500
_LATEST_START_S = 86_400.0
"""What an agent says beyond it is no time that anybody waits for."""
_ABLE = ("idle", "ticketed", "busy")


class Composer:
    """Used by one thread.

    Args:
        place: what serves the panel.
        tunnel: as ``Tunnel`` of openapi.json.
    """

    def __init__(self, place: Place, tunnel: Callable[[], dict[str, Any]]) -> None:
        self._place = place
        self._tunnel = tunnel
        self._workers: dict[str, tuple[WorkerSources, dict[str, Any] | None]] = {}
        """None: there is nothing to show of it."""
        self._hosts: dict[str, tuple[HostRecord, tuple[bool, int], dict[str, Any] | None]] = {}
        self._rows = RowMaker()
        self._jobs: dict[str, tuple[tuple[Estimate, bool, Words], JobState, dict[str, Any] | None]] = {}
        self._starts: dict[str, int] = {}
        self._estimates: dict[str, Estimate] = {}
        self._paces: dict[str, Pace] = {}
        self._steps: Mapping[StepPlace, StepView] = {}
        self._steps_at = 0.0
        self._down: dict[str, int] = {}
        """Servers that do not answer -> when they did last; 0: not since somebody looks."""
        self._able = -1
        """Workers that take items, at the last estimate."""
        self._local = self._runs = False
        self._local_at = 0.0

    def compose(self, pulse: Pulse, steps: Mapping[StepPlace, StepView]) -> dict[str, Any]:
        """What of ``State`` of openapi.json may change."""
        found, master = pulse.found, self._place.master
        self._look_around()
        workers = self._shown_workers(found, self._due_steps(found, steps))
        able = sum(not row.drained and row.state in _ABLE and bool(row.capability) for row in found.rows.values())
        if pulse.jobs_changed or able != self._able:
            self._able = able
            self._estimate(found)
        servers, host = self._place.servers(), self._place.settings.host_name
        state, blobs = (self._health(name, server, pulse) for name, server in (("state", found.state), ("blobs", found.blobs)))
        composed = {
            "servers": {
                "shown": servers.shown if servers else "", "embedded": bool(servers and servers.embedded),
                "invited_to": servers.invited_to if servers else "", "one": bool(servers and servers.one), "state": state, "blobs": blobs,
            },
            "hosts": self._shown_hosts(found), "workers": workers, "jobs": self._shown_jobs(found),
            "master": master.shown() if master else None, "invites": found.invites, "tunnel": self._tunnel(),
            "agent": "here" if host in found.hosts else "elsewhere" if self._runs else "none",
        }  # fmt: skip
        return composed if found.state.up else out_of_date(composed, state["down_since_ms"])

    def begin(self) -> None:
        """Nobody has looked for a while, or another cluster is looked at: since when a server does not answer is not known."""
        self._down.clear()

    def _health(self, name: str, server: Server, pulse: Pulse) -> dict[str, Any]:
        if server.up:
            self._down.pop(name, None)
        answered_ms = pulse.found.now_ms if name in pulse.answered else 0
        return {**server.shown(), "down_since_ms": 0 if server.up else self._down.setdefault(name, answered_ms)}

    def _look_around(self) -> None:
        """Whether this user's own agent runs here, whose orders need nobody's leave."""
        if time.monotonic() >= self._local_at:
            self._local = find_local_agent(self._place.settings) is not None
            self._runs = self._local and agent_runs(self._place.settings)
            self._local_at = time.monotonic() + _LOCAL_S

    def _may_configure(self, record: HostRecord) -> bool:
        return record.remote_configuration or (self._local and record.host == self._place.settings.host_name)

    # -- workers and hosts -----------------------------------------------------------------------------------------------
    def _due_steps(self, found: Findings, steps: Mapping[StepPlace, StepView]) -> Mapping[StepPlace, StepView]:
        busy = sum(bool(row.claims) for row in found.rows.values())
        if busy <= _FEW_BUSY or time.monotonic() - self._steps_at >= _STEPS_S:
            self._steps, self._steps_at = steps, time.monotonic()
        return self._steps

    def _shown_workers(self, found: Findings, steps: Mapping[StepPlace, StepView]) -> dict[str, dict[str, Any]]:
        records = [*(host.record for host in found.gone.values()), *found.hosts.values()]
        kept = {own.name: (record, own) for record in records for own in record.workers}
        made = {}
        for name in sorted({*found.rows, *kept}):
            record, own = kept.get(name, (None, None))
            sources = self._sources(found, name, record, own, steps)
            before = self._workers.get(name)
            if before is not None and before[0] == sources:
                made[name] = before
            else:
                made[name] = (sources, self._rows.make(f"worker {name}", partial(shown_worker, sources)))
        self._workers = made
        return {name: shown for name, (_, shown) in made.items() if shown is not None}

    def _sources(
        self, found: Findings, name: str, record: HostRecord | None, own: HostWorker | None, steps: Mapping[StepPlace, StepView]
    ) -> WorkerSources:
        row, status = found.rows.get(name), found.statuses.get(name)
        host = record.host if record else row.facts.host if row else ""
        claims = {place for item in (row.claims if row else ()) if (place := parse_item_id(item))}
        told = {place: step for place in claims if (step := steps.get((*place, name)))}  # by whoever holds the claim, and nobody else
        return WorkerSources(
            name,
            replace(own, next_start_s=0.0) if own else None,
            _written(record, name) if record else None,
            record.host if record else "",
            row,
            status,
            {place: replace(step, preview=b"") for place, step in told.items()} if claims else None,
            self._next_start(name, own, found.now_ms),
            host == self._place.settings.host_name,
            editable=record is not None and record.host in found.hosts and self._may_configure(record),
            gone_ms=found.gone[record.host].seen_ms if record is not None and record.host not in found.hosts else 0,
            devices=_device_names(record) if record else (),
        )

    def _next_start(self, name: str, own: HostWorker | None, now_ms: int) -> int:
        """When a worker is started again; the same number for as long as that is meant."""
        if own is None or own.phase != "backing-off":
            self._starts.pop(name, None)
            return 0
        next_s = min(max(own.next_start_s, 0.0), _LATEST_START_S) if math.isfinite(own.next_start_s) else 0.0
        at_ms, before = now_ms + round(next_s * 1000), self._starts.get(name, 0)
        if name not in self._starts or abs(at_ms - before) > _STILL_MS:
            self._starts[name] = at_ms
        return self._starts[name]

    def _shown_hosts(self, found: Findings) -> dict[str, dict[str, Any]]:
        made, gone = {}, {name: host for name, host in found.gone.items() if name not in found.hosts}
        for name, record in {**found.hosts, **{name: host.record for name, host in gone.items()}}.items():
            since_ms, before = gone[name].seen_ms if name in gone else 0, self._hosts.get(name)
            how = (not since_ms and self._may_configure(record), since_ms)
            if before is not None and before[0] == record and before[1] == how:
                made[name] = before
            else:
                here = name == self._place.settings.host_name
                make = partial(shown_host, record, here=here, configurable=how[0], gone_ms=since_ms)
                made[name] = (record, how, self._rows.make(f"host {name}", make))
        self._hosts = made
        return {name: shown for name, (_, _, shown) in made.items() if shown is not None}

    # -- jobs ------------------------------------------------------------------------------------------------------------
    def _estimate(self, found: Findings) -> None:
        live = {job_id: state for job_id, state in found.jobs.items() if not state.ended}
        for job_id, state in live.items():
            if job_id not in self._paces and state.counts["running"]:
                self._paces[job_id] = Pace(found.now_ms, state.counts["done"])
        self._paces = {job_id: pace for job_id, pace in self._paces.items() if job_id in live}
        self._estimates = estimates(live, self._paces, self._estimates, found.now_ms, Power(self._able, found.item_s))

    def _shown_jobs(self, found: Findings) -> dict[str, dict[str, Any]]:
        master, user, made = self._place.master, self._place.settings.submitter, {}
        own = set(master.jobs(over=True)) if master else set()
        for job_id, told in found.jobs.items():
            state = with_time_for_a_collector(told, found.now_ms)
            estimate, unserved = self._estimates.get(job_id, Estimate()), found.unserved.get(job_id, ("", ""))
            mine = job_id in own if master else state.submitter == user
            before, facts = self._jobs.get(job_id), (estimate, mine, unserved)
            if before is not None and before[0] == facts and before[1] is state:
                made[job_id] = before
            else:
                shown = self._rows.make(f"job {job_id}", partial(shown_job, job_id, state, estimate, mine=mine, unserved=unserved))
                made[job_id] = (facts, state, shown)
        self._jobs = made
        return {job_id: shown for job_id, (_, _, shown) in made.items() if shown is not None}


def out_of_date(state: dict[str, Any], since_ms: int) -> dict[str, Any]:
    """A state of which nothing has been heard since: how the workers are is not known."""
    return {**state, "workers": {name: unknown_worker(shown, since_ms) for name, shown in state["workers"].items()}}


def _written(record: HostRecord, name: str) -> dict[str, Any] | None:
    """A worker's configuration as its agent has it written down; None where that is none."""
    workers = record.configuration.get("workers")
    found = workers.get(name) if isinstance(workers, dict) else None
    return found if isinstance(found, dict) else None


def _device_names(record: HostRecord) -> tuple[str, ...]:
    """Those that a host tells; what is none, a host that lies told."""
    return tuple(name for device in record.devices if isinstance(name := getattr(device, "name", None), str))
