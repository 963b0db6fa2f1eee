"""What an agent does when it is told to: each verb of `distributed_comfy.host_messages.HostVerb`, what it answers, and what it refuses."""
from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from distributed_comfy.agent.agent import Agent
from distributed_comfy.agent.configuration import WorkerConfiguration, parse_worker, shown_configuration, why_not_of_host
from distributed_comfy.agent.own_comfyui import check_comfyui
from distributed_comfy.errors import OrderRefused, WorkersFileWrong, WorkerUnknown
from distributed_comfy.host_messages import HostAnswer, HostOrder, is_signed
from distributed_comfy.settings import slug
from tasks.names import default_worker_name

_CHANGES = ("add", "edit", "remove")
"""These can make the host start any program."""

_ASKS = ("drain", "resume", "clear-memory")

Deed = Callable[[HostOrder], str]


class HostOrders:
    """Carries out orders on an agent.

    Args:
        agent: of this host; orders from elsewhere are signed with its seal.
        secret: with which the user's own commands on this host sign theirs.
    """

    def __init__(self, agent: Agent, secret: str) -> None:
        self._agent = agent
        self._secret = secret
        self._deeds: dict[str, Deed] = {
            "add": self._add, "edit": self._edit, "remove": self._remove, "enable": self._enable, "disable": self._disable,
            "start": self._start, "stop": self._stop, "restart": self._restart, "drain": self._drain, "resume": self._resume,
            "clear-memory": self._clear_memory, "config": lambda order: "", "reload": self._reload,
        }  # fmt: skip

    def obey(self, order: HostOrder) -> HostAnswer:
        """Carry out one order.

        Raises:
            OrderRefused: nobody who may steer this host has signed it, it comes from elsewhere and would change the configuration, or it
                makes no sense now.
            WorkerUnknown: this host has no such worker.
            WorkersFileWrong, SettingInvalid: the change, or the file, cannot be used.
        """
        agent, of_own_user = self._agent, is_signed(order, self._secret)
        if not of_own_user and not is_signed(order, agent.seal):
            raise OrderRefused(what=f"workers {order.verb}", reason=f"it is not signed with the seal of host {agent.host}; send it again")
        if order.verb in _CHANGES and not agent.remote_configuration and not of_own_user:
            reason = (
                f"host {agent.host} does not let others change its configuration; do it there, or let them with "
                f'`distributed-comfy up --remote-configuration` or "remote_configuration": true in {agent.file.path}'
            )
            raise OrderRefused(what=f"workers {order.verb}", reason=reason)
        fields = order.arguments.get("fields")
        if order.verb in ("add", "edit") and isinstance(fields, dict):
            check_comfyui(order.worker or "new", fields, agent.settings, agent.file.path.parent)  # disks may be slow: without the lock
        # What asks the table waits for a server that may hang, and whoever looks after the processes must not wait with it.
        with nullcontext() if order.verb in _ASKS else agent.lock:
            text = self._deeds[order.verb](order)
            facts: dict[str, Any] = {"host": agent.host, "worker": order.arguments.get("name") or order.worker}
            if order.verb in ("config", "reload"):
                facts = {"host": agent.host, "file": str(agent.file.path), "configuration": shown_configuration(agent.configuration)}
        agent.tell()
        return HostAnswer(order.order_id, agent.host, text, facts)

    # -- configuration ---------------------------------------------------------------------------------------------------
    def _add(self, order: HostOrder) -> str:
        agent = self._agent
        worker = parse_worker(order.arguments.get("fields", {}), order.worker or "new", "workers add")
        name = order.worker or self._free_name("attach" if worker.engine == "attach" else worker.device)
        self._check_prefix(name, order.worker or "new")
        if name in agent.configuration.workers:
            raise OrderRefused(what=f"workers add {name}", reason="the host has a worker of this name; edit it, or choose another name")
        agent.change(lambda plain: plain["workers"].update({name: worker.model_dump(mode="json")}), "workers add")
        if not worker.enabled:
            return f"worker {name} on {agent.host}: added, disabled"
        agent.begin(name)
        return f"worker {name} on {agent.host}: added, {self._now(name)}"

    def _edit(self, order: HostOrder) -> str:
        agent, name = self._agent, order.worker
        running, waits = agent.worker(name).process is not None, agent.worker(name).wanted
        new, fields = str(order.arguments.get("name") or name), order.arguments.get("fields", {})
        if new != name:
            self._check_rename(name, new)
        agent.change(lambda plain: _edit_fields(plain["workers"], name, fields, new), "workers edit")
        changed = f"worker {new} on {agent.host}: changed" + (f"; it was {name} before" if new != name else "")
        if order.arguments.get("restart") or (waits and new != name):
            agent.begin(new, again=True)
            return f"{changed}, {self._now(new)}"
        return changed + ("; it runs as before until `workers restart`" if running else "")

    def _check_rename(self, name: str, new: str) -> None:
        """
        Raises:
            OrderRefused: this worker cannot be called so now.
        """
        reason = ""
        if new != slug(new):
            reason = f"a name has only a-z, 0-9, - and _; {slug(new) or 'gpu-0'} would do"
        elif new in self._agent.configuration.workers:
            reason = "the host has a worker of this name; choose another one"
        elif self._agent.worker(name).process is not None:
            reason = "it runs, and is known by its name; stop it first"
        if reason:
            raise OrderRefused(what=f"worker {name} cannot be called {new[:60]!r}", reason=reason)
        self._check_prefix(new, name)

    def _check_prefix(self, new: str, place: str) -> None:
        """
        Raises:
            WorkersFileWrong: the cluster that invited this host would not see a worker of this name.
        """
        host = self._agent.host
        if self._agent.servers.invited_to and (wrong := why_not_of_host(host, new)):
            raise WorkersFileWrong(source="workers", place=f"workers.{place[:60]}.name", reason=wrong)

    def _remove(self, order: HostOrder) -> str:
        agent, name = self._agent, order.worker
        agent.worker(name)
        agent.change(lambda plain: plain["workers"].pop(name), "workers remove")
        return f"worker {name} on {agent.host}: removed; if it runs, it finishes its item first"

    def _enable(self, order: HostOrder) -> str:
        self._set_enabled(order.worker, True)
        self._agent.begin(order.worker)
        return self._now_is(order.worker)

    def _disable(self, order: HostOrder) -> str:
        self._set_enabled(order.worker, False)
        self._agent.worker(order.worker).stop()
        return self._now_is(order.worker)

    def _set_enabled(self, name: str, enabled: bool) -> None:
        self._agent.worker(name)
        self._agent.change(lambda plain: plain["workers"][name].update(enabled=enabled), f"workers {'enable' if enabled else 'disable'}")

    # -- running ---------------------------------------------------------------------------------------------------------
    def _start(self, order: HostOrder) -> str:
        self._read_again(order.worker)
        self._agent.begin(order.worker)
        return self._now_is(order.worker)

    def _stop(self, order: HostOrder) -> str:
        self._agent.worker(order.worker).stop(at_once=bool(order.arguments.get("at_once")))
        return self._now_is(order.worker)

    def _restart(self, order: HostOrder) -> str:
        self._read_again(order.worker)
        self._agent.begin(order.worker, again=True)
        return self._now_is(order.worker)

    def _reload(self, order: HostOrder) -> str:
        agent = self._agent
        agent.use(agent.file.read_or_empty())
        return f"host {agent.host} keeps the workers of {agent.file.path}, as it is now"

    def _read_again(self, name: str) -> None:
        """Somebody may have edited the file."""
        self._agent.worker(name)
        self._agent.use(self._agent.file.read_or_empty())
        if not self._agent.configuration.workers[name].enabled:
            raise OrderRefused(what=f"worker {name}", reason="it is disabled; `distributed-comfy workers enable` starts it")

    def _drain(self, order: HostOrder) -> str:
        return self._tell(order, self._agent.cluster.jobs.drain(order.worker), "gets nothing more")

    def _resume(self, order: HostOrder) -> str:
        return self._tell(order, self._agent.cluster.jobs.drain(order.worker, False), "may have items again")

    def _clear_memory(self, order: HostOrder) -> str:
        return self._tell(order, self._agent.cluster.workers.free(order.worker), "frees its device as soon as nothing runs there")

    def _tell(self, order: HostOrder, heard: bool, text: str) -> str:
        self._agent.worker(order.worker)
        if not heard:
            raise OrderRefused(what=f"worker {order.worker}", reason=f"it does not run: it is {self._now(order.worker)}")
        return f"worker {order.worker} on {self._agent.host}: {text}"

    # -- words -----------------------------------------------------------------------------------------------------------
    def _now(self, name: str) -> str:
        worker, configured = self._agent.worker(name), self._agent.configuration.workers[name]
        phase = worker.phase(enabled=configured.enabled)
        return f"{phase}: {worker.reason}" if phase == "failed" else str(phase)

    def _now_is(self, name: str) -> str:
        return f"worker {name} on {self._agent.host}: {self._now(name)}"

    def _free_name(self, device: str) -> str:
        base, number = default_worker_name(self._agent.host, device), 0
        while (name := f"{base}-{number}" if number else base) in self._agent.configuration.workers:
            number += 1
        return name


def _edit_fields(workers: dict[str, Any], name: str, fields: dict[str, Any], new: str) -> None:
    """Put fields into a worker's configuration: null brings the default back, and variables are changed one by one; and call it ``new``."""
    if name not in workers:  # somebody took it out of the file
        raise WorkerUnknown(name=name)
    if new != name and new in workers:  # or put another one into it
        raise OrderRefused(what=f"worker {name} cannot be called {new!r}", reason="the host has a worker of this name; choose another one")
    worker = workers[name]
    for field, value in fields.items():
        if field == "environment" and isinstance(value, dict):
            merged = {**worker["environment"], **value}
            worker["environment"] = {variable: text for variable, text in merged.items() if text is not None}
        elif value is None and field in WorkerConfiguration.model_fields:
            worker.pop(field)
        else:
            worker[field] = value
    if new != name:  # in its old place among the others
        renamed = {new if each == name else each: configured for each, configured in workers.items()}
        workers.clear()
        workers.update(renamed)
