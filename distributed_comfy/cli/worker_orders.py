"""``distributed-comfy workers add``, ``start`` and so on: orders to the agent of a worker's host, and what is possible without one."""
from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import click

from distributed_comfy.agent.steering import give, keeper_of, order_without_agent
from distributed_comfy.cli.cluster import connected
from distributed_comfy.cli.commands import json_option
from distributed_comfy.cli.output import Output
from distributed_comfy.cli.worker_names import unknown_worker, worker_name, worker_states
from distributed_comfy.cpu_list import parse_cpus
from distributed_comfy.host_messages import HostAnswer, HostOrder, HostVerb
from distributed_comfy.orchestrator.arguments import split_arguments
from distributed_comfy.settings import slug
from distributed_comfy.state.records import HostWorker
from tasks.cluster import Cluster
from tasks.host_orders import order_for

_POLL_S = 0.2
_wait_option = click.option(
    "--wait", "wait_s", type=float, default=0.0, metavar="SECONDS", help="Return when it has happened; status 1 where it has not by then."
)
_host_option = click.option("--host", metavar="HOST", help="Whose agent is told [default: the worker's host].")


# -- configuration -------------------------------------------------------------------------------------------------------
def _configuring(command: Any) -> Any:
    """The options of `add` and `edit`."""
    options = (
        click.option("--device", help="cuda:0, cuda:0,1 (for nodes that use several), xpu:0, mps or cpu."),
        click.option("--engine", type=click.Choice(["comfyui", "builtin", "attach", "default"])),
        click.option("--comfyui-url", metavar="URL", help="Of the running ComfyUI that engine attach drives, as that host reaches it."),
        click.option("--comfyui", metavar="DIR", help="ComfyUI's folder on that host."),
        click.option("--python", metavar="PROGRAM", help="Interpreter for ComfyUI there."),
        click.option("--args", metavar="TEXT", help="Extra arguments of ComfyUI, as in a shell."),
        click.option("--env", multiple=True, metavar="NAME=VALUE", help="Environment variable; NAME= removes it. May be repeated."),
        click.option("--tags", metavar="TAGS", help="Comma-separated."),
        click.option("--threads", type=int, help="CPU threads of its engine; 0: by its cores."),
        click.option("--cores", metavar="CPUS", help="CPUs it may use, like 0-3,8, or auto."),
    )
    for option in reversed(options):
        command = option(command)
    return command


_PLAIN = {
    "device": "device", "comfyui_url": "comfyui_url", "comfyui": "comfyui_path", "python": "comfyui_python", "threads": "threads",
}  # fmt: skip
"""Option -> the field that it is."""


def _fields(options: dict[str, Any]) -> dict[str, Any]:
    """What was given, as fields of `agent.configuration.WorkerConfiguration`; the agent checks it."""
    found: dict[str, Any] = {}
    for option, field in _PLAIN.items():
        if options[option] is not None:
            found[field] = options[option]
    if options["engine"]:
        found["engine"] = None if options["engine"] == "default" else options["engine"]
    if options["tags"] is not None:
        found["tags"] = [tag for tag in (part.strip() for part in options["tags"].split(",")) if tag]
    if options["env"]:
        found["environment"] = dict(map(_variable, options["env"]))
    try:
        if options["args"] is not None:
            found["comfyui_args"] = list(split_arguments(options["args"]))
        if options["cores"] is not None:
            found["cores"] = "auto" if options["cores"] == "auto" else list(parse_cpus(options["cores"]))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return found


def _variable(text: str) -> tuple[str, str | None]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"must be like NAME=VALUE (it is {text!r})", param_hint="--env")
    return name, value or None


@click.command(short_help="Give a host one more worker.")
@click.argument("name", required=False)
@_host_option
@_configuring
@click.option("--disabled", is_flag=True, help="Only write it down.")
@json_option
@click.pass_obj
def add(output: Output, /, name: str | None, host: str | None, disabled: bool, **options: Any) -> None:
    """Give a host (default: this one) one more worker, and start it.

    Without NAME it is called after host and device. The host's agent writes it to its workers.json.
    """
    fields = _fields(options)
    if "environment" in fields:
        fields["environment"] = {variable: value for variable, value in fields["environment"].items() if value is not None}
    with connected(output, orders=True) as cluster:
        order = order_for("add", name or "", fields={**fields, "enabled": not disabled})
        _say(output, give(cluster, _host_name(cluster, host), order))


@click.command(short_help="Change the configuration of a worker.")
@worker_name
@_host_option
@_configuring
@click.option("--name", "new", metavar="NAME", help="Call it so from now on; not while it runs.")
@click.option("--restart", is_flag=True, help="Start it again with that now.")
@json_option
@click.pass_obj
def edit(output: Output, /, name: str, host: str | None, new: str | None, restart: bool, **options: Any) -> None:
    """Change the configuration of a worker; it takes effect when the worker is started the next time."""
    fields = _fields(options)
    if not fields and not restart and not new:
        raise click.UsageError("nothing to change; see --help")
    _order(output, host, order_for("edit", name, fields=fields, restart=restart, **({"name": new} if new else {})))


