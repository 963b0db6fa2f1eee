"""Metrics of a reading as Prometheus gets them: names and units by its conventions, every series there, nothing of a user's."""
from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from distributed_comfy.orchestrator.metric_families import PHASES, WORKER_STATES, Reading, ServerMemory, families
from distributed_comfy.orchestrator.metrics import ClusterCollector
from distributed_comfy.state.figures import ITEM_STATES, KINDS, Figures
from distributed_comfy.state.records import DeviceMemory, HostRecord, HostResources, HostWorker, WorkerFacts, WorkerState
from distributed_comfy.state.status import DeviceUse, WorkerStatus
from distributed_comfy.state.tallies import histogram

TALLIES = {"wait|generate|10": 3, "wait|generate|500": 1, "wait|generate|inf": 1, "wait|generate|sum": 4_000_500}
FIGURES = Figures(
    items={(kind, state): 2 for kind in KINDS for state in ITEM_STATES},
    jobs={"running": 1},
    held_back={"job": 4},
    in_flight_bytes=100,
    in_flight_limit_bytes=1000,
    job_limit_bytes=500,
    unfetched_bytes=60,
    waits={kind: histogram(TALLIES, "wait", kind) for kind in KINDS},
    runs={kind: histogram(TALLIES, "run", kind) for kind in KINDS},
    retries={"worker_lost": 2},
    failures={"node_failed": 1},
    ended_jobs={"done": 7},
    lost_workers=3,
)
GPU = WorkerState(WorkerFacts("pc1-cuda0", "pc1", "cuda:0", "comfyui"), "busy", ("a-1",), memory=DeviceMemory(3, 8), engine_s=12.5)
CPU = WorkerState(WorkerFacts("pc1-cpu", "pc1", "cpu", "builtin"), "idle")
HOST = HostRecord(
    "pc1", "me", 7, "i", "0.1.0", "Linux", cpus=16, resources=HostResources(64, 16, 1000, 250),
    workers=(
        HostWorker("pc1-cuda0", "running", "cuda:0", restarts=2), HostWorker("pc1-cuda1", "running", "cuda:1"),
        HostWorker("pc1-cuda2", "failed", "cuda:2", reason="it is not on this host"),
    ),
)  # fmt: skip
SILENT_HOST = HostRecord("pc2", "me", 8, "j")
MEMORY = {"state": ServerMemory(10, 0), "blobs": ServerMemory(20, 100)}
READING = Reading(FIGURES, (GPU, CPU), MEMORY, 0.01, hosts=(HOST, SILENT_HOST))


def scraped(reading: Reading) -> dict[str, Metric]:
    """Name -> metric, after the way over the wire."""
    registry = CollectorRegistry()
    registry.register(ClusterCollector(lambda: reading))
    return {metric.name: metric for metric in text_string_to_metric_families(generate_latest(registry).decode())}


def values(metric: Metric, label: str = "") -> dict[str, float]:
    return {sample.labels.get(label, ""): sample.value for sample in metric.samples if not sample.name.endswith("_created")}


def samples() -> Iterator[tuple[str, dict[str, str]]]:
    for metric in families(READING):
        for sample in metric.samples:
            yield sample.name, sample.labels


def test_names_follow_the_conventions() -> None:
    for metric in families(READING):
        assert re.fullmatch(r"distributed_comfy_[a-z_]+", metric.name)
        assert metric.documentation.endswith("."), metric.name
        for unit in ("bytes", "seconds"):
            assert (unit in metric.documentation.lower()) == (unit in metric.name) or metric.name.endswith("_held_back"), metric.name
        assert "milli" not in metric.documentation and not metric.name.endswith("_total"), "the client adds _total to counters"


def test_every_state_and_kind_is_there() -> None:
    found = scraped(READING)
    series = {(sample.labels["state"], sample.labels["kind"]) for sample in found["distributed_comfy_items"].samples}
    assert series == {(state, kind) for state in ITEM_STATES for kind in KINDS}
    states = [sample for sample in found["distributed_comfy_worker_state"].samples if sample.labels["worker"] == "pc1-cuda0"]
    assert {sample.labels["state"]: sample.value for sample in states} == {state: float(state == "busy") for state in WORKER_STATES}
    assert all(sample.labels["host"] == "pc1" and sample.labels["device"] == "cuda:0" for sample in states)


