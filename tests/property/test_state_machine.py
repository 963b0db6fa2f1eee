"""Random interleavings of everything that may happen to the table of truth, on a real Redis, against a plain Python model.

Every script call may be executed twice with the first reply lost.  Whoever runs one may die before any of the commands that should follow
it: the next script, a look at the capabilities, each single ticket.  At any time the server may come back as it was some steps ago, while
the processes go on as they are.  After every step the table must agree with the model, and with itself (`tests.state_audit`).  At the end
of a run, with the reaper off, everything gets done.
"""
from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from distributed_comfy.errors import EngineDied, OutOfMemory, WorkerLacks
from distributed_comfy.state.jobs import FinishedItem
from distributed_comfy.state.records import Claim, Outer
from tests.state_audit import Audit
from tests.state_cluster import OWNER, Cluster, Job, cluster_of, result_of
from tests.state_copy import StateCopy
from tests.state_model import MIB, Item, Model, ModelJob, ModelWorker

EXAMPLES = int(os.environ.get("TABLE_RUNS", "25"))
STEPS = int(os.environ.get("TABLE_STEPS", "40"))
MAX_ATTEMPTS = 3
NAMES = ("u", "v", "w")
GUEST = "guest"
CLASSES = (("A",), ("B",), ("A", "B"), ("A", "Saver"), ("A", "B", "Saver"))
ERRORS = {"engine_died": EngineDied(status="9", log_tail=""), "out_of_memory": OutOfMemory(device="d", node_id="3", exception_message="")}
COLLECTED = ("fetched", "reopen", "unblock", "extend")
NUMBER = st.integers(0, 10_000)
BATCH = 2
"""Items that one call of a script takes, so that a caller may die between two of them."""
DIES = st.integers(0, 5)
"""Before which command after the first transition the caller dies; 0: it lives."""
READS = ("live", "measure")


class CallerDied(Exception):
    """The process ends between two commands."""


@dataclass(frozen=True)
class Moment:
    """All that the server held at one time, and what the model said of it."""

    state: StateCopy
    model: Model
    tickets: list[str]


