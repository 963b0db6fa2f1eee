"""One process's connection to the cluster: both Redis servers, the table's two sides, the blob store, the Celery app."""
from __future__ import annotations

import functools
from dataclasses import dataclass

import redis
from celery import Celery

from distributed_comfy.access.invites import Invites, invited_names
from distributed_comfy.access.users import ServerUsers
from distributed_comfy.planning.requirements import matches
from distributed_comfy.settings import Settings
from distributed_comfy.state.connection import answer_timeout_s, connect, host_of_url
from distributed_comfy.state.door import shut_door
from distributed_comfy.state.embedded import shared_folder
from distributed_comfy.state.hosts import HostTable
from distributed_comfy.state.jobs import JobTable
from distributed_comfy.state.matching import Matching
from distributed_comfy.state.scripts import Scripts
from distributed_comfy.state.status_board import StatusBoard
from distributed_comfy.state.worker_log import WorkerLogs
from distributed_comfy.state.workers import WorkerTable
from distributed_comfy.transport.blobs import BlobStore
from distributed_comfy.transport.near_blobs import NearBlobStore
from distributed_comfy.transport.redis_blobs import RedisBlobStore
from distributed_comfy.transport.shared_memory import open_shared_memory
from tasks.app import make_app
from tasks.dispatch import send_tickets

_BYTES_IN_FLIGHT_UNLIMITED = 4 * 2**30  # where the blob server has no maxmemory


@dataclass(frozen=True)
class Cluster:
    """Open connections; `close` ends them."""

    settings: Settings
    redis_url: str
    blob_url: str
    client: redis.Redis
    """State Redis, replies decoded."""
    blob_client: redis.Redis
    blobs: BlobStore
    jobs: JobTable
    workers: WorkerTable
    hosts: HostTable
    matching: Matching
    app: Celery
    statuses: StatusBoard
    logs: WorkerLogs
    invites: Invites | None = None
    """None where this process may not change users of the servers."""

    def close(self) -> None:
        """Give the connections back; the cluster object is not used again."""
        self.app.close()
        self.client.close()
        self.blob_client.close()


def open_cluster(settings: Settings, redis_url: str, blob_url: str) -> Cluster:
    """Connect to both servers and check them.

    Args:
        settings: of this process.
        redis_url: state Redis.
        blob_url: blob Redis; may be the same server.
    Raises:
        RedisUnreachable, RedisRefused, RedisTooOld: named by setting.
    """
    timeout_s = answer_timeout_s(settings.lease_ttl_s)
    client = connect(redis_url, "DC_REDIS_URL", decode_responses=True, socket_timeout_s=timeout_s)
    blob_client = connect(blob_url, "DC_BLOB_URL")
    far = RedisBlobStore(blob_client, prefix=settings.key_prefix, chunk_bytes=settings.chunk_bytes, ttl_s=settings.blob_ttl_s)
    blobs = NearBlobStore(far, open_shared_memory() if settings.shared_memory else None)
    app = make_app(settings, redis_url, blob_url)
    scripts = Scripts(client, settings.key_prefix, functools.partial(send_tickets, app))
    matching = Matching(scripts, matches)
    jobs = JobTable(scripts, matching, settings)
    jobs.set_byte_limit(_byte_limit(settings, blobs))
    workers = WorkerTable(scripts, matching, settings)
    invites = _invites(settings, ServerUsers(client, "state", redis_url), ServerUsers(blob_client, "blobs", blob_url))
    hosts = HostTable(scripts, settings, functools.partial(_invited, client, settings.key_prefix, redis_url))
    statuses, logs = StatusBoard(scripts), WorkerLogs(scripts)
    return Cluster(
        settings, redis_url, blob_url, client, blob_client, blobs, jobs, workers, hosts, matching, app, statuses, logs, invites
    )  # fmt: skip


def _invites(settings: Settings, state: ServerUsers, blobs: ServerUsers) -> Invites | None:
    if not state.may_change() or not blobs.may_change():
        return None
    folder = shared_folder(settings.runtime_folder, state.url)
    shut = functools.partial(shut_door, folder) if folder else None
    return Invites(state, None if state.url == blobs.url else blobs, settings.key_prefix, shut=shut)


def _invited(client: redis.Redis, prefix: str, redis_url: str) -> set[str]:
    """Names of the invited hosts, for whoever may know them; nobody of theirs is asked for."""
    return set() if host_of_url(redis_url) else invited_names(client, prefix)


def _byte_limit(settings: Settings, blobs: BlobStore) -> int:
    if settings.bytes_in_flight:
        return settings.bytes_in_flight
    memory = blobs.memory_limit()
    return memory // 2 if memory else _BYTES_IN_FLIGHT_UNLIMITED