def test_a_histogram_is_cumulative_and_has_its_sum() -> None:
    waited = scraped(READING)["distributed_comfy_queue_wait_seconds"]
    of_seeds = [sample for sample in waited.samples if sample.labels["kind"] == "generate"]
    buckets = {sample.labels["le"]: sample.value for sample in of_seeds if sample.name.endswith("_bucket")}
    assert (buckets["0.01"], buckets["0.25"], buckets["0.5"], buckets["3600"], buckets["+Inf"]) == (3, 3, 4, 4, 5)
    assert {sample.name[-6:]: sample.value for sample in of_seeds if "le" not in sample.labels} == {"_count": 5, "ds_sum": 4000.5}


def test_memory_is_told_where_it_is_known() -> None:
    found = scraped(READING)
    assert values(found["distributed_comfy_worker_memory_free_bytes"], "worker") == {"pc1-cuda0": 3}
    assert values(found["distributed_comfy_worker_memory_total_bytes"], "worker") == {"pc1-cuda0": 8}
    assert values(found["distributed_comfy_redis_memory_bytes"], "server") == {"state": 10, "blobs": 20}
    assert values(found["distributed_comfy_redis_memory_limit_bytes"], "server") == {"blobs": 100}


def test_what_workers_tell_is_told_of_those_that_do() -> None:
    told = WorkerStatus("g", "pc1", "cuda:0", "busy", 0, items_done=5, items_failed=1, use=DeviceUse("GPU", 98, 1, 2))
    found = scraped(replace(READING, statuses={GPU.facts.name: told}))
    assert values(found["distributed_comfy_worker_utilisation_ratio"], "worker") == {GPU.facts.name: 0.98}
    assert values(found["distributed_comfy_worker_items"], "worker") == {GPU.facts.name: 5.0}
    assert values(found["distributed_comfy_worker_failed_attempts"], "worker") == {GPU.facts.name: 1.0}


def test_hosts_tell_how_their_workers_are_and_what_is_left_of_memory_and_disk() -> None:
    found = scraped(READING)
    assert values(found["distributed_comfy_hosts"]) == {"": 2}
    phases = {(sample.labels["host"], sample.labels["phase"]): sample.value for sample in found["distributed_comfy_host_workers"].samples}
    assert {key for key, count in phases.items() if count} == {("pc1", "running"), ("pc1", "failed")} and phases["pc1", "running"] == 2
    assert set(phases) == {(host, phase) for host in ("pc1", "pc2") for phase in PHASES}, "nought is told, so that a query sees it"
    assert values(found["distributed_comfy_worker_restarts"], "worker") == {"pc1-cuda0": 2, "pc1-cuda1": 0, "pc1-cuda2": 0}
    expected = {"memory_total": 64, "memory_available": 16, "disk_total": 1000, "disk_free": 250}
    for name, size_bytes in expected.items():  # and no noughts for who tells nothing
        assert values(found[f"distributed_comfy_host_{name}_bytes"], "host") == {"pc1": size_bytes}


def test_a_cluster_without_agents_has_no_hosts() -> None:
    found = scraped(replace(READING, hosts=()))
    assert values(found["distributed_comfy_hosts"]) == {"": 0} and not found["distributed_comfy_host_workers"].samples


def test_a_server_that_is_down_is_said_to_be_and_nothing_is_made_up() -> None:
    found = scraped(Reading(None, (), {"state": None, "blobs": ServerMemory(20, 0)}, 0.01))
    assert values(found["distributed_comfy_redis_up"], "server") == {"state": 0, "blobs": 1}
    assert "distributed_comfy_items" not in found and "distributed_comfy_worker_state" not in found


def test_labels_are_few_and_none_is_a_job_or_a_text_of_a_user() -> None:
    allowed = {
        "state", "kind", "cause", "cap", "scope", "server", "le", "worker", "host", "device", "engine", "engine_version", "device_class",
        "package_version", "phase", "system",
    }  # fmt: skip
    assert {label for _, labels in samples() for label in labels} <= allowed


def test_scrapes_within_a_second_share_one_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    now = [100.0]
    monkeypatch.setattr("distributed_comfy.orchestrator.metrics.time.monotonic", lambda: now[0])
    collector = ClusterCollector(lambda: (read.append(1), READING)[1])
    for later_s in (0.0, 0.5, 0.4, 0.2, 0.9):
        now[0] += later_s
        list(collector.collect())
    assert len(read) == 2
