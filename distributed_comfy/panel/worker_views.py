"""A worker as the panel shows it: what its agent, the table and itself say of it, in one, with a colour, a reason and a remedy."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from distributed_comfy.messages import parse_item_id
from distributed_comfy.panel.repairs import NONE, Repair, repair_of, without_variable
from distributed_comfy.panel.steps import StepView
from distributed_comfy.panel.words import split_coded, split_text
from distributed_comfy.state.records import HostRecord, HostWorker, WorkerState
from distributed_comfy.state.status import STARTING, LastError, RunningItem, WorkerStatus

MASTER = "comfyui"
"""Starter of what a ComfyUI with the pack is itself while it takes part in its own jobs."""
_COLOURS = {
    "idle": "green", "busy": "green", "starting": "yellow", "draining": "yellow", "drained": "yellow", "stopping": "yellow",
    "failed": "red", "backing-off": "red", "down": "red", "lost": "red", "disabled": "grey", "stopped": "grey",
}  # fmt: skip
_OF_TABLE = {"idle": "idle", "ticketed": "idle", "busy": "busy", "drained": "drained", "down": "down", "lost": "lost"}
_KEPT_ORDERS = {
    "disabled": ("enable",), "stopped": ("start", "disable"), "failed": ("start", "disable"), "backing-off": ("start", "stop", "disable"),
    "starting": ("stop", "restart", "disable"), "idle": ("stop", "restart", "drain", "disable", "clear-memory", "look", "probe"),
    "busy": ("stop", "restart", "drain", "disable", "clear-memory", "look"), "down": ("stop", "restart", "drain", "disable"),
    "draining": ("stop", "restart", "resume", "disable", "clear-memory"),
    "drained": ("stop", "restart", "resume", "disable", "clear-memory", "look"), "stopping": (), "lost": ("stop", "restart", "disable"),
}  # fmt: skip
_OTHER_ORDERS = {
    "idle": ("drain", "clear-memory", "look", "probe"), "busy": ("drain", "clear-memory", "look"), "draining": ("resume", "clear-memory"),
    "drained": ("resume", "clear-memory", "look"), "down": ("drain",),
}  # fmt: skip
_KILLED = "signal 9"
_AFTER_A_KILL = (
    "it starts again by itself; where nobody has killed it, its computer was out of memory: close other programs there, or run fewer "
    "workers"
)
_ENDINGS = {"hand": ("stop",), "systemd": ("restart",), "container": ("restart",)}
"""What ends a worker that no agent keeps, by who started it."""


@dataclass(frozen=True)
class WorkerSources:
    """All that is known of one worker."""

    name: str
    kept: HostWorker | None = None
    """As its agent tells it."""
    configuration: Mapping[str, Any] | None = None
    """As its agent has it written down."""
    keeper: str = ""
    """Host of that agent."""
    row: WorkerState | None = None
    """As the table has it, without what changes all the time (`without_lease`)."""
    status: WorkerStatus | None = None
    """As it tells itself."""
    steps: Mapping[tuple[str, int], StepView] | None = None
    """Of its items."""
    next_start_ms: int = 0
    here: bool = False
    editable: bool = False
    gone_ms: int = 0
    """When its agent was heard of last, where it is not any more."""
    devices: tuple[str, ...] = ()
    """Those of its host."""

    @property
    def host(self) -> str:
        """Where it is."""
        found = self.row.facts.host if self.row else self.status.host if self.status else ""
        return self.keeper or found

    @property
    def starter(self) -> str:
        """Who keeps it."""
        if self.kept is not None:
            return "agent"
        return (self.row.facts.started_by if self.row else "") or "hand"


def shown_worker(found: WorkerSources) -> dict[str, Any]:
    """As ``Worker`` of openapi.json."""
    state, starter = state_of(found), found.starter
    reason, remedy = why(found, state)
    repair = find_repair(found, state, reason, remedy)
    if repair.field:
        reason, remedy = without_variable(reason), repair.remedy
    fails = state == "starting" and bool(reason)
    guest = starter == MASTER
    kept = found.kept
    return {
        "name": found.name, "host": found.host, "here": found.here, "state": state, "colour": "red" if fails else _COLOURS[state],
        "reason": reason, "remedy": remedy, "repair": repair.field, "since_ms": _since_ms(found, state),
        "next_start_ms": found.next_start_ms if state == "backing-off" else 0, "keeper": starter, "guest": guest,
        "orders": [] if guest else orders_of(found, state), "editable": found.editable and kept is not None,
        "enabled": kept.enabled if kept else True, "outdated": bool(kept and kept.outdated), "restarts": kept.restarts if kept else 0,
        "cores": kept.cores if kept else "", "threads": kept.threads if kept else 0, "log_folder": kept.log_folder if kept else "",
        "configuration": dict(found.configuration) if found.configuration is not None else None,
        **_engine(found), **_doing(found),
    }  # fmt: skip


def unknown_worker(shown: Mapping[str, Any], since_ms: int) -> dict[str, Any]:
    """The same worker while nobody can say how it is."""
    reason = "nothing is heard of the cluster now, so nobody can say how it is"
    return {
        **shown, "state": "unknown", "colour": "grey", "reason": reason, "remedy": "", "repair": "", "since_ms": since_ms,
        "next_start_ms": 0,
    }  # fmt: skip


def state_of(found: WorkerSources) -> str:
    """One word: the agent's for what has no process that could speak, else the table's, unless the worker's own says more."""
    phase = found.kept.phase if found.kept else ""
    if found.gone_ms:  # what ran on when its agent fell silent says so itself
        if found.row is None and phase not in ("disabled", "stopped"):
            return "lost"
        phase = "" if found.row is not None else phase
    if phase in ("disabled", "failed", "backing-off", "stopping", "stopped"):
        return phase
    own = found.status.state if found.status else ""
    if found.row is None:
        return "stopping" if own == "ending" else "starting"
    state = _OF_TABLE[found.row.state]
    if own in ("draining", "ending") and state in ("busy", "down", "drained"):
        return "stopping" if own == "ending" else "draining"
    if state == "busy" and found.row.drained:
        return "draining"
    of_another = found.kept is not None and found.row.facts.pid != found.kept.pid  # one that died, and whose lease still runs
    return "starting" if phase == "starting" and (of_another or state in ("lost", "down")) else state


