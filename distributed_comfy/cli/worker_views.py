"""How workers look on the command line: a row in the list, everything about one, and both as JSON."""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distributed_comfy.cli.cluster import ago
from distributed_comfy.cli.output import Output
from distributed_comfy.messages import dump
from distributed_comfy.state.records import WorkerFacts, WorkerState
from distributed_comfy.state.status import DeviceUse, LoadedModel, RunningItem, WorkerStatus

Statuses = Mapping[str, WorkerStatus]

_GIB = 2**30
_WIDE_COLUMNS = 130
"""From here on an item and its node fit into one line of the list, and the engine's version."""
_HASH_DIGITS = 8
_SHORTENED = ("NVIDIA ", "GeForce ", "(R)", "(TM)", "AMD ", "Intel ")
"""Of names of devices, what tells nothing."""


# -- the list -----------------------------------------------------------------------------------------------------------
def list_workers(output: Output, workers: Sequence[WorkerState], statuses: Statuses, now_ms: int) -> None:
    """A table of workers that fits 100 columns, then why some of them can do nothing."""
    columns = ["WORKER", "STATE", "ITEM", "DONE", "VRAM GiB", "LOAD", "ENGINE", "DEVICE", "TAGS"]
    rows = [_row(worker, statuses.get(worker.facts.name), wide=output.results.width >= _WIDE_COLUMNS) for worker in workers]
    for column in ("VRAM GiB", "LOAD", "TAGS"):  # only where somebody has something to say
        place = columns.index(column)
        if not any(row[place] for row in rows):
            del columns[place]
            for row in rows:
                del row[place]
    output.table(columns, rows, right=("DONE", "VRAM GiB", "LOAD"))
    for worker in workers:
        status = statuses.get(worker.facts.name)
        if status is not None and status.reason and shown_state(worker, status) == status.state:
            output.say(f"{status.name} is {status.state} for {ago(now_ms, status.since_ms)}: {status.reason}")
        for item in status.items if status is not None else ():
            if item.waits:
                output.say(f"{worker.facts.name} keeps the result of item {item.item}: {item.waits}")


def shown_state(worker: WorkerState, status: WorkerStatus | None) -> str:
    """The table's word, which is the newer one, unless the worker's own says more."""
    if status is not None and worker.state in ("busy", "down", "drained") and status.state in ("draining", "ending"):
        return status.state
    return worker.state


def _row(worker: WorkerState, status: WorkerStatus | None, *, wide: bool) -> list[str]:
    facts = worker.facts
    running = {item.item: item for item in status.items} if status else {}
    items = [_item_cell(item, running.get(item), "  " if wide else "\n") for item in worker.claims]
    use = status.use if status else DeviceUse()
    version = facts.engine_version.partition(" ")[0]
    return [
        facts.name,
        shown_state(worker, status),
        "\n".join(items),
        str(status.items_done) if status else "",
        _memory(use, "/"),
        f"{use.utilisation_percent}%" if use.utilisation_percent is not None else "",
        f"{facts.engine} {version}".strip() if wide else facts.engine,
        f"{facts.device} {_short_name(use.name)}".strip() if facts.device != "cpu" else facts.device,
        " ".join(facts.tags),
    ]


def _item_cell(item: str, running: RunningItem | None, separator: str) -> str:
    return f"{item}{separator}{how_far(running)}".rstrip() if running else item


def how_far(item: RunningItem) -> str:
    """``KSampler 3/20``; empty before the first node has reported."""
    if item.shipping:
        return "its result waits" if item.waits else "ships its result"
    node = item.node_class or (f"node {item.node_id}" if item.node_id else "")
    return f"{node} {item.value}/{item.maximum}" if node and item.maximum > 1 else node


def _memory(use: DeviceUse, between: str) -> str:
    """GiB used and in all; empty where that is not known."""
    if use.used_bytes is None or not use.total_bytes:
        return ""
    return f"{use.used_bytes / _GIB:.1f}{between}{use.total_bytes / _GIB:.1f}"


def _short_name(device: str) -> str:
    for word in _SHORTENED:
        device = device.replace(word, "")
    return device.strip()


# -- one worker ---------------------------------------------------------------------------------------------------------
def show_worker(output: Output, worker: WorkerState | None, status: WorkerStatus | None, now_ms: int) -> None:
    """Everything about one worker; one of the two is there."""
    name = status.name if status else worker.facts.name if worker else ""
    state = shown_state(worker, status) if worker else status.state if status else ""
    output.say(f"worker {name}: {state}" + (f" for {ago(now_ms, status.since_ms)}" if status and state == status.state else ""), "bold")
    lines = [*_work_lines(worker, status, now_ms), *_use_lines(status), *_facts_lines(worker, status, now_ms)]
    for label, text in lines:
        if text:
            output.say(f"  {label:<11}{text}")
    output.say(f"  {'log':<11}distributed-comfy workers logs {name}")


