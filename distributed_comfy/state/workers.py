"""A worker's side of the table: register, claim, complete, give back, renew; and the reaper's."""
from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from distributed_comfy.errors import DistributedComfyError, WorkerLost, WorkerNameTaken
from distributed_comfy.messages import Capability, ItemResult, dump, item_id, load
from distributed_comfy.settings import Settings
from distributed_comfy.state import celery_meta
from distributed_comfy.state.matching import Matching
from distributed_comfy.state.readable import ReadableRecords
from distributed_comfy.state.records import Claim, DeviceMemory, WorkerFacts, WorkerState
from distributed_comfy.state.scripts import Scripts

GiveBackReason = Literal["release", "retry", "lacks", "elsewhere", "refused", "final"]


def to_ms(seconds: float) -> int:
    """Seconds as whole milliseconds."""
    return round(seconds * 1000)


@dataclass(frozen=True)
class Renewal:
    """What the table answers to a sign of life."""

    alive: bool
    """False: this worker was declared dead; interrupt, drop and register anew."""
    lost: tuple[str, ...] = ()
    """Claims among those held that the table does not know (any more).

    To act on only where the engine has had the item since before the call: a claim that was being asked for was unknown then, and one
    whose end was being entered is known no longer; the answers to those calls decide about them.
    """


@dataclass(frozen=True)
class Reaped:
    """What one tick of the reaper found."""

    gone: tuple[str, ...] = ()
    """Workers taken off the table; their Celery queues can go."""
    abandoned: tuple[str, ...] = ()
    """Ended jobs that nobody collects; their blobs can go."""


