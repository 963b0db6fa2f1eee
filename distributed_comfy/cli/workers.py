"""``distributed-comfy workers``."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from distributed_comfy.cli.cluster import connected
from distributed_comfy.cli.commands import json_option
from distributed_comfy.cli.output import Output
from distributed_comfy.cli.worker_orders import ORDERS
from distributed_comfy.errors import WorkerUnknown
from distributed_comfy.state.records import WorkerState
from distributed_comfy.state.workers import WorkerTable


@click.group()
def workers() -> None:
    """Workers of the cluster: what they run, what they do, whether they may have more."""


for order in ORDERS:
    workers.add_command(order)


@workers.command("list")
@json_option
@click.pass_obj
def list_workers(output: Output, /) -> None:
    """All registered workers.

    \b
    State: idle; ticketed (called, about to claim); busy; drained (gets nothing more); down (its engine restarts, or it ends);
    lost (gave no sign of life, is about to be taken off the list).
    """
    with connected(output) as cluster:
        found = cluster.workers.workers()
        starting = [name for name in cluster.workers.starting() if name not in {worker.facts.name for worker in found}]
    output.result([_as_json(worker) for worker in found])
    if starting:
        output.say(f"starting: {', '.join(starting)}")
    if not found:
        if not starting:
            output.say("no worker is running; start one with `distributed-comfy worker`")
        return
    rows = [_row(worker) for worker in found]
    output.table(("WORKER", "STATE", "ITEMS", "ENGINE", "DEVICE", "DEVICE CLASS", "TAGS"), rows)


@workers.command(short_help="Let a worker finish, and give it nothing more.")
@click.argument("name")
@json_option
@click.pass_obj
def drain(output: Output, /, name: str) -> None:
    """Let a worker finish what it has and give it nothing more, until it is undrained."""
    _order(output, name, drained=True)


@workers.command()
@click.argument("name")
@json_option
@click.pass_obj
def undrain(output: Output, /, name: str) -> None:
    """Let a drained worker have items again."""
    _order(output, name, drained=False)


@workers.command(short_help="Let workers look again at their models.")
@click.argument("name", required=False)
@json_option
@click.pass_obj
def look(output: Output, /, name: str | None) -> None:
    """Let a worker, or all of them, look again at their models now: for a model that was just put there, and jobs that wait for it.

    Each does so by itself every DC_DESCRIBE_INTERVAL_S (60 s). New node packs need a restart of the worker.
    """
    _tell(output, name, WorkerTable.look, "looks again", "it looks again by itself")


@workers.command(short_help="Let workers give device memory back.")
@click.argument("name", required=False)
@json_option
@click.pass_obj
def free(output: Output, /, name: str | None) -> None:
    """Let a worker, or all of them, unload their models and give device memory back, as soon as nothing runs there.

    For another program that needs the GPU for a while. The next item loads its models again; `drain` the worker first to keep it from that.
    """
    _tell(output, name, WorkerTable.free, "frees its device as soon as nothing runs there", "try again")


workers.add_command(undrain, "resume")
workers.add_command(free, "clear-memory")


def _tell(output: Output, name: str | None, order: Callable[[WorkerTable, str], bool], heard: str, unheard: str) -> None:
    """Give an order to one worker or to all, and say who heard it."""
    with connected(output) as cluster:
        names = [worker.facts.name for worker in cluster.workers.workers() if worker.state != "lost"]
        if name is not None and name not in names:
            raise WorkerUnknown(name=name)
        answers = {each: order(cluster.workers, each) for each in ([name] if name else names)}
    output.result([{"worker": each, "heard": answer} for each, answer in answers.items()])
    for each, answer in answers.items():
        output.say(f"worker {each} {heard if answer else f'did not hear it; {unheard}'}")
    if not answers:
        output.say("no worker is running; start one with `distributed-comfy worker`")


def _order(output: Output, name: str, *, drained: bool) -> None:
    with connected(output) as cluster:
        if not cluster.jobs.drain(name, drained):
            raise WorkerUnknown(name=name)
    output.result({"worker": name, "drained": drained})
    output.say(f"worker {name} {'gets nothing more' if drained else 'may have items again'}")


def _row(worker: WorkerState) -> tuple[str, ...]:
    facts = worker.facts
    engine = f"{facts.engine} {facts.engine_version}".strip()
    return (facts.name, worker.state, " ".join(worker.claims), engine, facts.device, facts.device_class, " ".join(facts.tags))


def _as_json(worker: WorkerState) -> dict[str, Any]:
    facts = worker.facts
    return {
        "name": facts.name,
        "state": worker.state,
        "items": list(worker.claims),
        "host": facts.host,
        "device": facts.device,
        "engine": facts.engine,
        "engine_version": facts.engine_version,
        "device_class": facts.device_class,
        "tags": list(facts.tags),
        "pid": facts.pid,
        "package_version": facts.package_version,
        "started_by": facts.started_by,
    }
