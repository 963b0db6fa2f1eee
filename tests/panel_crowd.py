"""A table with many workers and jobs, and a program that lets the workers tell their status: what the panel is measured with.

    python -m tests.panel_crowd STATE_URL SECONDS      every worker tells a status each two seconds, each another one
"""
from __future__ import annotations

import secrets
import sys
import time
from dataclasses import replace
from typing import Any

from distributed_comfy.messages import Capability
from distributed_comfy.settings import Settings, read_settings
from distributed_comfy.state.records import WorkerFacts
from distributed_comfy.state.status import DeviceUse, HostUse, LoadedModel, WorkerStatus
from tasks.cluster import Cluster, open_cluster
from tests.state_cluster import Job, submission

WORKERS, JOBS = 100, 1000
LEASE_S = 900.0
_TOLD_S = 2.0
_CAPABILITY = Capability("builtin", "1", ("Sampler",))


def crowd_settings() -> Settings:
    """Leases outlast the measurement."""
    return read_settings(key_prefix="crowd:", lease_ttl_s=LEASE_S, owner_ttl_s=LEASE_S, host="pc0", user="ann")


def fill(state_url: str, *, waiting: int) -> Cluster:
    """Enter all jobs, of which so many wait and the others are cancelled, and all workers."""
    cluster = open_cluster(crowd_settings(), state_url, state_url)
    for number in range(JOBS):
        job_id = f"{number:012x}"
        cluster.jobs.submit(submission(job_id, Job(items=20, submitter=("ann", "bob")[number % 2], needs=("Nobody",))), "owner")
        if number < JOBS - waiting:
            cluster.jobs.cancel(job_id, "not wanted")
    for name in names():
        facts = WorkerFacts(name, name.rpartition("-")[0], "cuda:0", "builtin", "1", pid=1, package_version="0.1.0", started_by="hand")
        cluster.workers.register(facts, incarnation(name), "cap", _CAPABILITY)
        tell(cluster, name, 0)
    return cluster


def names() -> list[str]:
    """Of the workers."""
    return [f"pc{number // 4}-cuda{number % 4}" for number in range(WORKERS)]


def incarnation(name: str) -> str:
    """Of a worker's life."""
    return f"life of {name}"


def tell(cluster: Cluster, name: str, number: int) -> None:
    """One status; equal numbers give equal ones."""
    gib = 2**30
    status = WorkerStatus(
        name, name.rpartition("-")[0], "cuda:0", "idle", 1, items_done=number, pid=1,
        use=DeviceUse("NVIDIA GeForce RTX 4090", number % 100, number % 24 * gib, 24 * gib), host_use=HostUse(gib, gib, 20 * gib, 64 * gib),
        models=tuple(LoadedModel(model, gib, gib) for model in ("SDXL", "AutoencoderKL", "CLIPTextModel")), engine="builtin",
    )  # fmt: skip
    cluster.statuses.publish(replace(status, packs=40), incarnation(name), ttl_ms=int(LEASE_S * 1000), log_ttl_ms=int(LEASE_S * 1000))


def main(state_url: str, seconds: float) -> None:
    """Let all workers tell statuses for so long, evenly spread."""
    cluster = open_cluster(crowd_settings(), state_url, state_url)
    end, number = time.monotonic() + seconds, secrets.randbelow(10**6)
    due = time.monotonic()
    while time.monotonic() < end:
        for name in names():
            tell(cluster, name, number)
            due += _TOLD_S / WORKERS
            time.sleep(max(0.0, due - time.monotonic()))
        number += 1


def commands_of(client: Any) -> int:
    """Commands that a server has been sent, those of scripts left out."""
    return int(client.info("stats")["total_commands_processed"])


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
