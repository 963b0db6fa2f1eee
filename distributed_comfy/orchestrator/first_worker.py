"""What to do where no worker runs: agents may have some that are stopped, or have failed, and then those are to be started."""
from __future__ import annotations

import logging
from collections.abc import Sequence

import redis

from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.state.records import HostRecord, HostWorker
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

_NAMED = 3
_STARTS = ("starting", "running", "draining", "backing-off")
"""Phases of a worker that is on its way: the table does not know it yet."""


def how_to_start(cluster: Cluster) -> str:
    """A clause for the user, as of now: ``start one with `distributed-comfy workers start pc1-cpu` (stopped)``."""
    try:
        return remedy(cluster.hosts.living(), cluster.settings.host_name)
    except (DistributedComfyError, redis.RedisError) as error:
        log.debug("agents cannot be asked for: %s", error)
        return remedy((), cluster.settings.host_name)


def remedy(hosts: Sequence[HostRecord], here: str) -> str:
    """The same for these agents.

    Args:
        hosts: records of all living agents.
        here: name of this host; its own agent comes before others.
    """
    agents = sorted(hosts, key=lambda record: (record.host != here, record.host))
    workers = [worker for record in agents for worker in record.workers]
    if coming := [worker for worker in workers if worker.phase in _STARTS]:
        return f"wait for {_each(coming)}: `distributed-comfy workers list` shows when it is there"
    for phases, verb in ((("stopped", "stopping"), "start"), (("failed",), "start"), (("disabled",), "enable")):
        if found := [worker for worker in workers if worker.phase in phases]:
            return f"start one with `distributed-comfy workers {verb} {found[0].name}` ({_states(found)})"
    if not agents:
        return "start one with `distributed-comfy worker`, or one on each GPU of this host with `distributed-comfy up`"
    return f"give host {agents[0].host} one with {_addition(agents[0], here)}"


def _addition(record: HostRecord, here: str) -> str:
    where = "" if record.host == here else f" --host {record.host}"
    names = list(dict.fromkeys([*(device.name for device in record.devices), "cpu"]))
    if len(names) == 1:
        return f"`distributed-comfy workers add{where} --device cpu`"
    return f"`distributed-comfy workers add{where} --device DEVICE` ({', '.join(names)})"


def _states(workers: Sequence[HostWorker]) -> str:
    """``it is stopped``; what failed, with its reason; further ones by name."""
    first = workers[0]
    how = f"it has failed: {first.reason}" if first.phase == "failed" else f"it is {first.phase}"
    return f"{how}; there is also {_each(workers[1:])}" if len(workers) > 1 else how


def _each(workers: Sequence[HostWorker]) -> str:
    more = [f"{len(workers) - _NAMED} more"] if len(workers) > _NAMED else []
    return ", ".join([*(f"{worker.name} ({_now(worker)})" for worker in workers[:_NAMED]), *more])


def _now(worker: HostWorker) -> str:
    if worker.phase != "backing-off":
        return "starting" if worker.phase in _STARTS else worker.phase
    return f"started again in {worker.next_start_s:.0f} s: {worker.reason}"
