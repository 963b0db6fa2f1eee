"""``distributed-comfy hosts``."""
from __future__ import annotations

import json
from typing import Any

import click

from distributed_comfy.agent.steering import forget_host, give
from distributed_comfy.cli.cluster import ago, connected
from distributed_comfy.cli.commands import json_option
from distributed_comfy.cli.output import Output
from distributed_comfy.errors import NoAgent
from distributed_comfy.messages import to_plain
from distributed_comfy.state.records import HostRecord, HostWorker
from tasks.cluster import Cluster
from tasks.host_orders import order_for

_NOBODY = "no agent is running; start one on each host with `distributed-comfy up` (a ComfyUI with the node pack is one too)"
_GIB = 2**30


@click.group()
def hosts() -> None:
    """Hosts with an agent: their devices, and the workers that it keeps."""


@hosts.command("list")
@json_option
@click.pass_obj
def list_hosts(output: Output, /) -> None:
    """All hosts whose agents live, and those that are not heard of any more."""
    with connected(output) as cluster:
        found, gone = cluster.hosts.hosts(), cluster.hosts.known()[1]
        now_ms = cluster.hosts.now_ms()
    output.result([to_plain(record) for record in found])
    if found:
        output.table(("HOST", "DEVICES", "WORKERS", "USER", "SYSTEM", "VERSION"), [_row(record) for record in found])
    elif not gone:
        output.say(_NOBODY)
    for host in gone:
        name = host.record.host
        output.say(
            f"{name} has not been heard of for {ago(now_ms, host.seen_ms)}; start `distributed-comfy up` there, or look at its network; "
            f"`distributed-comfy hosts forget {name}` if it does not come back"
        )


@hosts.command()
@click.argument("host", required=False)
@json_option
@click.pass_obj
def show(output: Output, /, host: str | None) -> None:
    """A host (default: this one): its devices, and each worker's state, place and logs."""
    with connected(output) as cluster:
        record = _record(cluster, host or cluster.settings.host_name)
    output.result(to_plain(record))
    output.say(f"host {record.host}: {record.system}, {record.cpus} CPUs")
    output.say(f"agent: version {record.package_version}, pid {record.pid}, user {record.user}")
    output.say(f"other hosts {'may' if record.remote_configuration else 'may not'} change its configuration")
    devices = [(device.name, device.model, _memory(device.memory_bytes), device.bus_id) for device in record.devices]
    output.table(("DEVICE", "MODEL", "MEMORY", "BUS"), devices)
    columns = ("WORKER", "STATE", "DEVICE", "CORES", "THREADS", "PID", "RESTARTS", "LOGS")
    output.table(columns, [_worker_row(worker) for worker in record.workers])
    for worker in record.workers:
        if worker.reason:
            output.say(f"{worker.name}: {worker.reason}")


@hosts.command()
@click.argument("host")
@json_option
@click.pass_obj
def forget(output: Output, /, host: str) -> None:
    """Show a host no longer that is not heard of any more; by itself that happens after a day."""
    with connected(output) as cluster:
        text = forget_host(cluster, host)
    output.result({"host": host, "text": text})
    output.say(text)


@hosts.command()
@click.argument("host", required=False)
@json_option
@click.pass_obj
def config(output: Output, /, host: str | None) -> None:
    """What a host's agent (default: this one's) has written down, as JSON; the values of environment variables are not shown."""
    with connected(output, orders=True) as cluster:
        facts = give(cluster, host or cluster.settings.host_name, order_for("config")).facts
    output.result(facts)
    output.say(json.dumps(facts["configuration"], indent=2, ensure_ascii=False))


def _record(cluster: Cluster, host: str) -> HostRecord:
    found = cluster.hosts.host(host)
    if found is None:
        raise NoAgent(host=host, alive=", ".join(record.host for record in cluster.hosts.hosts()) or "none")
    return found


def _row(record: HostRecord) -> tuple[str, ...]:
    devices = ", ".join(f"{device.name} {device.model}".strip() for device in record.devices)
    phases = [worker.phase for worker in record.workers]
    workers = ", ".join(f"{phases.count(phase)} {phase}" for phase in dict.fromkeys(phases))
    return (record.host, devices, workers, record.user, record.system, record.package_version)


def _worker_row(worker: HostWorker) -> tuple[str, ...]:
    waits = f" ({worker.next_start_s:g} s)" if worker.phase == "backing-off" else ""
    state = f"{worker.phase}{waits}{', outdated' if worker.outdated else ''}"
    numbers: tuple[Any, ...] = (worker.threads or "", worker.pid or "", worker.restarts)
    return (worker.name, state, worker.device, worker.cores, *map(str, numbers), worker.log_folder)


def _memory(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f} GiB" if size_bytes else ""
