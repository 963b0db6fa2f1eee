"""What a page tells workers: through the agent that keeps each, and where none does, what is possible all the same."""
from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import redis

from distributed_comfy.agent.configuration import why_not_of_host, wrong_fields
from distributed_comfy.agent.steering import forget_host, give, keeper_of, order_without_agent
from distributed_comfy.errors import DistributedComfyError, OrderRefused, WorkerFieldsWrong, WorkerUnknown
from distributed_comfy.host_messages import HostVerb
from distributed_comfy.orchestrator.arguments import split_arguments
from distributed_comfy.orchestrator.doctor.findings import Finding
from distributed_comfy.orchestrator.doctor.probe import PROBE_SETTINGS
from distributed_comfy.orchestrator.doctor.workers import check_worker
from distributed_comfy.panel.bodies import BadRequest
from distributed_comfy.panel.place import Place
from distributed_comfy.panel.words import told
from distributed_comfy.settings import slug
from tasks.cluster import Cluster, open_cluster
from tasks.host_orders import order_for

OF_AGENTS: tuple[HostVerb, ...] = ("start", "stop", "restart", "enable", "disable")
OF_ALL = ("clear-memory", "start", "stop", "look")
_RUNNING = ("running", "draining")
_ORDERS_AT_ONCE = 8


