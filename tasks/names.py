"""Names of workers: those asked for, by default host, device, and a free number; and what Celery's monitors call them."""
from __future__ import annotations

import time

from distributed_comfy.errors import WorkerNameTaken
from distributed_comfy.settings import slug
from tasks.cluster import Cluster

_LOOK_S = 0.1


def free_worker_name(cluster: Cluster, device: str) -> str:
    """``pc1-cuda0``, or ``pc1-cuda0-1`` and so on where live workers have the names before.

    Two workers that start at the same time may choose the same name; the name is reserved for a moment so that they do not.
    """
    base = default_worker_name(cluster.settings.host_name, device)
    taken = {worker.facts.name for worker in cluster.workers.workers() if worker.state != "lost"}
    number = 0
    while True:
        name = base if number == 0 else f"{base}-{number}"
        if name not in taken and cluster.workers.reserve_name(name):
            return name
        number += 1


def default_worker_name(host: str, device: str) -> str:
    """``pc1-cuda0``; two devices of a worker are ``pc1-cuda0-1``."""
    return f"{host}-{slug(device.replace(':', ''))}"


def take_name(cluster: Cluster, name: str) -> None:
    """Make sure that no live worker has a name that was asked for, before anything is started for it.

    A worker that was killed holds its name until its lease ends, which only a live one makes longer.

    Raises:
        WorkerNameTaken: a live worker has it.
    """
    left_ms, give_up = _lease_ms(cluster, name), time.monotonic() + 2 * cluster.settings.renew_interval_s
    while left_ms > 0 and time.monotonic() < give_up:
        time.sleep(_LOOK_S)
        before_ms, left_ms = left_ms, _lease_ms(cluster, name)
        if left_ms > before_ms:
            raise WorkerNameTaken(name=name, lease_ms=left_ms)
    cluster.workers.reserve_name(name)


def _lease_ms(cluster: Cluster, name: str) -> int:
    return next((worker.lease_ms for worker in cluster.workers.workers() if worker.facts.name == name), 0)


def node_name(worker: str, device: str, host: str) -> str:
    """Celery's name of a worker, by which Flower lists it: ``pc1-cuda0@pc1``, or ``fast.cuda0@pc1`` where its own name lacks the device."""
    short = slug(device.replace(":", ""))
    return f"{worker}@{host}" if short in worker else f"{worker}.{short}@{host}"