def why(found: WorkerSources, state: str) -> tuple[str, str]:
    """Why a worker does not work, and what to do."""
    said = (found.kept.reason if found.kept else "") or (found.status.reason if found.status else "")
    if state == "lost" and found.gone_ms:
        reason = f"gives no sign of life any more, nor does its computer, {found.keeper}; what it had runs elsewhere"
        return reason, f"start `distributed-comfy up` on {found.keeper}, or look at its network"
    if state == "lost":
        where = f"look whether {found.host} is on and its network leads to the Redis, and whether the worker runs there"
        return "gives no sign of life any more; what it had runs elsewhere", where
    if state == "drained":
        return said or "gets no items, because somebody wanted it so", "let it have items again with Resume"
    if state in ("idle", "busy"):
        return "", ""
    reason, remedy = split_text("" if said == STARTING else said)
    if state == "down" and not reason:
        reason, remedy = "its engine does not run now", "wait a moment: it starts again; if it stays so, look into its log"
    elif state == "down" and remedy:
        remedy += "; if that does not help, look into its log"
    if reason and state in ("failed", "backing-off", "down", "starting") and not remedy:
        remedy = "look into its log for what it said last"
    if _KILLED in reason and state in ("backing-off", "down", "starting"):
        remedy = _AFTER_A_KILL
    return reason, remedy


def find_repair(found: WorkerSources, state: str, reason: str, remedy: str) -> Repair:
    """The field of its settings without which it can only fail again, where it can be changed from a page."""
    if state not in ("failed", "backing-off", "down", "starting") or not (found.editable and found.kept):
        return NONE
    return repair_of(reason, remedy, found.devices)


def orders_of(found: WorkerSources, state: str) -> list[str]:
    """What it can be told now."""
    if found.kept is not None and not found.gone_ms:
        return list(_KEPT_ORDERS[state])
    ends = _ENDINGS.get(found.starter, ()) if state not in ("stopping", "lost") else ()
    return [*ends, *_OTHER_ORDERS.get(state, ())]


def _since_ms(found: WorkerSources, state: str) -> int:
    if state == "lost" and found.gone_ms:
        return found.gone_ms
    own = state not in ("disabled", "failed", "backing-off", "stopped", "lost")
    return found.status.since_ms if found.status and own else 0