def _work_lines(worker: WorkerState | None, status: WorkerStatus | None, now_ms: int) -> Iterable[tuple[str, str]]:
    if status is None:
        yield "status", "none; it has just stopped telling one, or is of an older version"
        yield "runs", " ".join(worker.claims) if worker else ""
        return
    yield "reason", status.reason
    for item in status.items:
        where = f", node {item.node_id}" if item.node_id else ""
        yield "runs", f"{item.item} ({item.kind}, attempt {item.attempt}{where}) for {ago(now_ms, item.started_ms)}: {how_far(item)}"
        yield "waits", item.waits
    spent = f", {worker.engine_s:.0f} s of engine time" if worker else ""
    yield "done", f"{status.items_done} items, {status.items_failed} failed attempts{spent}"
    if status.last_error:
        error = status.last_error
        item_words = f", item {error.item}" if error.item else ""
        yield "last error", f"{error.code}, {ago(now_ms, error.at_ms)} ago{item_words}: {error.words}"


def _use_lines(status: WorkerStatus | None) -> Iterable[tuple[str, str]]:
    if status is None:
        return
    use, host = status.use, status.host_use
    busy = f"{use.utilisation_percent} % busy" if use.utilisation_percent is not None else ""
    memory = _memory(use, " of ")
    told = ", ".join(part for part in (use.name, busy, f"{memory} GiB used" if memory else "") if part)
    yield "device", f"{status.device}: {told}" if told else status.device
    if host.total_bytes:
        own = f"worker {host.worker_bytes / _GIB:.1f} GiB, engine {host.engine_bytes / _GIB:.1f} GiB"
        yield "memory", f"{own}; host {host.used_bytes / _GIB:.1f} of {host.total_bytes / _GIB:.1f} GiB used"
    yield "models", ", ".join(map(_model_words, status.models))


def _facts_lines(worker: WorkerState | None, status: WorkerStatus | None, now_ms: int) -> Iterable[tuple[str, str]]:
    facts = worker.facts if worker else None
    if status is not None:
        files = f", {status.model_files} model files ({status.model_files_hash[:_HASH_DIGITS]})" if status.model_files else ""
        classes = f", {status.node_classes} node classes ({status.capability[:_HASH_DIGITS]}){files}" if status.node_classes else ""
        yield "engine", f"{status.engine} {status.engine_version}".strip() + classes
        engine = f", engine {status.engine_pid}" if status.engine_pid else ""
        by = f" by {status.started_by}" if status.started_by else ""
        yield "process", f"pid {status.pid}{engine} on {status.host}; started {ago(now_ms, status.started_ms)} ago{by}"
    elif facts is not None:
        yield "engine", f"{facts.engine} {facts.engine_version}".strip()
        yield "process", f"pid {facts.pid} on {facts.host}"
    if facts is not None:
        yield "packs", ", ".join(f"{name} {version}".strip() for name, version in sorted(facts.packs.items()))
        yield "class", facts.device_class
        yield "tags", " ".join(facts.tags)
        yield "version", f"distributed-comfy {facts.package_version}" if facts.package_version else ""


def _model_words(model: LoadedModel) -> str:
    size = f"{model.name} {model.size_bytes / _GIB:.2f} GiB"
    return size if model.loaded_bytes >= model.size_bytes else f"{size} ({model.loaded_bytes / _GIB:.2f} GiB on the device)"


# -- JSON ---------------------------------------------------------------------------------------------------------------
def worker_json(worker: WorkerState, status: WorkerStatus | None) -> dict[str, Any]:
    """All facts of a worker; ``status`` is null where it tells none."""
    memory = worker.memory
    return {
        **_facts_json(worker.facts),
        "state": shown_state(worker, status),
        "items": list(worker.claims),
        "capability": worker.capability,
        "engine_s": worker.engine_s,
        "memory": {"free_bytes": memory.free_bytes, "total_bytes": memory.total_bytes} if memory else None,
        "status": status_json(status),
    }


def status_json(status: WorkerStatus | None) -> dict[str, Any] | None:
    """A status as JSON values."""
    found: dict[str, Any] | None = json.loads(dump(status)) if status else None
    return found


def _facts_json(facts: WorkerFacts) -> dict[str, Any]:
    return {
        "name": facts.name,
        "host": facts.host,
        "device": facts.device,
        "engine": facts.engine,
        "engine_version": facts.engine_version,
        "device_class": facts.device_class,
        "tags": list(facts.tags),
        "pid": facts.pid,
        "package_version": facts.package_version,
        "packs": facts.packs,
        "started_by": facts.started_by,
    }