class WorkerTable:
    """One worker's (or reaper's) access to the table; safe to use from several threads."""

    def __init__(self, scripts: Scripts, matching: Matching, settings: Settings) -> None:
        self._scripts = scripts
        self._matching = matching
        self._settings = settings
        self._readable = ReadableRecords()

    # -- life ----------------------------------------------------------------------------------------------------------
    def register(self, facts: WorkerFacts, incarnation: str, capability_hash: str, capability: Capability) -> None:
        """Make the worker known and able to claim; again whenever its capability changed.

        Raises:
            WorkerNameTaken: a live worker of another incarnation has the name; field ``lease_ms`` says how long its lease still runs.
        """
        called = self._register(facts, incarnation, capability_hash, dump(capability), self._settings.slots)
        try:
            self._matching.match_capability(capability_hash, capability)
        finally:
            self._scripts.send_tickets(called)

    def register_guest(self, facts: WorkerFacts, incarnation: str) -> None:
        """Make a guest known: it gets no tickets, counts for nobody's plan, and takes one item at a time of the job it names (`claim`).

        It lives by `renew` as a worker does, and what it has goes back when its lease ends.

        Raises:
            WorkerNameTaken: as `register`.
        """
        self._scripts.send_tickets(self._register(facts, incarnation, "", "", 1))

    def _register(self, facts: WorkerFacts, incarnation: str, capability_hash: str, capability: str, slots: int) -> list[str]:
        """Workers to call."""
        outcome, *rest = self._scripts.run(
            "register",
            facts.name,
            incarnation,
            capability_hash,
            slots,
            to_ms(self._settings.lease_ttl_s),
            json.dumps(asdict(facts)),
            capability,
            self._settings.max_attempts,
            *_lost_worker(facts.name),
        )
        if outcome == "taken":
            raise WorkerNameTaken(name=facts.name, lease_ms=int(rest[0]))
        return rest

    def renew(self, name: str, incarnation: str, held: Iterable[str], memory: DeviceMemory | None = None) -> Renewal:
        """Say that the worker lives and holds these claims (those it is just asking for included).

        What the table thinks it runs goes back when two calls in a row do not hold it.

        Args:
            memory: of its device, where that is known; for whoever watches.
        """
        lease_ms, tick_ms = to_ms(self._settings.lease_ttl_s), to_ms(self._settings.reaper_interval_s)
        shown = f"{memory.free_bytes}|{memory.total_bytes}" if memory else ""
        outcome, count, *rest = self._scripts.run("renew", name, incarnation, lease_ms, tick_ms, uuid.uuid4().hex, shown, *held)
        if outcome == "dead":
            return Renewal(alive=False)
        lost = tuple(rest[: int(count)])
        self._scripts.send_tickets(rest[int(count) :])
        return Renewal(alive=True, lost=lost)

    def reserve_name(self, name: str, for_s: float = 30.0) -> bool:
        """Keep a name free for a worker that is starting; False where another one is doing so."""
        client, key = self._scripts.client, self._scripts.keys("starting", name)
        return bool(self._scripts.reply(lambda: client.set(key, 1, nx=True, px=to_ms(for_s))))

    def keep_name(self, name: str, for_s: float = 30.0) -> None:
        """Keep the reservation of a worker that takes long to start."""
        self._scripts.reply(lambda: self._scripts.client.pexpire(self._scripts.keys("starting", name), to_ms(for_s)))

    def release_name(self, name: str) -> None:
        """End the reservation of a worker that does not start."""
        self._scripts.reply(lambda: self._scripts.client.delete(self._scripts.keys("starting", name)))

    def starting(self) -> list[str]:
        """Names of workers whose engines are being started."""
        client, (before, after) = self._scripts.client, self._scripts.keys("starting", "*").split("*")
        found = self._scripts.reply(lambda: list(client.scan_iter(f"{before}*{after}", count=1000)))
        return sorted(key[len(before) : len(key) - len(after)] for key in found)

    def suspend(self, name: str, incarnation: str) -> None:
        """Call the worker no more until it registers again: its engine is down, or it is about to end."""
        self._scripts.transition("steer", "suspend", name, incarnation)

    def leave(self, name: str, incarnation: str) -> None:
        """End the lease at once: what the worker has goes back, and the next tick of the reaper takes it off the table."""
        self._scripts.transition("steer", "leave", name, incarnation)

    def free(self, name: str) -> bool:
        """Let a worker's engine unload its models and give device memory back as soon as nothing runs; False where nobody heard it."""
        return self._order(name, "free")

    def look(self, name: str) -> bool:
        """Let a worker describe its models and node classes now instead of at its next interval; False where nobody heard it."""
        return self._order(name, "look")

    def end(self, name: str) -> bool:
        """Let a worker finish and end, as SIGTERM does; False where nobody heard it."""
        return self._order(name, "end")

    def _order(self, name: str, order: str) -> bool:
        client, channel = self._scripts.client, self._scripts.keys("steering", name)
        return bool(self._scripts.reply(lambda: client.publish(channel, order)))

    # -- items ---------------------------------------------------------------------------------------------------------
    def has_claim(self, name: str, claim_id: str) -> bool:
        """Whether the table knows of this claim of a worker."""
        client, key = self._scripts.client, self._scripts.keys("claims", name)
        return bool(self._scripts.reply(lambda: client.hexists(key, claim_id)))

    def claim(self, name: str, incarnation: str, claim_id: str, job_id: str = "", leaves: Collection[int] = ()) -> Claim | None:
        """The next item for this worker, or None; the same claim id gets the same answer.

        Args:
            job_id: the only job to take from, for a guest; it judges itself whether it can run the item.
            leaves: items of that job that the guest leaves to workers.
        Raises:
            WorkerLost: this worker was declared dead and must register anew.
        """
        left = json.dumps(sorted(leaves)) if leaves else ""
        outcome, *rest = self._scripts.run("claim", name, incarnation, claim_id, to_ms(self._settings.warm_slice_s), job_id, left)
        if outcome == "dead":
            raise WorkerLost(worker=name)
        fields = 4 if outcome == "item" else 0
        self._scripts.send_tickets(rest[fields:])
        if outcome == "none":
            return None
        job_id, index, packed, attempt = rest[:fields]
        return Claim(claim_id, job_id, int(index), packed, int(attempt))

    def complete(self, name: str, incarnation: str, claim: Claim, result: ItemResult) -> bool:
        """Enter the result; False where the claim is no longer valid, and then the caller deletes its own blobs."""
        meta = celery_meta.success(claim.job_id, claim.index, result)
        outcome = self._scripts.transition(
            "complete",
            name,
            incarnation,
            claim.claim_id,
            claim.job_id,
            claim.index,
            dump(result),
            result.size_bytes,
            meta,
            to_ms(result.seconds),
        )
        return outcome == "ok"

    def give_back(self, name: str, incarnation: str, claim: Claim, how: GiveBackReason, error: DistributedComfyError | None = None) -> str:
        """End the claim without a result.

        Args:
            how: ``release`` uses up no attempt; ``retry`` counts one of the error's class; ``lacks`` bars this worker from the job;
                ``elsewhere`` does so where another worker is left for it, and else counts as ``retry``; ``refused`` does so where a
                ComfyUI has accepted the prompt, and else is ``final``, which fails the item and with it the job.
            error: why; None only for ``release``.
        Returns:
            ``ok`` (it will run again), ``failed`` or ``lost`` (the claim was no longer valid).
        """
        wire = {**(error.to_wire() if error else {}), "worker": name, "index": claim.index}
        meta = celery_meta.failure(claim.job_id, claim.index, error) if error else ""
        return self._scripts.transition(
            "give_back",
            name,
            incarnation,
            claim.claim_id,
            claim.job_id,
            claim.index,
            how,
            json.dumps(wire, default=str),
            error.code if error else "",
            self._settings.max_attempts,
            to_ms(self._settings.retry_backoff_s),
            meta,
        )

    # -- reaper --------------------------------------------------------------------------------------------------------
    def reap(self, process_id: str) -> Reaped:
        """One tick; does nothing where another process was elected."""
        interval_ms = to_ms(self._settings.reaper_interval_s)
        run_id = str(self._scripts.reply(lambda: self._scripts.client.info("server"))["run_id"])
        answer = self._scripts.run(
            "reap",
            f"{process_id} {uuid.uuid4().hex}",
            max(1, int(interval_ms * 0.9)),
            interval_ms,
            to_ms(self._settings.lease_ttl_s),
            run_id,
            to_ms(self._settings.ownerless_ttl_s),
            self._settings.max_attempts,
            *_lost_worker("(its lease ran out)"),
        )
        gone, rest = _counted(answer)
        abandoned, workers = _counted(rest)
        self._scripts.send_tickets(workers)
        return Reaped(gone, abandoned)

    # -- listing -------------------------------------------------------------------------------------------------------
    def barred(self, job_id: str) -> frozenset[str]:
        """Workers that have proved unable to run the job's items, although they seemed to be able."""
        client, keys = self._scripts.client, self._scripts.keys
        signature = self._scripts.reply(lambda: client.hget(keys("job", job_id), "sig")) or ""
        return frozenset(self._scripts.reply(lambda: client.smembers(keys("sig_barred", signature))))

    def workers(self, among: Collection[str] | None = None) -> list[WorkerState]:
        """All registered workers, by name; not those that left in an orderly way, which the next tick of a reaper takes off the table.

        Args:
            among: only these, where they are registered.
        """
        client, keys = self._scripts.client, self._scripts.keys
        names = sorted(self._scripts.reply(lambda: client.smembers(keys("workers"))) if among is None else among)
        pipe = client.pipeline(transaction=False)
        for name in names:
            pipe.hgetall(keys("worker", name))
            pipe.hvals(keys("claims", name))
            pipe.pttl(keys("lease", name))
            pipe.get(keys("memory", name))
        replies = self._scripts.reply(pipe.execute)
        rows = zip(names, *(replies[first::4] for first in range(4)), strict=True)
        found = (self._worker_state(*row) for row in rows if "facts" in row[1] and row[1].get("left") != "1")
        return [state for state in found if state is not None]

    def _worker_state(self, name: str, *row: Any) -> WorkerState | None:
        """None where it cannot be read: a worker of another version is no reason to see none of the others."""
        return self._readable.read(f"worker {name}", lambda: _worker_state(name, *row))


