"""Names of workers: by default host, device, and a free number; and what Celery's monitors call them."""
from __future__ import annotations

from distributed_comfy.settings import slug
from tasks.cluster import Cluster


def free_worker_name(cluster: Cluster, device: str) -> str:
    """``pc1-cuda0``, or ``pc1-cuda0-1`` and so on where live workers have the names before.

    Two workers that start at the same time may choose the same name; the name is reserved for a moment so that they do not.
    """
    base = f"{cluster.settings.host_name}-{slug(device.replace(':', ''))}"
    taken = {worker.facts.name for worker in cluster.workers.workers() if worker.state != "lost"}
    number = 0
    while True:
        name = base if number == 0 else f"{base}-{number}"
        if name not in taken and cluster.workers.reserve_name(name):
            return name
        number += 1


def node_name(worker: str, device: str, host: str) -> str:
    """Celery's name of a worker, by which Flower lists it: ``pc1-cuda0@pc1``, or ``fast.cuda0@pc1`` where its own name lacks the device."""
    short = slug(device.replace(":", ""))
    return f"{worker}@{host}" if short in worker else f"{worker}.{short}@{host}"
