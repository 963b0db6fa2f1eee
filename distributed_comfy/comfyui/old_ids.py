"""The ids that workers had in ComfyUI-Distributed, which its users' scripts know: an imported worker keeps its own beside its name."""
from __future__ import annotations

from distributed_comfy.errors import WorkerUnknown
from distributed_comfy.settings import slug
from distributed_comfy.state.records import HostRecord

LONGEST = 100


def old_ids(record: HostRecord | None) -> dict[str, str]:
    """Worker of this host -> the id that it had; without those that never had one."""
    configured = record.configuration.get("workers", {}) if record else {}
    return {name: str(worker["old_id"]) for name, worker in configured.items() if worker.get("old_id")}


def id_of(record: HostRecord | None, name: str) -> str:
    """What a worker is called where that pack's scripts look: by the id that it had, else by its name."""
    return old_ids(record).get(name, name)


def name_of(record: HostRecord | None, given: str) -> str:
    """The name of the worker that is meant: an id comes before a name that is like it, because `id_of` tells ids."""
    return next((name for name, old in old_ids(record).items() if old == given), slug(given))


def unknown_id(record: HostRecord | None, given: str) -> WorkerUnknown:
    """The error for what is neither id nor name of a worker, with those that there are on this host."""
    ids = old_ids(record)
    listed = [f"{ids[worker.name]} = {worker.name}" if worker.name in ids else worker.name for worker in (record.workers if record else ())]
    return WorkerUnknown(name=given[:LONGEST], known=f" (this host has {', '.join(listed)})" if listed else " (this host has none)")
