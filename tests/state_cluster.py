"""A small cluster for tests of the table of truth: workers, jobs, tickets and a clock that tests push, on a real Redis."""
from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import redis

from distributed_comfy.errors import DistributedComfyError, NodeFailed
from distributed_comfy.messages import (
    Capability,
    CollectorPlan,
    ItemResult,
    ItemSpec,
    JobRecord,
    LiteralValue,
    Patch,
    Requirement,
    TensorRef,
)
from distributed_comfy.messages import Capture as CapturedValue
from distributed_comfy.settings import Settings, read_settings
from distributed_comfy.state.jobs import FinishedItem, JobTable, Submission
from distributed_comfy.state.matching import Matching
from distributed_comfy.state.records import Claim, Outer, WorkerFacts
from distributed_comfy.state.scripts import Scripts
from distributed_comfy.state.workers import GiveBackReason, Reaped, Renewal, WorkerTable

PREFIX = "dc:"
OWNER = "owner"
LEASE_S = 600.0
"""Leases end, tickets are lost and jobs grow old when a test says so, however slow the machine is."""


NODE_FAILED = NodeFailed(
    node_id="3", class_type="Sampler", exception_type="ValueError", exception_message="no", traceback="Traceback: ..."
)


@dataclass(frozen=True)
class Job:
    """What a test says about a job."""

    items: int = 1
    submitter: str = "ann"
    priority: int = 5
    needs: tuple[str, ...] = ("Sampler",)
    """Node classes; a worker must have all of them."""
    last_needs: tuple[str, ...] | None = None
    """Node classes of the last stage, which is one item more."""
    spare: str = ""
    """As `JobRecord.spare`."""
    prepare: bool = False
    """An item that prepares for tiles comes after the others."""
    grows: bool = False
    """As `JobRecord.grows`."""
    outer: Outer = ""
    """As `Submission.outer`."""


@dataclass
class Cluster:
    """The table as one process sees it, with every ticket it sent."""

    client: redis.Redis
    settings: Settings
    scripts: Scripts
    jobs: JobTable
    workers: WorkerTable
    tickets: list[str] = field(default_factory=list)
    """Tickets sent and not answered yet."""
    sent: int = 0
    incarnations: dict[str, str] = field(default_factory=dict)

    # -- workers -------------------------------------------------------------------------------------------------------
    def join(self, *names: str, has: Iterable[str] = ("Sampler",), incarnation: str = "") -> None:
        """Workers with these node classes register (again)."""
        classes = tuple(sorted(has))
        for name in names:
            self.incarnations[name] = incarnation or self.incarnations.get(name) or f"life-of-{name}"
            facts = WorkerFacts(name, "host", "cpu", "builtin")
            self.workers.register(facts, self.incarnations[name], "cap-" + "-".join(classes), Capability("builtin", "1", classes))

    def join_guest(self, *names: str, incarnation: str = "") -> None:
        """Guests register (again)."""
        for name in names:
            self.incarnations[name] = incarnation or self.incarnations.get(name) or f"life-of-{name}"
            self.workers.register_guest(WorkerFacts(name, "host", "cpu", "comfyui"), self.incarnations[name])

    def claim_of(self, guest: str, job_id: str, claim_id: str = "", leaves: Collection[int] = ()) -> Claim | None:
        """The guest asks for an item of this job, but for those that it leaves to workers."""
        return self.workers.claim(guest, self.incarnations[guest], claim_id or uuid.uuid4().hex[:8], job_id, leaves)

    def take_of(self, guest: str, job_id: str, claim_id: str = "") -> Claim:
        """`claim_of`, where there must be an item."""
        claim = self.claim_of(guest, job_id, claim_id)
        assert claim is not None, f"nothing of {job_id} for {guest}"
        return claim

    def claim(self, worker: str, claim_id: str = "") -> Claim | None:
        """The worker asks for an item, as on a ticket."""
        if worker in self.tickets:
            self.tickets.remove(worker)
        return self.workers.claim(worker, self.incarnations[worker], claim_id or uuid.uuid4().hex[:8])

    def take(self, worker: str, claim_id: str = "") -> Claim:
        """`claim`, where there must be an item."""
        claim = self.claim(worker, claim_id)
        assert claim is not None, f"nothing for {worker}"
        return claim

    def taken(self, worker: str) -> str:
        """The job of the item that the worker gets next."""
        return self.take(worker).job_id

    def complete(self, worker: str, claim: Claim, size_bytes: int = 0) -> bool:
        """The worker hands in a result of this size."""
        return self.workers.complete(worker, self.incarnations[worker], claim, result_of(size_bytes))

    def give_back(self, worker: str, claim: Claim, how: GiveBackReason = "release", error: DistributedComfyError | None = None) -> str:
        """The worker ends the claim without a result."""
        if how != "release" and error is None:
            error = NODE_FAILED
        return self.workers.give_back(worker, self.incarnations[worker], claim, how, error)

    def renew(self, worker: str, *held: str) -> Renewal:
        """The worker says that it lives."""
        return self.workers.renew(worker, self.incarnations[worker], held)

    def work(self, worker: str, size_bytes: int = 0) -> str:
        """Claim and complete; the job's id, or empty."""
        claim = self.claim(worker)
        if claim is not None:
            assert self.complete(worker, claim, size_bytes)
        return claim.job_id if claim else ""

    def answer_tickets(self, size_bytes: int = 0, limit: int = 100_000) -> list[str]:
        """Every ticket is answered, and those that come of it; the jobs whose items ran, in order."""
        ran = []
        while self.tickets and limit > 0:
            limit -= 1
            ran.append(self.work(self.tickets[0], size_bytes))
        assert limit > 0, "tickets without end"
        return [job for job in ran if job]

    # -- jobs ----------------------------------------------------------------------------------------------------------
    def submit(self, job_id: str, job: Job | None = None, **changes: Any) -> str:
        """Enter a job; ``changes`` are fields of `Job`."""
        job = replace(job or Job(), **changes)
        self.jobs.submit(submission(job_id, job), OWNER)
        return job_id

    def extend(
        self, job_id: str, first: int, count: int, *, final: bool = True, finished: Iterable[int] = (), size_bytes: int = 100
    ) -> bool:
        """Add tiles from index ``first`` on, some of them finished by an earlier job."""
        done = [FinishedItem(index, f"old-{index}", result_of(size_bytes)) for index in finished]
        return self.jobs.extend(job_id, tile_specs(first, count), finished=done, final=final)

    def unblock(self, job_id: str, *indexes: int) -> bool:
        """Let these items run, each with a feed of its own."""
        return self.jobs.unblock(job_id, [(index, f'{{"{index}": {{}}}}') for index in indexes])

    # -- time ----------------------------------------------------------------------------------------------------------
    def reap(self, process: str = "reaper") -> Reaped:
        """One tick of the reaper, elected at once and past every grace."""
        self.client.delete(self.key("reaper"))
        run_id = str(self.client.info("server")["run_id"])
        now = self.now_ms()
        self.client.hset(self.key("reaper_facts"), mapping={"run_id": run_id, "last_ms": now, "grace_ms": 0})
        return self.workers.reap(process)

    def expire(self, worker: str) -> None:
        """The worker's lease runs out."""
        self.client.delete(self.key("lease", worker))

    def disown(self, job_id: str) -> None:
        """The owner's lease runs out."""
        self.client.delete(self.key("owner", job_id))

    def age_tickets(self) -> None:
        """A tick passes for every ticket under way."""
        for name in self.client.smembers(self.key("workers")):
            self.client.hset(self.key("worker", name), "ticketed_ms", 0)

    def end_backoff(self) -> None:
        """Every wait is over."""
        for entry in self.client.zrange(self.key("backoff"), 0, -1):
            self.client.zadd(self.key("backoff"), {entry: 0})

    def now_ms(self) -> int:
        """Redis time."""
        seconds, micros = self.client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def key(self, name: str, *parts: str) -> str:
        """A key's full name."""
        return self.scripts.keys(name, *parts)

    def number(self, job_id: str, field_name: str) -> int:
        """A counter of a job."""
        return int(self.client.hget(self.key("job", job_id), field_name) or 0)