class WorkerOrders:
    """One panel's; waits for Redis and agents.

    Args:
        place: what serves the panel.
    """

    def __init__(self, place: Place) -> None:
        self._place = place

    # -- configuration ---------------------------------------------------------------------------------------------------
    def add(self, host: str, name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Give a host one more worker.

        Raises:
            WorkerFieldsWrong: a field cannot be used.
            NoAgent, AgentSilent: nobody keeps workers there.
            OrderRefused: its agent does not do that.
        """
        given = checked_fields({field: value for field, value in fields.items() if value is not None})
        if name and name != slug(name):
            shown = f"name must have only a-z, 0-9, - and _ ({slug(name) or 'gpu-0'} would do)"
            raise WorkerFieldsWrong(shown=shown, wrong={"name": shown.removeprefix("name ")})
        cluster = self._place.cluster()
        host = slug(host) or cluster.settings.host_name
        if name and cluster.hosts.is_invited(host) and (wrong := why_not_of_host(host, name)):
            raise WorkerFieldsWrong(shown=f"name {wrong}", wrong={"name": wrong})
        answer = give(cluster, host, order_for("add", name, fields=given))
        return _answered(answer.text, str(answer.facts.get("worker") or name) or _named_in(answer.text), answer.host)

    def edit(self, name: str, fields: Mapping[str, Any], *, restart: bool, new: str = "") -> dict[str, Any]:
        """Change a worker, and call it ``new`` where that is given and another name; errors as of `add`, and `WorkerUnknown`."""
        given = checked_fields(fields)
        if new in ("", name):
            if not given and not restart:
                raise BadRequest("nothing is to be changed; fields must name something")
            return self._by_agent("edit", name, fields=given, restart=restart)
        wrong = self._why_not_called(name, new)
        if wrong:
            raise WorkerFieldsWrong(shown=f"name {wrong}", wrong={"name": wrong})
        answer = self._by_agent("edit", name, fields=given, restart=restart, name=new)
        if answer["worker"] != new:
            raise OrderRefused(what=f"worker {name}", reason="its agent is of an older version, which keeps the name; update it there")
        return answer

    def _why_not_called(self, name: str, new: str) -> str:
        """What the new name of a worker must be; empty where it may be called so now.  Its agent has the last word."""
        if new != slug(new):
            return f"must have only a-z, 0-9, - and _ ({slug(new) or 'gpu-0'} would do)"
        cluster = self._place.cluster()
        host = keeper_of(cluster, name)
        if host and cluster.hosts.is_invited(host) and (wrong := why_not_of_host(host, new)):
            return wrong
        if keeper_of(cluster, new) or cluster.workers.workers([new]):
            return f"is taken: there is a worker {new}; choose another one"
        kept = (own for record in cluster.hosts.hosts() for own in record.workers if own.name == name)
        return "can be changed while the worker does not run; stop it first" if any(own.pid for own in kept) else ""

    def remove(self, name: str) -> dict[str, Any]:
        """Take a worker off its host; errors as of `edit`."""
        return self._by_agent("remove", name)

    def forget_host(self, name: str) -> dict[str, Any]:
        """Show a host no longer that is not heard of any more; errors as of `agent.steering.forget_host`."""
        return {"host": name, "text": forget_host(self._place.cluster(), name)}

    # -- running ---------------------------------------------------------------------------------------------------------
    def order(self, name: str, order: str, *, at_once: bool = False) -> dict[str, Any]:
        """Tell a worker something.

        Raises:
            WorkerUnknown: there is none of this name.
            OrderRefused: it, or its agent, does not do that.
        """
        verb = next((known for known in OF_AGENTS if known == order), None)
        if verb is not None:
            return self._by_agent(verb, name, **({"at_once": True} if at_once and verb == "stop" else {}))
        cluster = self._place.cluster()
        if order == "probe":
            return self._probe(cluster, name)
        row = next(iter(cluster.workers.workers([name])), None)
        if row is None:
            if keeper_of(cluster, name):
                raise OrderRefused(what=f"worker {name}", reason="it does not run; start it first")
            raise WorkerUnknown(name=name)
        heard, text = _TOLD[order]
        if not heard(cluster, name):
            raise OrderRefused(what=f"worker {name}", reason="it did not hear it; try again in a moment")
        return _answered(f"worker {name} on {row.facts.host} {text}", name, row.facts.host)

    def order_all(self, order: str, host: str) -> dict[str, Any]:
        """Tell all workers that it concerns (of one host, or of all); one that refuses keeps none of the others from it."""
        cluster = self._place.cluster()
        names = self._concerned(cluster, order, host)
        with ThreadPoolExecutor(_ORDERS_AT_ONCE, thread_name_prefix="panel-orders") as pool:
            answers = list(pool.map(lambda name: self._tried(name, order), names))
        master = self._place.master
        tell_master = master is not None and order == "clear-memory" and host in ("", cluster.settings.host_name)
        if master is not None and tell_master:
            master.clear_memory()
        done = dict(zip(names, answers, strict=True))
        return {
            "told": {name: answer for name, answer in done.items() if isinstance(answer, str)},
            "refused": {name: answer for name, answer in done.items() if not isinstance(answer, str)}, "master": tell_master,
        }  # fmt: skip

    def _concerned(self, cluster: Cluster, order: str, host: str) -> list[str]:
        records = [record for record in cluster.hosts.hosts() if host in ("", record.host)]
        kept = [own for record in records for own in record.workers]
        if order == "start":
            return sorted(own.name for own in kept if own.enabled and own.phase in ("stopped", "failed", "backing-off"))
        if order == "stop":
            return sorted(own.name for own in kept if own.phase in (*_RUNNING, "starting", "backing-off"))
        rows = cluster.workers.workers()
        return [
            row.facts.name for row in rows
            if row.state != "lost" and row.facts.started_by != "comfyui" and host in ("", row.facts.host)
        ]  # fmt: skip

    def _tried(self, name: str, order: str) -> str | dict[str, Any]:
        try:
            return str(self.order(name, order)["text"])
        except (DistributedComfyError, redis.RedisError) as error:
            return told(error)

    def _by_agent(self, verb: HostVerb, name: str, /, **arguments: Any) -> dict[str, Any]:
        cluster = self._place.cluster()
        order, keeper = order_for(verb, name, **arguments), keeper_of(cluster, name)
        answer = give(cluster, keeper, order) if keeper else order_without_agent(cluster, order)
        return _answered(answer.text, str(answer.facts.get("worker") or name), answer.host)

    def _probe(self, cluster: Cluster, name: str) -> dict[str, Any]:
        probing = open_cluster(cluster.settings.model_copy(update=PROBE_SETTINGS), cluster.redis_url, cluster.blob_url)
        try:
            finding = check_worker(probing, name, threading.Event())
        finally:
            probing.close()
        return {**_answered(finding.found, name, ""), "finding": shown_finding(finding)}


_TOLD: dict[str, tuple[Callable[[Cluster, str], bool], str]] = {
    "drain": (lambda cluster, name: cluster.jobs.drain(name), "finishes what it has and gets nothing more"),
    "resume": (lambda cluster, name: cluster.jobs.drain(name, False), "may have items again"),
    "clear-memory": (lambda cluster, name: cluster.workers.free(name), "frees its device as soon as nothing runs there"),
    "look": (lambda cluster, name: cluster.workers.look(name), "looks at its models and node classes again"),
}
"""Orders that go straight to a worker, or to the table: how, and what then happens."""


def checked_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a worker as its agent takes them; None stands for a default.

    Raises:
        WorkerFieldsWrong: some cannot be used; says of each what it must be.
    """
    given, wrong = dict(fields), {}
    if isinstance(given.get("comfyui_args"), str):
        try:
            given["comfyui_args"] = list(split_arguments(given["comfyui_args"]))
        except ValueError as error:
            wrong["comfyui_args"] = f"must be arguments as in a shell: {error}"
    said = {name: _without_none(value) for name, value in given.items() if value is not None and name not in wrong}
    wrong.update(wrong_fields(said))
    if wrong:
        raise WorkerFieldsWrong(shown=", ".join(f"{name} {reason}" for name, reason in wrong.items()), wrong=wrong)
    return given


def shown_finding(finding: Finding) -> dict[str, Any]:
    """As ``Finding`` of openapi.json."""
    first, _, name = finding.check.partition(" ")
    return {**asdict(finding), "worker": name if first == "worker" else ""}


def _without_none(value: Any) -> Any:
    return {name: text for name, text in value.items() if text is not None} if isinstance(value, dict) else value


def _answered(text: str, worker: str, host: str) -> dict[str, Any]:
    return {"text": text, "worker": worker, "host": host, "finding": None}


def _named_in(text: str) -> str:
    """The name that an agent gave to a new worker: it says ``worker NAME on HOST: added``."""
    words = text.split()
    return words[1] if words[:1] == ["worker"] and len(words) > 1 else ""
