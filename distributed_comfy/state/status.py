"""What a worker tells about itself every few seconds, as values; the record vanishes with the worker.  Nothing here talks to Redis.

Times are of the Redis clock, in milliseconds.  What seldom changes and is long is only named: node classes and model files by the hash of
the `Capability` in the table, node packs by `WorkerFacts`.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from distributed_comfy.messages import MESSAGE_VERSION, ItemKind

Phase = Literal["starting", "idle", "busy", "draining", "drained", "down", "ending"]
"""starting: its engine has not been ready yet; draining: it finishes what it has and then gets nothing more; down: its engine restarts;
ending: the worker itself ends."""


STARTING = "the engine starts"
"""Reason of a worker whose engine is on its way for the first time, and has not failed to start."""


@dataclass(frozen=True)
class RunningItem:
    """An item that a worker has, and how far it is."""

    item: str
    """``job-index``."""
    kind: ItemKind
    attempt: int = 1
    started_ms: int = 0
    node_id: str = ""
    """The node that reported last; empty before the first."""
    node_class: str = ""
    """Empty too for a node that the prompt does not have, as node expansion makes."""
    value: int = 0
    """Steps done by that node."""
    maximum: int = 0
    shipping: bool = False
    """It has been executed, and its result is on the way into the blob store."""
    waits: str = ""
    """Why its result cannot be stored now, in words; the item runs no second time for it."""


@dataclass(frozen=True)
class LastError:
    """What last went wrong on a worker."""

    code: str
    words: str
    at_ms: int
    item: str = ""
    """Empty where it was the engine that failed."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in the memory of an engine."""

    name: str
    """Class of the model, which is what engines know it by."""
    size_bytes: int
    loaded_bytes: int
    """Of these, what lies on the device now."""


@dataclass(frozen=True)
class EngineReport:
    """What an engine process knows about itself beside its capability."""

    device_name: str = ""
    """Empty before it has begun to use a GPU, and on the CPU."""
    device_uuid: str = ""
    """By which the driver's library knows the device."""
    commit: str = ""
    """What is checked out in the engine's tree; empty where that is no git checkout."""
    packs: dict[str, str] = field(default_factory=dict)
    """Folder, or single file, of each custom node pack that was loaded -> its commit, else its version; empty where neither is known."""
    models: tuple[LoadedModel, ...] = ()


@dataclass(frozen=True)
class DeviceUse:
    """How much of its device is used, by whomever."""

    name: str = ""
    """``NVIDIA GeForce RTX 4090``; of the CPU its model."""
    utilisation_percent: int | None = None
    """None where nobody tells it.  On the CPU that of the whole host."""
    used_bytes: int | None = None
    """Of the device's own memory; None on the CPU."""
    total_bytes: int | None = None


@dataclass(frozen=True)
class HostUse:
    """Memory of the worker's host, in bytes."""

    worker_bytes: int = 0
    """Resident memory of the worker's consumer."""
    engine_bytes: int = 0
    """Resident memory of its engine process."""
    used_bytes: int = 0
    """Of the whole host: total less what is available."""
    total_bytes: int = 0


@dataclass(frozen=True)
class WorkerStatus:
    """One worker now."""

    name: str
    host: str
    device: str
    state: Phase
    since_ms: int
    """When it entered the state."""
    reason: str = ""
    """Why it can do nothing now, in words; empty while idle or busy."""
    items: tuple[RunningItem, ...] = ()
    items_done: int = 0
    """Since the worker started."""
    items_failed: int = 0
    """Attempts that failed here; the item may have succeeded later or elsewhere."""
    last_error: LastError | None = None
    use: DeviceUse = DeviceUse()
    host_use: HostUse = HostUse()
    models: tuple[LoadedModel, ...] = ()
    engine: str = ""
    engine_version: str = ""
    commit: str = ""
    packs: int = 0
    """Number of custom node packs; `WorkerFacts.packs` has them with their versions."""
    capability: str = ""
    """Hash of what it can run; the table has the lists under it."""
    node_classes: int = 0
    model_files: int = 0
    model_files_hash: str = ""
    """Equal for workers with the same names in the same folders."""
    pid: int = 0
    engine_pid: int = 0
    """0 while there is none."""
    started_ms: int = 0
    started_by: str = ""
    package_version: str = ""
    interval_s: float = 2.0
    """How often it is told; what is much older is out of date."""
    version: int = MESSAGE_VERSION