def open_cluster(url: str, **settings: Any) -> Cluster:
    """A cluster on an empty Redis."""
    client = redis.Redis.from_url(url, decode_responses=True)
    return cluster_of(client, **settings)


def cluster_of(client: Any, **settings: Any) -> Cluster:
    """A cluster behind this client."""
    times = dict.fromkeys(("lease_ttl_s", "owner_ttl_s", "reaper_interval_s", "priority_aging_s"), LEASE_S)
    chosen = read_settings(**{"key_prefix": PREFIX, **times, **settings})
    cluster: Cluster

    def send(names: Sequence[str]) -> None:
        cluster.tickets.extend(names)
        cluster.sent += len(names)

    scripts = Scripts(client, PREFIX, send)
    matching = Matching(scripts, has_all_classes)
    cluster = Cluster(client, chosen, scripts, JobTable(scripts, matching, chosen), WorkerTable(scripts, matching, chosen))
    return cluster


def has_all_classes(requirement: Requirement, capability: Capability) -> bool:
    """The rule of these tests."""
    return set(requirement.node_classes) <= set(capability.node_classes)


def submission(job_id: str, job: Job) -> Submission:
    """A job as the orchestrator would enter it."""
    count = job.items + job.prepare + (job.last_needs is not None)
    record = JobRecord(
        job_id,
        job.submitter,
        job.priority,
        count,
        ("p",),
        "p",
        requirement=Requirement("", job.needs),
        last_requirement=Requirement("", job.last_needs) if job.last_needs is not None else None,
        has_prepare=job.prepare,
        has_last_stage=job.last_needs is not None,
        grows=job.grows,
        collectors=(CollectorPlan("9", ("images",), consumed=True, on_missing="drop"),) if job.spare else (),
        edges=("3~0",) if job.spare == "others" else (),
    )
    assert record.spare == job.spare
    specs = [ItemSpec(k, "generate", "p", ("9",), (Patch("3", "seed", 2**63 + k),), str(2**63 + k)) for k in range(job.items)]
    if job.prepare:
        specs.append(ItemSpec(job.items, "prepare", "p", ("9",)))
    if job.last_needs is not None:
        specs.append(ItemSpec(count - 1, "last", "p", ("9",)))
    last = "sig-" + "-".join(job.last_needs) if job.last_needs is not None else ""
    prompts = {"p": {"3": {"class_type": "Sampler", "inputs": {}}}}
    return Submission(record, specs, prompts, "sig-" + "-".join(job.needs), last, outer=job.outer)


def tile_specs(first: int, count: int) -> list[ItemSpec]:
    """What `extend` adds: ``count`` tiles from index ``first`` on."""
    return [ItemSpec(k, "tile", "p", ("9",), (Patch("3", "tile", k - first),), str(k)) for k in range(first, first + count)]


def result_of(size_bytes: int) -> ItemResult:
    """A result whose blobs have this size."""
    value = TensorRef("b", "float32", (size_bytes,), size_bytes) if size_bytes else LiteralValue(1)
    return ItemResult(captures=(CapturedValue("9", "images", 0, value),), worker="w", seconds=0.1)