def _engine(found: WorkerSources) -> dict[str, Any]:
    """What it runs, and on what."""
    facts, status, kept = (found.row.facts if found.row else None), found.status, found.kept
    told_tags = (found.configuration or {}).get("tags") or ()
    return {
        "device": (facts.device if facts else "") or (status.device if status else "") or (kept.device if kept else ""),
        "device_class": facts.device_class if facts else "", "engine": (facts.engine if facts else "") or (status.engine if status else ""),
        "engine_version": facts.engine_version if facts else "", "commit": status.commit if status else "",
        "version": (facts.package_version if facts else "") or (status.package_version if status else ""),
        "started_ms": status.started_ms if status else 0,
        "pid": (kept.pid if kept else 0) or (status.pid if status else 0) or (facts.pid if facts else 0),
        "tags": list(facts.tags if facts else told_tags), "packs": dict(facts.packs) if facts else {},
        "node_classes": status.node_classes if status else 0, "model_files": status.model_files if status else 0,
    }  # fmt: skip


def _doing(found: WorkerSources) -> dict[str, Any]:
    """What it does and has done."""
    status = found.status
    told = {item.item: item for item in status.items} if status else {}
    named = found.row.claims if found.row else tuple(told)
    return {
        "items": [item for name in named if (item := _item(name, told.get(name), found.steps or {})) is not None],
        "items_done": status.items_done if status else 0, "items_failed": status.items_failed if status else 0,
        "last_error": _last_error(status.last_error) if status and status.last_error else None,
        "use": asdict(status.use) if status else None, "host_use": asdict(status.host_use) if status else None,
        "models": [asdict(model) for model in status.models] if status else [],
    }  # fmt: skip


def _item(name: str, told: RunningItem | None, steps: Mapping[tuple[str, int], StepView]) -> dict[str, Any] | None:
    place = parse_item_id(name)
    if place is None:
        return None
    step = steps.get(place)
    shown = {
        "job": place[0], "index": place[1], "kind": told.kind if told else "generate", "attempt": told.attempt if told else 1,
        "started_ms": told.started_ms if told else 0, "node_id": told.node_id if told else "",
        "node_class": told.node_class if told else "", "value": told.value if told else 0, "maximum": told.maximum if told else 0,
        "shipping": bool(told and told.shipping), "preview": step.number if step else 0,
    }  # fmt: skip
    if step and step.node_id and not shown["shipping"]:
        node_class = shown["node_class"] if step.node_id == shown["node_id"] else ""
        shown.update(node_id=step.node_id, node_class=node_class, value=step.value, maximum=step.maximum)
    return shown


def _last_error(error: LastError) -> dict[str, Any]:
    message, remedy = split_coded(error.code, error.words)
    place = parse_item_id(error.item)
    return {
        "code": error.code, "message": message, "remedy": remedy, "at_ms": error.at_ms, "job": place[0] if place else "",
        "index": place[1] if place else None,
    }  # fmt: skip


def shown_host(record: HostRecord, *, here: bool, configurable: bool, gone_ms: int = 0) -> dict[str, Any]:
    """As ``Host`` of openapi.json."""
    used: dict[str, list[str]] = {}
    for worker in record.workers:
        kind, _, numbers = worker.device.partition(":")
        for device in [f"{kind}:{number}" for number in numbers.split(",")] if numbers else [kind]:
            used.setdefault(device, []).append(worker.name)
    return {
        "name": record.host, "here": here, "user": record.user, "version": record.package_version, "system": record.system,
        "cpus": record.cpus, "workers": sorted(worker.name for worker in record.workers), "configurable": configurable,
        "devices": [
            {"name": each.name, "model": each.model, "memory_bytes": each.memory_bytes, "used_by": sorted(used.get(each.name, ()))}
            for each in record.devices
        ],
        "resources": _rounded(asdict(record.resources)) if record.resources else None, "gone_ms": gone_ms,
    }  # fmt: skip


def _rounded(resources: dict[str, int]) -> dict[str, int]:
    """In steps that are worth telling a page of: 64 MiB."""
    return {name: value >> 26 << 26 for name, value in resources.items()}