@click.command(short_help="Take a worker off its host.")
@worker_name
@_host_option
@json_option
@click.pass_obj
def remove(output: Output, /, name: str, host: str | None) -> None:
    """Let a worker finish its item, end it, and take it out of its host's configuration."""
    _order(output, host, order_for("remove", name))


@click.command(short_help="Let a worker run, now and at every `up`.")
@worker_name
@_host_option
@json_option
@click.pass_obj
def enable(output: Output, /, name: str, host: str | None) -> None:
    """Let a worker run: now, and whenever its host's agent starts."""
    _order(output, host, order_for("enable", name))


@click.command(short_help="Let a worker end, and not start with `up`.")
@worker_name
@_host_option
@json_option
@click.pass_obj
def disable(output: Output, /, name: str, host: str | None) -> None:
    """Let a worker finish its item and end; its host's agent does not start it any more."""
    _order(output, host, order_for("disable", name))


# -- running -------------------------------------------------------------------------------------------------------------
@click.command(short_help="Start a worker that was stopped, or failed.")
@worker_name
@_host_option
@_wait_option
@json_option
@click.pass_obj
def start(output: Output, /, name: str, host: str | None, wait_s: float) -> int:
    """Start a worker that was stopped, has failed or waits for its next start."""
    return _order(output, host, order_for("start", name), wait_s)


@click.command(short_help="Let a worker finish, and end it.")
@worker_name
@_host_option
@click.option("--now", is_flag=True, help="Give its item back at once.")
@_wait_option
@json_option
@click.pass_obj
def stop(output: Output, /, name: str, host: str | None, now: bool, wait_s: float) -> int:
    """Let a worker finish its item and end; its agent starts it again at `workers start`, or at its own next start.

    A worker that was started by hand ends for good. One of systemd or of a container would be started again by these, so they must be told.
    """
    return _order(output, host, order_for("stop", name, at_once=now), wait_s)


@click.command(short_help="Let a worker finish, and start it again.")
@worker_name
@_host_option
@_wait_option
@json_option
@click.pass_obj
def restart(output: Output, /, name: str, host: str | None, wait_s: float) -> int:
    """Let a worker finish its item, end, and start again with the configuration of now.

    A worker of systemd or of a container ends, and starts again where these are set up to do that.
    """
    return _order(output, host, order_for("restart", name), wait_s)


ORDERS = (add, edit, remove, enable, disable, start, stop, restart)


def _order(output: Output, host: str | None, order: HostOrder, wait_s: float = 0.0) -> int:
    """Give an order to whoever keeps the worker; exit status: 1 where it has not happened in the time to wait for it."""
    with connected(output, orders=True) as cluster:
        keeper = slug(host) if host else keeper_of(cluster, order.worker)
        if not keeper:
            _without_agent(output, cluster, order)
            return 0
        before = _kept(cluster, keeper, order.worker)
        answer = give(cluster, keeper, order)
        if not wait_s:
            _say(output, answer)
            return 0
        found, happened = _wait(cluster, keeper, order, wait_s, before.pid if before else 0)
    phase = found.phase if found else "gone"
    text = f"worker {order.worker} on {keeper}: {phase}" + (f": {found.reason}" if found and found.reason else "")
    _say(output, replace(answer, text=text, facts={**answer.facts, "phase": phase, "happened": happened}))
    return 0 if happened else 1


def _wait(cluster: Cluster, host: str, order: HostOrder, wait_s: float, pid_before: int) -> tuple[HostWorker | None, bool]:
    """The worker once an order has taken effect, or cannot, or after ``wait_s``; and whether it has."""
    give_up = time.monotonic() + wait_s
    while True:
        found = _kept(cluster, host, order.worker)  # an agent tells how its host is before it answers, so this is no older than that
        happened = found is not None and _has_happened(order.verb, found, pid_before)
        if happened or (found is not None and found.phase == "failed") or time.monotonic() >= give_up:
            return found, happened
        time.sleep(_POLL_S)


def _has_happened(verb: HostVerb, worker: HostWorker, pid_before: int) -> bool:
    if verb == "stop":
        return worker.phase in ("stopped", "disabled")
    return worker.phase in ("running", "draining") and (verb == "start" or worker.pid != pid_before)


def _kept(cluster: Cluster, host: str, worker: str) -> HostWorker | None:
    record = cluster.hosts.host(host)
    return next((own for own in record.workers if own.name == worker), None) if record else None


def _host_name(cluster: Cluster, host: str | None) -> str:
    return slug(host) if host else cluster.settings.host_name


def _without_agent(output: Output, cluster: Cluster, order: HostOrder) -> None:
    known = {worker.facts.name for worker in cluster.workers.workers()}
    known |= {own.name for gone in cluster.hosts.known()[1] for own in gone.record.workers}
    if order.worker not in known:
        raise unknown_worker(order.worker, worker_states(cluster))
    answer = order_without_agent(cluster, order)
    output.result(answer.facts)
    output.say(answer.text)


def _say(output: Output, answer: HostAnswer) -> None:
    output.result({**answer.facts, "text": answer.text})
    output.say(answer.text)