class Table(RuleBasedStateMachine):
    """The rules; the client and the number of slots are set by the test."""

    client: redis.Redis
    slots = 1

    def __init__(self) -> None:
        super().__init__()
        self.cluster: Cluster = cluster_of(
            self.client,
            slots=self.slots,
            max_attempts=MAX_ATTEMPTS,
            retry_backoff_s=1000,
            warm_slice_s=0,
            job_bytes_in_flight=10 * MIB,
            ownerless_ttl_s=1000,
        )
        self.cluster.client.flushall()
        self.cluster.jobs.set_byte_limit(14 * MIB)
        self.model = Model(MAX_ATTEMPTS, self.slots)
        self.numbers = 0
        self.old: list[tuple[str, tuple[Any, ...]]] = []
        self.moment: Moment | None = None
        self.spools: dict[str, dict[int, FinishedItem]] = {}
        """What the owners of jobs have on their disks."""
        self.ghosts: list[tuple[str, str, Claim]] = []
        """Name, incarnation and a claim of workers that were declared dead and still are at work."""
        self.twice = False
        self.dies = 0
        self.ran = 0
        """Transitions of the action that is under way."""
        self._let_callers_die()

    def _let_callers_die(self) -> None:
        """Every command goes through the scripts' object."""
        scripts = self.cluster.scripts
        run, run_together, reply, send = scripts.run, scripts.run_together, scripts.reply, scripts._send_tickets

        def run_perhaps_twice(name: str, *args: str | int) -> list[str]:
            answer = run(name, *args)
            self.ran += name not in READS
            again = name in ("submit", "complete", "give_back") or (name == "collect" and args[0] in COLLECTED)
            if again and answer[0] != "no":
                self.old.append((name, args))
            return run(name, *args) if self.twice else answer

        def run_together_perhaps_in_part(calls: Sequence[tuple[str, Sequence[str | int]]]) -> list[list[str]]:
            if self.twice or self.dies:
                return [run_perhaps_twice(name, *args) for name, args in calls]
            self.old += [(name, tuple(args)) for name, args in calls if name == "submit"]
            return run_together(calls)

        def reply_perhaps(call: Callable[[], Any]) -> Any:
            self._perhaps_die()
            return reply(call)

        def send_perhaps(names: Sequence[str]) -> None:
            for name in names:
                self._perhaps_die()
                send([name])

        scripts.run = run_perhaps_twice  # type: ignore[method-assign]
        scripts.run_together = run_together_perhaps_in_part  # type: ignore[method-assign]
        scripts.reply = reply_perhaps  # type: ignore[method-assign,assignment]
        scripts._send_tickets = send_perhaps

    def _perhaps_die(self) -> None:
        if not self.dies or not self.ran:
            return
        if self.dies == 1:
            raise CallerDied
        self.dies -= 1

    # -- choosing ------------------------------------------------------------------------------------------------------
    def job(self, number: int, *states: str) -> ModelJob | None:
        found = [job for job in self.model.jobs.values() if not states or job.state in states]
        return found[number % len(found)] if found else None

    def worker(self, number: int) -> ModelWorker:
        return list(self.model.workers.values())[number % len(self.model.workers)]

    def held(self, number: int) -> tuple[ModelWorker, Claim] | None:
        found = [(worker, claim, at) for worker in self.model.workers.values() for claim, at in worker.held.items()]
        if not found:
            return None
        worker, claim, (job, index) = found[number % len(found)]
        return worker, Claim(claim, job, index, "", 1)

    def does(self, action: Callable[[], Any], twice: bool, dies: int) -> Any:
        """Run a transition; None where the caller died after it."""
        self.twice, self.dies, self.ran = twice, dies, 0
        try:
            return action()
        except CallerDied:
            return None
        finally:
            self.twice, self.dies = False, 0

    # -- what there is to begin with -----------------------------------------------------------------------------------
    @initialize(classes=st.lists(st.sampled_from(CLASSES), max_size=3), jobs=st.integers(0, 2), number=NUMBER)
    def begin(self, classes: list[tuple[str, ...]], jobs: int, number: int) -> None:
        """Some workers and jobs, without which nothing can happen."""
        for name, its in zip(NAMES, classes, strict=False):
            self.register(name, its, False, 0)
        for k in range(jobs):
            choice = (number + k) * 7919 % 997  # small numbers are drawn most often
            spare = ("", "all", "others")[choice % 3]
            self.submit(choice % 4, bool(choice & 4), bool(choice & 8), "AB"[k], choice % 5 == 0, "ann", 5, spare, "", False, 0)
            if choice & 16:
                self.extend(k, choice % 5, 0, choice % 7, MIB, bool(choice & 32), False, 0)
                self.unblock(k, False, 0)

    # -- workers -------------------------------------------------------------------------------------------------------
    @rule(name=st.sampled_from(NAMES), classes=st.sampled_from(CLASSES), twice=st.booleans(), dies=DIES)
    def register(self, name: str, classes: tuple[str, ...], twice: bool, dies: int) -> None:
        known = self.model.workers.get(name)
        uncertain = []
        if known and known.alive:
            if known.classes != frozenset(classes):
                known.classes, known.barred = frozenset(classes), set()
            known.down = False
        else:
            self.numbers += 1
            if known:
                uncertain = self._dies(known)
            barred = known.barred if known and known.classes == frozenset(classes) else set()
            self.model.workers[name] = ModelWorker(name, frozenset(classes), f"life {self.numbers}", barred=barred)
        incarnation = self.model.workers[name].incarnation
        self.does(lambda: self.cluster.join(name, has=classes, incarnation=incarnation), twice, dies)
        self._adopt_order(uncertain)
        self.model.workers[name].compared = self._is_compared(self.model.workers[name])
        if not self.model.workers[name].compared:  # it died too early to be called for everything it can run
            assert dies
            self._process_ends(self.model.workers[name])

    def _process_ends(self, worker: ModelWorker) -> None:
        worker.alive = False
        worker.held.clear()
        self.cluster.expire(worker.name)

    def _is_compared(self, worker: ModelWorker) -> bool:
        """False where its capability was entered, but not yet compared with what the jobs need that count as compared."""
        cap = self.cluster.client.hget(self.cluster.key("worker", worker.name), "cap")
        served = self.cluster.client.smembers(self.cluster.key("cap_sigs", str(cap)))
        sigs = self.cluster.client.smembers(self.cluster.key("matched"))
        return all(sig in served for sig in sigs if set(sig.split("!")[0].removeprefix("sig-").split("-")) <= worker.classes)

    @precondition(lambda self: self.model.workers)
    @rule(number=NUMBER, keep=st.booleans())
    def lease_runs_out(self, number: int, keep: bool) -> None:
        worker = self.worker(number)
        worker.alive = False
        self.cluster.expire(worker.name)
        if not keep:
            worker.held.clear()

    @precondition(lambda self: self.model.workers)
    @rule(number=NUMBER, order=st.sampled_from(["drain", "undrain", "suspend", "leave"]), twice=st.booleans(), dies=DIES)
    def worker_stops_claiming(self, number: int, order: str, twice: bool, dies: int) -> None:
        worker = self.worker(number)
        if order in ("drain", "undrain"):
            worker.drained = order == "drain"
            self.does(lambda: self.cluster.jobs.drain(worker.name, worker.drained), twice, dies)
            return
        worker.down = True
        if order == "leave":
            worker.alive = False
            for job, index in self.model.running(worker.name):
                job.items[index].free("pending")
        self.does(lambda: getattr(self.cluster.workers, order)(worker.name, worker.incarnation), twice, dies)

    @precondition(lambda self: self.model.workers)
    @rule(number=NUMBER, forget=st.booleans(), twice=st.booleans(), dies=DIES)
    def renew(self, number: int, forget: bool, twice: bool, dies: int) -> None:
        worker = self.worker(number)
        if forget:
            worker.held.clear()
        answer = self.does(lambda: self.cluster.renew(worker.name, *worker.held), twice, dies)
        lost = self.model.renewed(worker)
        assert answer is None or (answer.alive and set(answer.lost) == lost)

    @precondition(lambda self: self.model.workers)
    @rule(number=NUMBER)
    def a_sign_of_life_comes_a_tick_after_tickets_were_lost(self, number: int) -> None:
        """The broker has dropped all that were for this worker; the table learns it here, and not from the reaper."""
        worker = self.worker(number)
        self.cluster.tickets[:] = [name for name in self.cluster.tickets if name != worker.name]
        self.cluster.client.hset(self.cluster.key("worker", worker.name), "ticketed_ms", 0)
        self.renew(number, False, False, 0)
        under_way = int(self.cluster.client.hget(self.cluster.key("worker", worker.name), "tickets") or 0)
        assert under_way == self.cluster.tickets.count(worker.name), f"{under_way} tickets for {worker.name} that nobody sent"

    # -- items ---------------------------------------------------------------------------------------------------------
    @precondition(lambda self: self.model.workers)
    @rule(number=NUMBER, renew_between=st.booleans(), on_ticket=st.booleans(), twice=st.booleans(), dies=DIES)
    def claim(self, number: int, renew_between: bool, on_ticket: bool, twice: bool, dies: int) -> None:
        name = self.cluster.tickets[number % len(self.cluster.tickets)] if on_ticket and self.cluster.tickets else ""
        worker = self.model.workers[name] if name in self.model.workers else self.worker(number)
        self.numbers += 1
        claim_id = f"c{self.numbers}"
        worker.held[claim_id] = ("", -1)  # held from before it is asked for
        if renew_between:
            lost = self.model.renewed(worker)
            assert claim_id in lost
            assert set(self.cluster.renew(worker.name, *worker.held).lost) == lost
        may = self.model.may_claim(worker) and self._is_compared(worker)
        certain = [at for at in self.model.certain(worker) if self._is_matched(at[0])] if may else []
        self.does(lambda: self.cluster.claim(worker.name, claim_id), twice, dies)
        if renew_between:
            self.model.renewed(worker)
            self.cluster.renew(worker.name, *worker.held)
        claim = self.cluster.workers.claim(worker.name, worker.incarnation, claim_id) if self._is_claimed(claim_id, worker) else None
        del worker.held[claim_id]
        if claim is None:
            assert not certain, f"{worker.name} got nothing, but there is {certain}"
            return
        job = self.model.jobs[claim.job_id]
        assert self.model.may_claim(worker)
        assert job.on_offer()
        assert job.items[claim.index].state == "pending"
        assert self.model.serves(worker, job, claim.index)
        self.model.claimed(claim.job_id, claim.index, claim_id, worker.name)
        worker.held[claim_id] = (claim.job_id, claim.index)

    @precondition(lambda self: self.model.jobs)
    @rule(number=NUMBER, twice=st.booleans(), dies=DIES)
    def a_guest_claims(self, number: int, twice: bool, dies: int) -> None:
        guest = self.model.workers.get(GUEST)
        if guest is None or not guest.alive or guest.down:
            self._guest_joins(twice, dies)
        guest, job = self.model.workers[GUEST], self.job(number)
        assert job is not None
        self.numbers += 1
        claim_id = f"c{self.numbers}"
        self.does(lambda: self.cluster.claim_of(GUEST, job.name, claim_id), twice, dies)
        claim = self.cluster.claim_of(GUEST, job.name, claim_id) if self._is_claimed(claim_id, guest) else None
        offered = [index for index, item in enumerate(job.items) if item.state == "pending" and not job.is_last(index) and job.on_offer()]
        may = not guest.drained and not self.model.running(GUEST)
        if claim is None:
            assert not may or not offered or (job.in_flight() and job.expected != (0, True)), f"the guest got nothing of {job}"
            return
        assert may and claim.job_id == job.name and claim.index in offered
        self.model.claimed(job.name, claim.index, claim_id, GUEST)
        guest.held[claim_id] = (job.name, claim.index)

    def _guest_joins(self, twice: bool, dies: int) -> None:
        known = self.model.workers.get(GUEST)
        uncertain = []
        if known is not None and known.alive:
            known.down = False
        else:
            self.numbers += 1
            uncertain = self._dies(known) if known else []
            self.model.workers[GUEST] = ModelWorker(GUEST, frozenset(), f"life {self.numbers}")
        incarnation = self.model.workers[GUEST].incarnation
        self.does(lambda: self.cluster.join_guest(GUEST, incarnation=incarnation), twice, dies)
        self._adopt_order(uncertain)

    @precondition(lambda self: self.model.workers)
    @rule(number=NUMBER, count=st.integers(1, 3), size=st.sampled_from([0, MIB]))
    def work(self, number: int, count: int, size: int) -> None:
        """Some tickets are answered, and what they bring is done at once."""
        for _ in range(count):
            held = {claim for worker in self.model.workers.values() for claim in worker.held}
            self.claim(number, False, True, False, 0)
            found = [claim for worker in self.model.workers.values() for claim in worker.held]
            for position, claim in enumerate(found):
                if claim not in held:
                    self.complete(position, size, False, False, 0)

    def _is_matched(self, job: str) -> bool:
        """False where its submitter died before all capabilities were compared; the next owner does that."""
        sigs = self.cluster.client.hmget(self.cluster.key("job", job), "sig", "last_sig")
        return all(self.cluster.client.sismember(self.cluster.key("matched"), sig) for sig in sigs if sig)

    def _is_claimed(self, claim_id: str, worker: ModelWorker) -> bool:
        return bool(self.cluster.client.hexists(self.cluster.key("claims", worker.name), claim_id))

    @rule(number=NUMBER, size=st.sampled_from([0, MIB, 4 * MIB, 20 * MIB]), again=st.booleans(), twice=st.booleans(), dies=DIES)
    def complete(self, number: int, size: int, again: bool, twice: bool, dies: int) -> None:
        found = self.held(number)
        if not found:
            return
        worker, claim = found
        valid = self.model.valid(claim.job_id, claim.index, claim.claim_id)
        outcome = self._as(worker, lambda: self.cluster.complete(worker.name, claim, size), twice, dies)
        if outcome is None:  # it died over its tickets; the result is in, and it may say so again
            outcome = self._as(worker, lambda: self.cluster.complete(worker.name, claim, size), False, 0)
        assert outcome is valid
        if valid:
            self.model.completed(claim.job_id, claim.index, size)
        if again:
            assert self._as(worker, lambda: self.cluster.complete(worker.name, claim, size), False, 0) is valid
        del worker.held[claim.claim_id]

    @rule(
        number=NUMBER,
        how=st.sampled_from(["release", "release", "retry", "retry", "lacks", "elsewhere", "refused", "final"]),
        error=st.sampled_from(sorted(ERRORS)),
        twice=st.booleans(),
        dies=DIES,
    )
    def give_back(self, number: int, how: Any, error: str, twice: bool, dies: int) -> None:
        found = self.held(number)
        if not found:
            return
        worker, claim = found
        if worker.name == GUEST and how in ("lacks", "elsewhere", "refused"):
            how = "release"  # it says for itself what it can run
        given = WorkerLacks(worker=worker.name, lacks="x") if how == "lacks" else ERRORS[error]
        outcome = self._as(worker, lambda: self.cluster.give_back(worker.name, claim, how, given), twice, dies)
        expected = "lost"
        if self.model.valid(claim.job_id, claim.index, claim.claim_id):
            expected = "ok" if self._ends(worker, self.model.jobs[claim.job_id], claim.index, how, error) else "failed"
        assert outcome in (None, "lost" if twice else expected)
        del worker.held[claim.claim_id]

    def _ends(self, worker: ModelWorker, job: ModelJob, index: int, how: str, error: str) -> bool:
        if how == "release":
            job.items[index].free("pending")
            return True
        if how == "retry" or (how == "elsewhere" and not self.model.others_may(worker, job, index)):
            return self.model.lost(job, index, error)
        if how in ("lacks", "elsewhere") or (how == "refused" and job.outer):
            return self.model.lacks(worker, job, index)
        self.model.failed(job, index, job.items[index].claim, worker.name)
        return False

    def _as(self, worker: ModelWorker, action: Callable[[], Any], twice: bool, dies: int) -> Any:
        """What the worker's process does; it may be of an earlier life than the table knows."""
        return self.does(action, twice, dies)

    @precondition(lambda self: self.ghosts)
    @rule(number=NUMBER, completes=st.booleans(), twice=st.booleans(), dies=DIES)
    def a_worker_that_was_declared_dead_hands_in(self, number: int, completes: bool, twice: bool, dies: int) -> None:
        name, incarnation, claim = self.ghosts.pop(number % len(self.ghosts))
        valid = self.model.valid(claim.job_id, claim.index, claim.claim_id)
        workers = self.cluster.workers
        if completes:
            answer = self.does(lambda: workers.complete(name, incarnation, claim, result_of(MIB)), twice, dies)
            assert answer in (None, valid)
            if valid:
                self.model.completed(claim.job_id, claim.index, MIB)
            return
        answer = self.does(lambda: workers.give_back(name, incarnation, claim, "release"), twice, dies)
        assert answer in (None, "ok" if valid and not twice else "lost")
        if valid:
            self.model.jobs[claim.job_id].items[claim.index].free("pending")

    @precondition(lambda self: self.old)
    @rule(number=NUMBER)
    def an_old_command_comes_again(self, number: int) -> None:
        name, args = self.old[number % len(self.old)]
        self.cluster.tickets += _workers_in(name, self.cluster.scripts._scripts[name](keys=(), args=args))

    # -- jobs ----------------------------------------------------------------------------------------------------------
    @precondition(lambda self: len(self.model.jobs) < 6)
    @rule(
        items=st.integers(0, 4),
        prepare=st.booleans(),
        grows=st.booleans(),
        needs=st.sampled_from(["A", "B"]),
        last=st.booleans(),
        user=st.sampled_from(["ann", "bob"]),
        priority=st.integers(4, 6),
        spare=st.sampled_from(["", "", "all", "others"]),
        outer=st.sampled_from(["", "", "checked", "runs"]),
        twice=st.booleans(),
        dies=DIES,
    )
    def submit(
        self,
        items: int,
        prepare: bool,
        grows: bool,
        needs: str,
        last: bool,
        user: str,
        priority: int,
        spare: str,
        outer: Outer,
        twice: bool,
        dies: int,
    ) -> None:
        self.numbers += 1
        name = f"j{self.numbers}"
        prepare = prepare or not items
        rows = [Item() for _ in range(items)] + [Item("blocked" if items else "pending")] * prepare + [Item("blocked")] * last
        self.model.jobs[name] = ModelJob(name, rows, needs, "Saver" if last else "", spare, prepare=prepare, grows=grows, outer=outer)
        job = Job(items, user, priority, (needs,), ("Saver",) if last else None, spare, prepare, grows, outer)
        self.does(lambda: self.cluster.submit(name, job), twice, dies)

    @precondition(lambda self: self.model.jobs)
    @rule(
        number=NUMBER,
        count=st.integers(0, 4),
        known=st.integers(0, 2),
        finished=st.integers(0, 15),
        size=st.sampled_from([0, MIB, 4 * MIB]),
        final=st.booleans(),
        twice=st.booleans(),
        dies=DIES,
    )
    def extend(self, number: int, count: int, known: int, finished: int, size: int, final: bool, twice: bool, dies: int) -> None:
        """Tiles are added, some of them done before, and some that the job has already."""
        job = self.job(number)
        if job is None:
            return
        end, known = len(job.items), min(known, job.tiles)
        first, done = end - known, [end + k for k in range(count) if finished >> k & 1]
        again = [*done, *range(first, end)]
        answer = self.does(
            lambda: self.cluster.extend(job.name, first, known + count, final=final, finished=again, size_bytes=size), twice, dies
        )
        went_well = True
        for start in range(first, max(first + 1, end + count), BATCH)[: self.ran]:
            stop = min(start + BATCH, end + count)
            new = range(max(start, end), stop)
            rows = [Item("done", f"old-{k}", size=size, fetched=True) if k in done else Item("blocked") for k in new]
            ends = final and stop == end + count
            if rows or (ends and job.grows):
                went_well = job.state == "active" and job.grows
                if went_well:
                    self.model.extended(job, rows, ends)
        assert answer in (None, went_well)

    @precondition(lambda self: self.model.jobs)
    @rule(number=NUMBER, order=st.sampled_from(["pause", "resume", "cancel", "priority"]), twice=st.booleans(), dies=DIES)
    def steer(self, number: int, order: str, twice: bool, dies: int) -> None:
        job = self.job(number, "active")
        if job is None:
            return
        if order == "cancel":
            self.model.ended(job, "cancelled")
            self.does(lambda: self.cluster.jobs.cancel(job.name, "enough"), twice, dies)
        elif order == "priority":
            self.does(lambda: self.cluster.jobs.set_priority(job.name, number % 10), twice, dies)
        else:
            job.paused = order == "pause"
            self.does(lambda: getattr(self.cluster.jobs, order)(job.name), twice, dies)

    @rule(number=NUMBER, twice=st.booleans(), dies=DIES)
    def retry(self, number: int, twice: bool, dies: int) -> None:
        job = self.job(number, "failed", "cancelled")
        if job is not None:
            self.model.retried(job)
            self.old = [(name, args) for name, args in self.old if args[:2] != ("unblock", job.name)]  # it may be blocked again
            self.does(lambda: self.cluster.jobs.retry(job.name), twice, dies)

    @precondition(lambda self: self.model.jobs)
    @rule(number=NUMBER, twice=st.booleans(), dies=DIES)
    def fetch(self, number: int, twice: bool, dies: int) -> None:
        job = self.job(number)
        if job is not None:
            self._fetch(job, twice, dies)

    def _fetch(self, job: ModelJob, twice: bool, dies: int) -> bool:
        fetched = False
        for index, item in enumerate(job.items):
            if item.state == "done" and not item.fetched:
                item.fetched = fetched = True
                self.spools.setdefault(job.name, {})[index] = FinishedItem(index, item.claim, result_of(item.size))
                self.does(lambda index=index, item=item: self.cluster.jobs.mark_fetched(job.name, index, item.claim), twice, dies)
        return fetched

    @precondition(lambda self: self.model.jobs)
    @rule(number=NUMBER, twice=st.booleans(), dies=DIES)
    def reopen(self, number: int, twice: bool, dies: int) -> None:
        job = self.job(number, "active", "done")
        done = [index for index, item in enumerate(job.items) if item.state == "done"] if job else []
        if job is None or not done:
            return
        index = done[number % len(done)]
        claim = job.items[index].claim
        self.model.reopened(job, index)
        self.spools.get(job.name, {}).pop(index, None)
        self.old = [(name, args) for name, args in self.old if args[:2] != ("unblock", job.name)]  # a tile is blocked again
        assert self.does(lambda: self.cluster.jobs.reopen(job.name, index, claim), twice, dies) in (True, None)

    @rule(number=NUMBER, twice=st.booleans(), dies=DIES)
    def unblock(self, number: int, twice: bool, dies: int) -> None:
        job = self.job(number, "active")
        if job is None:
            return
        blocked = [index for index, item in enumerate(job.items) if item.state == "blocked"]
        ready = [*blocked[number % 3 :], number % len(job.items)]
        assert self.does(lambda: self.cluster.unblock(job.name, *ready), twice, dies) in (True, None)
        job.unblocked(ready[: self.ran * BATCH])

    @precondition(lambda self: self.spools)
    @rule(number=NUMBER, twice=st.booleans(), dies=DIES)
    def the_owner_has_what_the_table_forgot(self, number: int, twice: bool, dies: int) -> None:
        """It says so of all items that lie in its spool."""
        name = list(self.spools)[number % len(self.spools)]
        job, finished = self.model.jobs.get(name), list(self.spools[name].values())
        answer = self.does(lambda: self.cluster.jobs.restore(name, finished), twice, dies)
        went_well = True
        for start in range(0, len(finished), BATCH)[: self.ran]:
            went_well = job is not None and job.state == "active"
            if job is not None and went_well:
                self.model.restored(job, [(item.index, item.claim_id, item.result.size_bytes) for item in finished[start : start + BATCH]])
        assert answer in (None, went_well)

    @precondition(lambda self: self.model.jobs)
    @rule(number=NUMBER, twice=st.booleans(), dies=DIES)
    def owner_goes_or_comes(self, number: int, twice: bool, dies: int) -> None:
        job = self.job(number)
        if job is None:
            return
        job.owned = not job.owned
        if job.owned:
            job.parked = job.parked and job.state != "active"
            self.does(lambda: self.cluster.jobs.own(job.name, OWNER), twice, dies)
        else:
            self.cluster.disown(job.name)

    # -- a server that forgets -----------------------------------------------------------------------------------------
    @precondition(lambda self: self.model.jobs)
    @rule()
    def the_server_writes_everything_down(self) -> None:
        self.moment = Moment(StateCopy.of(self.cluster.client), copy.deepcopy(self.model), list(self.cluster.tickets))

    @precondition(lambda self: self.moment)
    @rule()
    def the_server_comes_back_as_it_was(self) -> None:
        """Processes go on: they hold what they held, and know nothing of it."""
        assert self.moment is not None
        self.moment.state.restore(self.cluster.client)
        self.cluster.tickets[:] = self.moment.tickets
        before, self.model, self.old = self.model, copy.deepcopy(self.moment.model), []
        for worker in self.model.workers.values():
            self.cluster.incarnations[worker.name] = worker.incarnation
            now = before.workers.get(worker.name)
            if now is None or now.incarnation != worker.incarnation:
                self._process_ends(worker)
                continue
            worker.held = dict(now.held)
            if not now.alive:
                worker.alive = False
                self.cluster.expire(worker.name)
        for job in self.model.jobs.values():
            if job.owned and not before.jobs[job.name].owned:
                job.owned = False
                self.cluster.disown(job.name)
        self.spools = {name: spool for name, spool in self.spools.items() if name in self.model.jobs}

    # -- time ----------------------------------------------------------------------------------------------------------
    @rule(tickets_lost=st.booleans(), backoff_over=st.booleans(), twice=st.booleans(), dies=DIES)
    def reap(self, tickets_lost: bool, backoff_over: bool, twice: bool, dies: int) -> None:
        if tickets_lost:
            self.cluster.age_tickets()
        if backoff_over:
            self.cluster.end_backoff()
        dead = [worker for worker in self.model.workers.values() if not worker.alive]
        uncertain = [job for worker in dead for job in self._dies(worker)]
        for worker in dead:
            del self.model.workers[worker.name]
        self.model.ticked(backoff_over)
        self.does(self.cluster.reap, twice, dies)
        self._adopt_order(uncertain)

    def _dies(self, worker: ModelWorker) -> list[ModelJob]:
        """Its items are lost; the jobs they were of."""
        self.ghosts += [(worker.name, worker.incarnation, Claim(claim, *at, "", 1)) for claim, at in worker.held.items()]
        lost = self.model.running(worker.name)
        for job, index in lost:
            if job.items[index].state == "running":
                self.model.lost(job, index, "worker_lost")
        return [job for job, _ in lost]

    def _adopt_order(self, jobs: Sequence[ModelJob]) -> None:
        """Of several items lost at once, the table chooses which is counted first; a job fails with the one whose last attempt it was."""
        for job in jobs:
            if job.state != "failed":
                continue
            states = self.cluster.jobs.item_states(job.name)
            texts = self.cluster.client.hgetall(self.cluster.key("item", job.name))
            for index, item in enumerate(job.items):
                if item.state in ("pending", "stopped", "failed"):
                    assert states[index].state in ("pending", "stopped", "failed")
                    item.state, item.claim, item.worker = states[index].state, states[index].claim_id, states[index].worker
                    item.attempts = json.loads(texts.get(str(index), "{}")).get("a") or {}
            assert any(item.state == "failed" for item in job.items)
            job.fatal = self.cluster.number(job.name, "fatal")

    @rule(number=NUMBER)
    def a_crash_takes_back_what_was_finished_and_fetched(self, number: int) -> None:
        """The item is to be done again, and its owner has it."""
        if self.model.workers and self.model.jobs:
            self.the_server_writes_everything_down()
            self.work(number, 1, MIB)
            self.fetch(number, False, 0)
            self.the_server_comes_back_as_it_was()
            if self.spools:
                self.the_owner_has_what_the_table_forgot(number, False, 0)

    @rule(number=NUMBER, times=st.integers(1, 2))
    def an_engine_dies_again_and_again(self, number: int, times: int) -> None:
        """The second time the item waits before it is tried again."""
        for _ in range(times):
            if self.model.workers:
                self.claim(number, False, True, False, 0)
                self.give_back(number, "retry", "engine_died", False, 0)
                self.reap(True, times == 1, False, 0)

    @rule(number=NUMBER)
    def a_worker_is_started_anew_before_it_is_missed(self, number: int) -> None:
        found = self.held(number)
        if found and found[0].name != GUEST:
            found[0].alive = False
            self.cluster.expire(found[0].name)
            self.register(found[0].name, tuple(sorted(found[0].classes)), False, 0)

    @precondition(lambda self: len(self.model.jobs) < 6)
    @rule(needs=st.sampled_from(["A", "B"]))
    def whoever_submits_dies_and_another_takes_the_job_over(self, needs: str) -> None:
        self.submit(1, False, False, needs, False, "ann", 5, "", "", False, 1)
        name = list(self.model.jobs)[-1]
        self.cluster.disown(name)
        assert self.cluster.jobs.own(name, OWNER)
        assert self._is_matched(name), "the new owner does what was left undone"

    @rule(number=NUMBER, claims=st.booleans())
    def a_silent_worker_is_replaced(self, number: int, claims: bool) -> None:
        """It holds an item, is declared dead, and another takes that item while it goes on."""
        found = self.held(number)
        if found:
            found[0].alive = False
            self.cluster.expire(found[0].name)
            self.reap(True, True, False, 0)
            if claims and self.model.workers:
                self.claim(number, False, True, False, 0)

    # -- what must hold ------------------------------------------------------------------------------------------------
    @invariant()
    def the_table_agrees_with_the_model_and_itself(self) -> None:
        Audit(self.cluster).check()
        for worker in self.model.workers.values():
            assert self._is_compared(worker) or not worker.compared, f"{worker.name} is called for less than it can run"
        for name, job in self.model.jobs.items():
            states = self.cluster.jobs.item_states(name)
            shown = {index: (state.state, state.claim_id if state.state in ("running", "done") else "") for index, state in states.items()}
            wanted = {index: (item.state, item.claim if item.state in ("running", "done") else "") for index, item in enumerate(job.items)}
            assert shown == wanted, name
            state = self.cluster.jobs.job_state(name).state
            expected = job.state if job.state != "active" else "parked" if job.parked else "paused" if job.paused else ""
            assert state == expected or (not expected and state in ("running", "pending")), (name, state, expected)

    def teardown(self) -> None:
        """The dust settles: everyone is back; lost tickets are replaced, by the reaper and then by signs of life; then nobody does that."""
        self.register("u", ("A", "B", "Saver"), False, 0)
        for name in ("joker", "joker2"):
            self.cluster.join(name, has=("A", "B", "Saver", "Joker"))
        for job in [job for job in self.model.jobs.values() if job.state == "active"]:
            self.cluster.jobs.own(job.name, OWNER)
            self.cluster.jobs.resume(job.name)
            self.cluster.extend(job.name, 0, 0)
        for name in self.cluster.client.sunion(self.cluster.key("workers"), self.cluster.key("guests")):
            self.cluster.renew(name)
            self.cluster.renew(name)
        self.cluster.end_backoff()
        self.cluster.age_tickets()
        self.cluster.tickets.clear()
        self.cluster.reap()
        self._lose_all_tickets_and_live_on()
        for _ in range(200):
            self.cluster.answer_tickets(MIB)
            left = [name for name, state in self.cluster.jobs.jobs().items() if not state.ended]
            if not left:
                break
            for name in left:
                states = self.cluster.jobs.item_states(name)
                for index, item in states.items():
                    if item.state == "done":
                        self.cluster.jobs.mark_fetched(name, index, item.claim_id)
                self.cluster.unblock(name, *(index for index, item in states.items() if item.state == "blocked"))
            assert self.cluster.tickets, f"stranded: {[(name, self.cluster.jobs.item_states(name)) for name in left]}"
        Audit(self.cluster).check()

    def _lose_all_tickets_and_live_on(self) -> None:
        """Only signs of life replace them; a worker that is called in another's place keeps for a tick more what it has lost itself."""
        self.cluster.tickets.clear()
        for _ in range(3):
            self.cluster.age_tickets()
            for name in self.cluster.client.smembers(self.cluster.key("workers")):
                self.cluster.renew(name)


def _workers_in(name: str, answer: Sequence[str]) -> list[str]:
    return list(answer[1:])


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes several calls with many items takes several with few."""
    monkeypatch.setattr("distributed_comfy.state.jobs._EXTEND_BATCH", BATCH)
    monkeypatch.setattr("distributed_comfy.state.jobs._UNBLOCK_BATCH", BATCH)


def _run(url: str, slots: int) -> None:
    wanted = settings(
        phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    with redis.Redis.from_url(url, decode_responses=True) as client:
        run_state_machine_as_test(type("Table", (Table,), {"client": client, "slots": slots}), settings=wanted)


def test_the_table_is_right_under_random_interleavings(redis_url: str) -> None:
    _run(redis_url, slots=1)


def test_the_table_is_right_under_random_interleavings_with_three_slots(redis_url: str) -> None:
    _run(redis_url, slots=3)


