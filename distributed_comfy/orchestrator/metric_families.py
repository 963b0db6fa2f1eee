"""What Prometheus is told, from one reading of the cluster: names, units and labels of all metrics; no word of a user's among them."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from distributed_comfy.errors import ItemError, all_errors
from distributed_comfy.state.figures import Figures
from distributed_comfy.state.records import HostRecord, WorkerPhase, WorkerState
from distributed_comfy.state.status import WorkerStatus
from distributed_comfy.state.tallies import Histogram

P = "distributed_comfy_"
PHASES: tuple[WorkerPhase, ...] = get_args(WorkerPhase)
"""Of the workers that agents keep."""
WORKER_STATES = ("idle", "ticketed", "busy", "down", "drained", "lost")
CAUSES = tuple(sorted(error.code for error in all_errors() if error.retryable or issubclass(error, ItemError)))
"""Shown at nought before they happen: Prometheus sees no increase where a series begins at one."""


@dataclass(frozen=True)
class ServerMemory:
    """Of one Redis server, in bytes."""

    used: int
    limit: int
    """``maxmemory``; 0: none."""


@dataclass(frozen=True)
class Reading:
    """What one look at the cluster gave; None is what could not be had."""

    figures: Figures | None
    workers: tuple[WorkerState, ...]
    memory: Mapping[str, ServerMemory | None]
    """By server: ``state``, ``blobs``."""
    seconds: float
    statuses: Mapping[str, WorkerStatus] = field(default_factory=dict)
    """By worker, of those that tell one."""
    hosts: tuple[HostRecord, ...] = ()
    """Those whose agents live."""


def families(reading: Reading) -> Iterator[Metric]:
    """All metrics of a reading."""
    yield from _server_metrics(reading)
    if reading.figures is not None:
        yield from _item_metrics(reading.figures)
        yield from _byte_metrics(reading.figures)
        yield from _worker_metrics(reading.workers, reading.figures)
        yield from _status_metrics(reading)
        yield from _host_metrics(reading.hosts)


def _server_metrics(reading: Reading) -> Iterator[Metric]:
    up = GaugeMetricFamily(P + "redis_up", "1 where the server answers, by server (state, blobs).", labels=["server"])
    used = GaugeMetricFamily(P + "redis_memory_bytes", "Memory the server uses, in bytes.", labels=["server"])
    limited = "The server's maxmemory in bytes; absent where it has none."
    limit = GaugeMetricFamily(P + "redis_memory_limit_bytes", limited, labels=["server"])
    for server, memory in reading.memory.items():
        up.add_metric([server], float(memory is not None))
        if memory is not None:
            used.add_metric([server], memory.used)
            if memory.limit:
                limit.add_metric([server], memory.limit)
    yield from (up, used, limit)
    yield GaugeMetricFamily(P + "read_seconds", "How long the last reading of the table took, in seconds.", value=reading.seconds)


def _item_metrics(figures: Figures) -> Iterator[Metric]:
    kinds = (
        "kind: generate (a seed), whole (a prompt without seeds), prepare (the image to upscale), tile (a part of it), "
        "last (what follows)"
    )
    items = GaugeMetricFamily(P + "items", f"Items of jobs that have not ended, by state and {kinds}.", labels=["state", "kind"])
    for (kind, state), count in figures.items.items():
        items.add_metric([state, kind], count)
    yield items
    yield _gauges("jobs", "Jobs that have not ended, by state.", "state", figures.jobs)
    yield _counters("jobs_ended", "Jobs that ended, by state; one that is retried may end again.", "state", figures.ended_jobs)
    waited = "Seconds from the moment an item could run (submitted, given back, its inputs ready) to its claim, by kind."
    yield _histogram("queue_wait_seconds", waited, figures.waits)
    yield _histogram("item_seconds", "Engine seconds of items that are done, by kind.", figures.runs)
    retried = "Attempts without a result after which the item could be claimed again, by cause: an error code, or released."
    yield _counters("item_retries", retried, "cause", dict.fromkeys((*CAUSES, "released"), 0) | figures.retries)
    failed = "Items that failed for good, by cause: an error code."
    yield _counters("item_failures", failed, "cause", dict.fromkeys(CAUSES, 0) | figures.failures)


def _byte_metrics(figures: Figures) -> Iterator[Metric]:
    told = "Bytes of results that wait to be fetched or that running items may add."
    yield GaugeMetricFamily(P + "in_flight_bytes", told, value=figures.in_flight_bytes)
    capped = "Cap on bytes in flight, by scope: all_jobs together, job (the lowest that a job has)."
    limit = GaugeMetricFamily(P + "in_flight_limit_bytes", capped, labels=["scope"])
    limit.add_metric(["all_jobs"], figures.in_flight_limit_bytes)
    if figures.job_limit_bytes is not None:
        limit.add_metric(["job"], figures.job_limit_bytes)
    yield limit
    yield GaugeMetricFamily(P + "unfetched_bytes", "Bytes of results that nobody has fetched yet.", value=figures.unfetched_bytes)
    held = "Pending items that a cap on bytes holds back now, by cap; first_result: a job's size is unknown until its first result."
    yield _gauges("items_held_back", held, "cap", figures.held_back)


def _worker_metrics(workers: Iterable[WorkerState], figures: Figures) -> Iterator[Metric]:
    who = ["worker", "host", "device"]
    state = GaugeMetricFamily(P + "worker_state", "1 for the state that a worker is in, 0 for the others.", labels=[*who, "state"])
    told = "Always 1; engine, versions and device class of a worker."
    facts = GaugeMetricFamily(P + "worker_info", told, labels=[*who, "engine", "engine_version", "device_class", "package_version"])
    spent = CounterMetricFamily(P + "worker_engine_seconds", "Engine seconds of the items a worker has done since it joined.", labels=who)
    has = "Memory of a worker's first device, in bytes; absent on the CPU."
    total = GaugeMetricFamily(P + "worker_memory_total_bytes", has, labels=who)
    free = GaugeMetricFamily(P + "worker_memory_free_bytes", "Free memory of a worker's first device, in bytes.", labels=who)
    for worker in workers:
        its = worker.facts
        me = [its.name, its.host, its.device]
        for name in WORKER_STATES:
            state.add_metric([*me, name], float(name == worker.state))
        facts.add_metric([*me, its.engine, its.engine_version, its.device_class, its.package_version], 1)
        spent.add_metric(me, worker.engine_s)
        if worker.memory is not None:
            total.add_metric(me, worker.memory.total_bytes)
            free.add_metric(me, worker.memory.free_bytes)
    yield from (state, facts, spent, total, free)
    yield CounterMetricFamily(P + "workers_lost", "Workers that went without leaving: killed, or cut off.", value=figures.lost_workers)


def _status_metrics(reading: Reading) -> Iterator[Metric]:
    who = ["worker", "host", "device"]
    used = "How busy a worker's first GPU is, from 0 to 1, whoever uses it; on the CPU its whole host. Absent where nobody tells it."
    busy = GaugeMetricFamily(P + "worker_utilisation_ratio", used, labels=who)
    done = CounterMetricFamily(P + "worker_items", "Items a worker has done since it started.", labels=who)
    failed = CounterMetricFamily(P + "worker_failed_attempts", "Attempts that failed on a worker since it started.", labels=who)
    for worker in reading.workers:
        its, status = worker.facts, reading.statuses.get(worker.facts.name)
        if status is None:
            continue
        me = [its.name, its.host, its.device]
        done.add_metric(me, status.items_done)
        failed.add_metric(me, status.items_failed)
        if status.use.utilisation_percent is not None:
            busy.add_metric(me, status.use.utilisation_percent / 100)
    yield from (busy, done, failed)


def _host_metrics(hosts: Sequence[HostRecord]) -> Iterator[Metric]:
    yield GaugeMetricFamily(P + "hosts", "Hosts whose agents live.", value=len(hosts))
    kept = "Workers that the agent of a host keeps, by phase; a worker that others start is in no host's count."
    phases = GaugeMetricFamily(P + "host_workers", kept, labels=["host", "phase"])
    told = "How often an agent has started a worker again after it ended by itself, since the agent runs."
    restarts = CounterMetricFamily(P + "worker_restarts", told, labels=["worker", "host"])
    facts = ["host", "system", "package_version"]
    about = GaugeMetricFamily(P + "host_info", "Always 1; system and version of an agent's host.", labels=facts)
    cpus = GaugeMetricFamily(P + "host_cpus", "Logical CPUs that the agent of a host may use.", labels=["host"])
    for host in hosts:
        about.add_metric([host.host, host.system, host.package_version], 1)
        cpus.add_metric([host.host], host.cpus)
        for phase in PHASES:
            phases.add_metric([host.host, phase], sum(worker.phase == phase for worker in host.workers))
        for worker in host.workers:
            restarts.add_metric([worker.name, host.host], worker.restarts)
    yield from (about, cpus, phases, restarts)
    yield from _resource_metrics(hosts)


def _resource_metrics(hosts: Sequence[HostRecord]) -> Iterator[Metric]:
    described = {
        "memory_total": "Memory of an agent's host, in bytes.",
        "memory_available": "Memory of an agent's host that programs can have before it swaps, in bytes.",
        "disk_total": "Size of the file system that holds an agent's cache folder, in bytes.",
        "disk_free": "What is free of it for the agent's user, in bytes.",
    }
    for name, text in described.items():
        family = GaugeMetricFamily(f"{P}host_{name}_bytes", text, labels=["host"])
        for host in hosts:
            if host.resources is not None:
                family.add_metric([host.host], getattr(host.resources, f"{name}_bytes"))
        yield family


def _gauges(name: str, told: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(P + name, told, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counters(name: str, told: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(P + name, told, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], value)
    return family


def _histogram(name: str, told: str, by_kind: Mapping[str, Histogram]) -> Metric:
    family = HistogramMetricFamily(P + name, told, labels=["kind"])
    for kind, histogram in by_kind.items():
        buckets = [("+Inf" if bound == float("inf") else f"{bound:g}", float(count)) for bound, count in histogram.buckets]
        family.add_metric([kind], buckets, histogram.sum_s)
    return family
