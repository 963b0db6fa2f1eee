"""What a host needs that has joined somebody's cluster: a way in that is trusted, its user's rights, its invitation, its workers.

The servers themselves are looked at where they stand: `distributed-comfy doctor` on the host that invited this one.
"""
from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any

import redis

from distributed_comfy.access.token import JoinToken
from distributed_comfy.errors import DistributedComfyError, InviteRefused
from distributed_comfy.orchestrator.doctor.findings import Finding, fail, ok, warn
from distributed_comfy.orchestrator.doctor.kept_workers import check_kept, not_running
from distributed_comfy.orchestrator.doctor.redis_settings import CLOCK_LIMIT_S
from distributed_comfy.state.keys import Keys
from distributed_comfy.state.records import WorkerState
from tasks.cluster import Cluster
from tasks.reaper import queue_key, reap_once

_SLOW_MS = 250.0
_TRIES = 3
_LATER = "ask whoever has the cluster"


def check_way(token: JoinToken) -> list[Finding]:
    """Where the invitation leads, and whom it trusts there; nobody is asked."""
    found = [ok("joined cluster", f"{token.url}, as host {token.host}; `distributed-comfy up --leave` leaves it")]
    if not token.url.startswith(("rediss://", "wss://")):
        remedy = "where others are in that network, ask for an invitation by rediss:// or wss://"
        return [*found, warn("certificate", "none: prompts, images and the secret cross the network in the clear", remedy)]
    if token.ca:
        return [*found, ok("certificate", f"pinned: only servers of the authority {token.fingerprint} are trusted")]
    return [*found, ok("certificate", "must be signed by an authority that this system trusts, for that name")]


def not_reached(error: DistributedComfyError) -> Finding:
    """The cluster cannot be asked."""
    if isinstance(error, InviteRefused):
        return fail("way in", str(error), "do as it says")
    return fail("way in", str(error), "see that the host which invited this one is up, has the same address, and lets its port through")


def check_member(cluster: Cluster, token: JoinToken) -> list[Finding]:
    """All that is asked of the cluster; it is open, and stays so.

    Args:
        cluster: of this host's user.
        token: its invitation.
    """
    try:
        return [*_answers(cluster), _rights(cluster, token), _invitation(cluster, token), *_workers(cluster, token)]
    except (DistributedComfyError, redis.RedisError) as error:
        return [fail("way in", f"the cluster stopped answering: {error}", "run this again")]


def _answers(cluster: Cluster) -> Iterator[Finding]:
    for what, client in (("state Redis", cluster.client), ("blob Redis", cluster.blob_client)):
        took_ms = min(_timed_ms(client) for _ in range(_TRIES))
        found = f"answers in {took_ms:.1f} ms"
        slow = took_ms > _SLOW_MS
        yield warn(f"way in: {what}", found, "see docs/slow-links.md") if slow else ok(f"way in: {what}", found)
    yield _clock(cluster)


def _timed_ms(client: Any) -> float:
    began = time.monotonic()
    client.ping()
    return (time.monotonic() - began) * 1000


def _clock(cluster: Cluster) -> Finding:
    ahead_s = cluster.hosts.now_ms() / 1000 - time.time()
    found = f"{abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} this host"
    if abs(ahead_s) <= CLOCK_LIMIT_S:
        return ok("clock", found)
    return warn("clock", f"{found}: nothing is lost, but times in logs differ", "set both clocks by NTP (`timedatectl set-ntp true`)")


def _rights(cluster: Cluster, token: JoinToken) -> Finding:
    """Does what its workers do all day: a script, a look at a queue, a blob there and back."""
    job_id, content = secrets.token_hex(6), secrets.token_bytes(64)
    try:
        reap_once(cluster, secrets.token_hex(8))
        cluster.client.llen(queue_key(cluster.settings, f"gpu.{token.host}-doctor"))
        blob = cluster.blobs.put(f"{job_id}:0:doctor:value0", [content], job_id=job_id)
        try:
            came_back = bytes(cluster.blobs.get(blob)) == content
        finally:
            cluster.blobs.drop_job(job_id)
    except (DistributedComfyError, redis.RedisError) as error:
        return fail("rights of its user", str(error), f"{_LATER} to revoke host {token.host} and to invite it again")
    if not came_back:
        return fail("rights of its user", "a blob came back with another content", f"{_LATER} to run `distributed-comfy doctor` there")
    return ok("rights of its user", f"{token.user} may run the scripts, take items and move blobs")


def _invitation(cluster: Cluster, token: JoinToken) -> Finding:
    joined: Any = cluster.client.get(Keys(token.prefix)("joined", token.host))
    now_ms = cluster.hosts.now_ms()
    if joined:
        days = (now_ms - int(str(joined).partition("|")[0])) / 86_400_000
        return ok("invitation", f"joined {days:.1f} days ago; it has no end but `distributed-comfy invite revoke {token.host}` there")
    left_min = (token.expires_ms - now_ms) / 60_000
    found = f"the cluster does not know that this host has come, and lets it in for {max(0.0, left_min):.0f} min more"
    return warn("invitation", found, "run `distributed-comfy up` here")


def _workers(cluster: Cluster, token: JoinToken) -> Iterator[Finding]:
    agent = cluster.hosts.host(token.host)
    if agent is None:
        yield warn("agent", "none runs here", "run `distributed-comfy up`, unless workers of this host are started one by one")
    else:
        yield ok("agent", f"runs with pid {agent.pid}: {', '.join(f'{each.name} {each.phase}' for each in agent.workers) or 'no worker'}")
    records = [agent] if agent else []
    resting = not_running(records)
    mine = [
        worker
        for worker in cluster.workers.workers()
        if worker.facts.name.startswith(f"{token.host}-") and worker.facts.name not in resting
    ]
    yield from check_kept(records, [worker.facts.name for worker in mine])
    if not mine:
        yield warn("workers", "none of this host is on the table", "run `distributed-comfy up`; its terminal says what keeps a worker back")
    for worker in mine:
        yield _judged(worker)


def _judged(worker: WorkerState) -> Finding:
    check = f"worker {worker.facts.name}"
    if worker.state == "lost":
        return warn(check, "gives no sign of life any more", "look whether it still runs here, and into its worker.log")
    if worker.state == "down":
        return warn(check, "its engine is not running now", "wait a moment; if it stays so, look into its engine.log")
    if worker.state == "drained":
        return warn(check, "drained: it gets no items", f"on the first host: `distributed-comfy workers resume {worker.facts.name}`")
    what = f"{worker.facts.engine} {worker.facts.engine_version}".strip()
    work = f"works on {', '.join(worker.claims)}" if worker.claims else worker.state
    return ok(check, f"{what} on {worker.facts.device}: {work}")
