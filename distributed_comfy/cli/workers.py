"""``distributed-comfy workers``."""
from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

from distributed_comfy.cli.cluster import connected, redis_now_ms
from distributed_comfy.cli.commands import json_option
from distributed_comfy.cli.output import Output
from distributed_comfy.cli.worker_log import worker_log
from distributed_comfy.cli.worker_names import unknown_worker, worker_name
from distributed_comfy.cli.worker_orders import ORDERS
from distributed_comfy.cli.worker_views import list_workers as show_list
from distributed_comfy.cli.worker_views import show_worker, status_json, worker_json
from distributed_comfy.errors import RedisForbids
from distributed_comfy.orchestrator.first_worker import how_to_start
from distributed_comfy.state.workers import WorkerTable

T = TypeVar("T")


@click.group()
def workers() -> None:
    """Workers of the cluster: what they run, what they do, whether they may have more."""


for command in (worker_log, *ORDERS):
    workers.add_command(command)


@workers.command("list")
@json_option
@click.pass_obj
def list_workers(output: Output, /) -> None:
    """All registered workers.

    \b
    State: idle; ticketed (called, about to claim); busy; drained (gets nothing more), draining (and finishes what it has);
    down (its engine restarts); ending; lost (gave no sign of life, is about to be taken off the list).
    DONE: items since it started. VRAM, LOAD: of its device, whoever uses it; on the CPU, LOAD is that of the host.
    """
    with connected(output) as cluster:
        found = cluster.workers.workers()
        names, now_ms = {worker.facts.name for worker in found}, redis_now_ms(cluster)
        statuses = _if_allowed(lambda: cluster.statuses.read(sorted(names))) or {}
        starting = [name for name in _if_allowed(cluster.workers.starting) or () if name not in names]
        remedy = "" if found or starting else how_to_start(cluster)
    output.result([worker_json(worker, statuses.get(worker.facts.name)) for worker in found])
    if starting:
        output.say(f"starting: {', '.join(starting)}")
    if remedy:
        output.say(f"no worker is running; {remedy}")
    if not found:
        return
    show_list(output, found, statuses, now_ms)


@workers.command(short_help="Everything about one worker.")
@worker_name
@json_option
@click.pass_obj
def show(output: Output, /, name: str) -> None:
    """Everything about one worker: what it does, what it uses, what it has."""
    with connected(output) as cluster:
        known = {worker.facts.name: worker for worker in cluster.workers.workers()}
        worker, now_ms = known.get(name), redis_now_ms(cluster)
        status = (_if_allowed(lambda: cluster.statuses.read([name])) or {}).get(name)
        if worker is None and status is None:
            raise unknown_worker(name, {*known, *(_if_allowed(cluster.workers.starting) or ())})
    output.result(worker_json(worker, status) if worker else {"name": name, "state": "starting", "status": status_json(status)})
    show_worker(output, worker, status, now_ms)


@workers.command(short_help="Let a worker finish, and give it nothing more.")
@worker_name
@json_option
@click.pass_obj
def drain(output: Output, /, name: str) -> None:
    """Let a worker finish what it has and give it nothing more, until it is undrained."""
    _order(output, name, drained=True)


@workers.command()
@worker_name
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


def _if_allowed(ask: Callable[[], T]) -> T | None:
    """What the table says; None to an invited host's user, who may see which workers there are and no more of others."""
    try:
        return ask()
    except RedisForbids:
        return None


def _tell(output: Output, name: str | None, order: Callable[[WorkerTable, str], bool], heard: str, unheard: str) -> None:
    """Give an order to one worker or to all, and say who heard it."""
    with connected(output, orders=True) as cluster:
        names = [worker.facts.name for worker in cluster.workers.workers() if worker.state != "lost"]
        if name is not None and name not in names:
            raise unknown_worker(name, names)
        answers = {each: order(cluster.workers, each) for each in ([name] if name else names)}
        remedy = "" if answers else how_to_start(cluster)
    output.result([{"worker": each, "heard": answer} for each, answer in answers.items()])
    for each, answer in answers.items():
        output.say(f"worker {each} {heard if answer else f'did not hear it; {unheard}'}")
    if remedy:
        output.say(f"no worker is running; {remedy}")


def _order(output: Output, name: str, *, drained: bool) -> None:
    with connected(output, orders=True) as cluster:
        if not cluster.jobs.drain(name, drained):
            raise unknown_worker(name, [worker.facts.name for worker in cluster.workers.workers()])
    output.result({"worker": name, "drained": drained})
    output.say(f"worker {name} {'gets nothing more' if drained else 'may have items again'}")
