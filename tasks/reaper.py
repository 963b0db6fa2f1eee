"""One tick of the reaper, and the broker's leftovers of workers that are gone for good."""
from __future__ import annotations

import logging

import redis
from kombu.transport.redis import Channel

from distributed_comfy.errors import ConnectionLost
from distributed_comfy.settings import Settings
from distributed_comfy.state.connection import is_invited
from distributed_comfy.state.keys import Keys
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

AGENT = "agent"
"""In the place of a worker's name in Celery's name of a host's agent."""


def reap_once(cluster: Cluster, process_id: str) -> None:
    """Let the table act on expired leases, back-offs, owners and lost tickets; then clear the queues of workers that are gone.

    Who may do so removes the users of invitations that expired unused, too.

    Any process may call this at any time: the table elects one caller per tick.
    """
    found = cluster.workers.reap(process_id)
    _sweep_invites(cluster)
    for worker in found.gone:
        log.warning("worker %s is gone; its items went back", worker)
        clear_broker(cluster, worker)
    if found.gone and not is_invited(cluster.client):
        clear_bindings(cluster)
    for job_id in found.abandoned:
        log.info("job %s ended without a collector; its blobs are dropped", job_id)
        try:
            cluster.blobs.drop_job(job_id)
        except ConnectionLost as error:
            log.warning("job %s: its blobs could not be dropped (%s); they expire by themselves", job_id, error)


def _sweep_invites(cluster: Cluster) -> None:
    """A server that is away is no reason to end whoever reaps."""
    if cluster.invites is None:
        return
    try:
        cluster.invites.sweep()
    except redis.RedisError as error:
        log.warning("invitations could not be looked at (%s); the next tick tries again", error)


def queue_key(settings: Settings, queue: str) -> str:
    """The Redis list in which kombu keeps what lies in a queue."""
    return f"{settings.key_prefix}celery:{queue}"


def clear_broker(cluster: Cluster, worker: str) -> None:
    """Remove a gone worker's queue; a ticket holds nothing that could be lost."""
    cluster.client.delete(queue_key(cluster.settings, f"gpu.{worker}"))


def clear_bindings(cluster: Cluster) -> None:
    """Remove what binds workers that are not on the table to the channel of remote control.

    Kombu forgets only the whole list, and that only when nobody uses it for an hour, so each worker that was killed would leave its name.
    One that is just starting is bound anew by kombu, and hears the channel all the same.  An invited host may only take its own away; so
    the next one that finds a worker gone, and was not invited, removes what it leaves.
    """
    client, name = cluster.client, f"{cluster.settings.key_prefix}celery:{Channel.keyprefix_queue % 'celery.pidbox'}"
    try:
        there = client.smembers(Keys(cluster.settings.key_prefix)("workers"))
        left = [bound for bound in map(str, client.smembers(name)) if _worker_of(bound) not in {AGENT, *there}]
        if left:
            client.srem(name, *left)
    except redis.RedisError as error:  # a user with fewer rights, or a server that is away
        log.debug("what binds workers that are gone was not removed: %s", error)


def _worker_of(bound: str) -> str:
    """The worker of ``pc1-cuda0@pc1`` or ``fast.cuda0@pc1`` (`names.node_name`) in a binding of its queue."""
    queue: str = bound.rpartition(Channel.sep)[2]
    return queue.partition("@")[0].partition(".")[0]