def _lost_worker(name: str) -> tuple[str, str]:
    """Error and task meta of an item that has used up its attempts on workers that were lost."""
    error = WorkerLost(worker=name)
    return json.dumps({**error.to_wire(), "worker": ""}), celery_meta.template_failure(error)


def _counted(parts: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    count = int(parts[0])
    return tuple(parts[1 : 1 + count]), list(parts[1 + count :])


def _worker_state(name: str, fields: dict[str, str], claims: Sequence[str], lease_ms: int, memory: str | None) -> WorkerState:
    facts = load(WorkerFacts, fields["facts"])
    if facts.name != name:
        raise ValueError(f"it says that it is {facts.name!r}")
    state: Literal["idle", "ticketed", "busy", "drained", "down", "lost"] = "idle"
    if lease_ms < 0:
        state = "lost"
    elif claims:
        state = "busy"
    elif fields.get("down") == "1":
        state = "down"
    elif fields.get("drained") == "1":
        state = "drained"
    elif int(fields.get("tickets", 0)) > 0:
        state = "ticketed"
    items = tuple(item_id(*_split(where)) for where in claims)
    return WorkerState(
        facts,
        state,
        items,
        fields.get("cap", ""),
        max(0, lease_ms),
        DeviceMemory(*map(int, memory.split("|"))) if memory else None,
        int(fields.get("engine_ms", 0)) / 1000,
        fields.get("drained") == "1",
    )


def _split(where: str) -> tuple[str, int]:
    job_id, _, index = where.partition("|")
    return job_id, int(index)


__all__ = ["GiveBackReason", "Reaped", "Renewal", "WorkerTable", "to_ms"]
