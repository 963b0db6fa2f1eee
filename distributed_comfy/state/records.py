"""What the table of truth says about a job, an item and a worker, as values; nothing here talks to Redis."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from distributed_comfy.messages import MESSAGE_VERSION

EventKind = Literal["claimed", "done", "failed", "released", "job"]

Outer = Literal["", "checked", "runs"]
"""``checked``: a ComfyUI has accepted the prompt, so one that refuses it differs; ``runs``: and it runs the items that no worker can."""


@dataclass(frozen=True)
class JobEvent:
    """A wake-up: it may be lost, doubled or late, so it says where to look and never what is true."""

    kind: EventKind
    index: int = -1
    """The item; -1 for ``job``."""
    claim_id: str = ""
    worker: str = ""


@dataclass(frozen=True)
class ItemState:
    """One row of the table."""

    state: Literal["blocked", "pending", "waiting", "running", "done", "failed", "stopped"]
    """``waiting``: failed for a passing reason and backing off; ``stopped``: was running when its job ended."""
    claim_id: str = ""
    """The claim that runs it or finished it; empty before the first."""
    worker: str = ""
    attempts: int = 0
    """Executions that failed so far, over all classes of error."""
    error: dict[str, Any] | None = None
    """Wire form of the last error."""


@dataclass(frozen=True)
class JobState:
    """The job as a whole."""

    state: Literal["pending", "running", "paused", "parked", "done", "failed", "cancelled"]
    error: dict[str, Any] | None = None
    """Wire form of the error that ended it."""
    reason: str = ""
    """Why it is parked, failed or cancelled, for people."""
    counts: dict[str, int] = field(default_factory=dict)
    """``pending`` (blocked ones included), ``running``, ``done``, ``failed`` and ``total``."""
    submitter: str = ""
    priority: int = 5
    title: str = ""
    host: str = ""
    created_ms: int = 0
    """Redis time."""
    ended_ms: int = 0
    fatal: int = -1
    """Of a failed job the item that it failed with; others may have failed before, where it could do without them."""
    tiles: int = 0
    """How many of the items were added after submission."""
    tiles_done: int = 0
    stages: int = 0
    """How many of the items prepare or end the job, and were not asked for."""
    retried_ms: int = 0
    """When somebody let it go on after it had ended; 0: nobody has."""

    @property
    def ended(self) -> bool:
        """True where no item will run any more."""
        return self.state in ("done", "failed", "cancelled")


@dataclass(frozen=True)
class SpoolPlace:
    """Where a job's owner keeps the results that it fetched."""

    host: str
    folder: str
    """The spool; it goes when the job has ended and its files are saved."""
    out: str
    """The user's folder, where the files are then."""


@dataclass(frozen=True)
class WorkerFacts:
    """What a worker tells about itself when it registers."""

    name: str
    host: str
    device: str
    engine: str
    engine_version: str = ""
    device_class: str = ""
    pid: int = 0
    tags: tuple[str, ...] = ()
    package_version: str = ""
    started_by: str = ""
    """``agent``, ``run``, ``systemd``, ``container`` or ``hand``; empty where a version before told nothing."""
    cores: str = ""
    """CPUs that it and its engine may use, like ``0-3,8``; empty where its system does not tell."""
    packs: dict[str, str] = field(default_factory=dict)
    """Custom node packs that its engine loaded -> commit or version; empty where neither is known."""


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of a worker's first device, whoever uses it."""

    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class WorkerState:
    """A registered worker as the table sees it."""

    facts: WorkerFacts
    state: Literal["idle", "ticketed", "busy", "drained", "down", "lost"]
    """``down``: its engine is restarting, or it is ending.

    ``lost``: its lease ran out and the reaper has not taken it off the table yet."""
    claims: tuple[str, ...] = ()
    """Items it has, as ``job-index``."""
    capability: str = ""
    """Capability hash."""
    lease_ms: int = 0
    """What is left of its lease."""
    memory: DeviceMemory | None = None
    """None where the engine reports none: on the CPU, and before it has begun to use its device."""
    engine_s: float = 0.0
    """Engine time of all items it did since it joined."""
    drained: bool = False
    """Gets nothing more, whatever it still has."""


WorkerPhase = Literal["disabled", "starting", "running", "draining", "stopping", "stopped", "backing-off", "failed"]
"""``draining``: runs, and gets no more items; ``stopping``: was asked to end; ``stopped``: ended, and stays so until somebody starts it;
``backing-off``: ended by itself, and is started again after a wait; ``failed``: cannot work as it is configured."""


@dataclass(frozen=True)
class HostDevice:
    """What a worker of a host can compute on."""

    name: str
    """As DC_DEVICE has it: ``cuda:0``, ``xpu:0``, ``mps``, ``cpu``."""
    model: str = ""
    """What its maker calls it; empty where that is not known."""
    memory_bytes: int = 0
    """Its own memory; 0 where that is not known."""
    bus_id: str = ""
    """Where it sits, as Linux writes it: ``0000:81:00.0``."""


@dataclass(frozen=True)
class HostWorker:
    """A worker that an agent looks after, as that sees it."""

    name: str
    phase: WorkerPhase
    device: str
    enabled: bool = True
    reason: str = ""
    """Why it failed or is started again; empty while all is well."""
    next_start_s: float = 0.0
    """While backing off: seconds until it is started again."""
    pid: int = 0
    """0 while there is no process."""
    cores: str = ""
    """CPUs it is bound to, like ``0-3,8``; empty: those of the agent."""
    threads: int = 0
    """CPU threads of its engine; 0: torch's own choice."""
    restarts: int = 0
    """How often it was started again since the agent runs."""
    log_folder: str = ""
    """On its host; holds ``worker.log`` and ``engine.log``."""
    outdated: bool = False
    """It runs with another configuration than the one that is written down; a restart brings that."""


@dataclass(frozen=True)
class HostResources:
    """What a host has of what all its workers share, in bytes."""

    memory_total_bytes: int
    memory_available_bytes: int
    """What programs can have before the system begins to swap."""
    disk_total_bytes: int
    """Of the file system with the agent's cache folder."""
    disk_free_bytes: int
    """For the agent's user."""


@dataclass(frozen=True)
class HostRecord:
    """What an agent tells about itself and its host, every few seconds and at each change."""

    host: str
    user: str
    pid: int
    incarnation: str
    """Made up at each start of an agent."""
    package_version: str = ""
    system: str = ""
    """Operating system and processor architecture."""
    cpus: int = 0
    """Logical CPUs that it may use."""
    devices: tuple[HostDevice, ...] = ()
    workers: tuple[HostWorker, ...] = ()
    configuration: dict[str, Any] = field(default_factory=dict)
    """As it is written down, but for the values of environment variables, which may be secrets."""
    remote_configuration: bool = False
    """Whether `workers add`, `edit` and `remove` work from other hosts."""
    resources: HostResources | None = None
    """None from an agent of before they were told."""
    version: int = MESSAGE_VERSION


@dataclass(frozen=True)
class GoneHost:
    """A host of which nothing is heard any more, though its agent has not said that it ends."""

    record: HostRecord
    """What its agent said last, without configuration and resources."""
    seen_ms: int
    """Redis time of that."""


@dataclass(frozen=True)
class Claim:
    """An item that is this worker's to run."""

    claim_id: str
    job_id: str
    index: int
    packed_spec: str
    attempt: int
    """1 for the first execution."""
