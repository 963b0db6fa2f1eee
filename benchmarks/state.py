"""The table of truth alone: what its scripts cost the server with many jobs, workers and pending items.

``python -m benchmarks.state [--quick] [--json FILE]`` runs only this one; it needs a private Redis and no workers.
"""
from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import redis

from benchmarks.rows import Row, Section, median, percentile, shown, spread
from distributed_comfy.messages import Capability, ItemResult, ItemSpec, JobRecord, LiteralValue, Patch, Requirement
from distributed_comfy.messages import Capture as CapturedValue
from distributed_comfy.orchestrator.servers import redis_servers
from distributed_comfy.settings import read_settings
from distributed_comfy.state.jobs import JobTable, Submission
from distributed_comfy.state.matching import Matching
from distributed_comfy.state.records import Claim, WorkerFacts
from distributed_comfy.state.scripts import Scripts
from distributed_comfy.state.workers import WorkerTable

CLAIM_MS, BYTES_PER_ITEM, SLOWDOWN = 0.3, 400.0, 1.25
OWNER = "benchmark"
RESULT = ItemResult(captures=(CapturedValue("9", "images", 0, LiteralValue(1)),), worker="w", seconds=1.0)

HOW = """\
Server times are what the server itself says it spent in a script (its SLOWLOG, every call), round trips what the client waits; the server
keeps an append-only file, as in production. *1 000 jobs x 300 workers*: each job has 10 items pending, of 10 submitters; every worker
claims, then every worker completes, several rounds; a job is matched by its signature, a worker by its capability, and every worker serves
every signature. *100 000 pending*: 10 jobs of 10 000 items with a seed each; memory is what the server's used_memory grew by. A slowdown
compares medians of claims with 100 000 and with 100 pending. *Reaper*: one tick over 1 000 jobs and 300 workers, all busy, and then all
idle with nothing to do. *Tiles*: one item, then so many tiles are added to its job and all of them made claimable; each script serves
nobody else meanwhile, so what counts is the longest call. A tile's spec has a seed and four numbers, its feed one blob."""
SCRIPT_MS = 10.0
_LOGGED_US = 10  # no script is faster, and hardly any command inside one is slower: logging those would cost more than they do


@dataclass(frozen=True)
class Shape:
    """A crowd."""

    jobs: int
    workers: int
    signatures: int
    capabilities: int
    submitters: int = 10
    items: int = 10


@dataclass
class Table:
    """The table on a private server, with nobody behind the tickets."""

    client: Any
    scripts: Scripts
    jobs: JobTable
    workers: WorkerTable
    tickets: list[str] = field(default_factory=list)

    def fill(self, shape: Shape) -> None:
        """An empty server, then these workers and jobs."""
        self.client.flushall()
        for k in range(shape.workers):
            cap = k % shape.capabilities
            facts = WorkerFacts(f"w{k:03}", f"host{k // 8}", "cuda:0", "comfyui")
            self.workers.register(facts, f"life{k}", f"cap{cap:03}", Capability("comfyui", "1", (f"Node{cap}",)))
        for k in range(shape.jobs):
            self.submit(f"{k:012x}", shape.items, f"user{k % shape.submitters}", f"{k % shape.signatures:032x}")

    def submit(self, job_id: str, items: int, submitter: str, signature: str = "0" * 32, *, grows: bool = False) -> None:
        """One job with a seed per item."""
        need = Requirement("comfyui", (signature,))
        record = JobRecord(job_id, submitter, 5, items, ("p" * 32,), "p" * 32, requirement=need, grows=grows)
        specs = [ItemSpec(k, "generate", "p" * 32, ("9",), (Patch("3", "seed", 2**63 + k),), str(2**63 + k)) for k in range(items)]
        prompt = {"3": {"class_type": "KSampler", "inputs": {"seed": 0}}}
        self.jobs.submit(Submission(record, specs, {"p" * 32: prompt}, signature), OWNER)

    def claim(self, worker: int, claim_id: str) -> Claim | None:
        """A worker asks."""
        return self.workers.claim(f"w{worker:03}", f"life{worker}", claim_id)

    def complete(self, worker: int, claim: Claim) -> None:
        """A worker answers."""
        if not self.workers.complete(f"w{worker:03}", f"life{worker}", claim, RESULT):
            raise RuntimeError(f"the table refused {claim}")

    @contextmanager
    def watched(self) -> Iterator[list[float]]:
        """Server time of each script call within, ms; filled at the end."""
        times: list[float] = []
        self.client.slowlog_reset()
        yield times
        times += [entry["duration"] / 1000 for entry in self.client.slowlog_get(-1) if entry["command"].startswith(b"EVALSHA")]


def run(*, quick: bool) -> Section:
    """See the module."""
    with open_table() as table:
        rows = _crowds(table, rounds=1 if quick else 5, jobs=100 if quick else 1000, workers=30 if quick else 300)
        rows += _reaper(table, jobs=100 if quick else 1000, workers=30 if quick else 300, ticks=3 if quick else 20)
        rows += _pending(table, items=1000 if quick else 10_000, claims=50 if quick else 500)
        rows += _two_users(table)
        rows += _tiles(table, tiles=4096 if quick else 65_536, claims=50 if quick else 500)
    return Section("Table of truth", HOW, rows)


@contextmanager
def open_table() -> Iterator[Table]:
    """A private server for as long as the context lasts."""
    settings = read_settings(lease_ttl_s=3600, owner_ttl_s=3600)
    with redis_servers(settings, private=True) as servers, redis.Redis.from_url(servers.redis_url, decode_responses=True) as client:
        client.config_set("slowlog-log-slower-than", _LOGGED_US)
        client.config_set("slowlog-max-len", 100_000)
        tickets: list[str] = []
        scripts = Scripts(client, settings.key_prefix, tickets.extend)
        matching = Matching(scripts, lambda need, capability: True)
        yield Table(client, scripts, JobTable(scripts, matching, settings), WorkerTable(scripts, matching, settings), tickets)


# -- many jobs, many workers --------------------------------------------------------------------------------------------
def _crowds(table: Table, *, rounds: int, jobs: int, workers: int) -> list[Row]:
    rows = []
    for signatures, capabilities in ((20, 40), (1, 1), (200, 40), (20, workers)):
        table.fill(Shape(jobs, workers, signatures, capabilities))
        claim, complete, trips = _claim_and_complete(table, rounds, workers)
        crowd = f"{jobs} jobs x {workers} workers, {signatures} signatures, {capabilities} capabilities"
        note = f"p99 {percentile(claim, 0.99):.3f}, mean {sum(claim) / len(claim):.3f} ms; {spread(claim, 3)}"
        rows.append(Row(f"claim script, median: {crowd}", median(claim), "ms", CLAIM_MS, note))
        rows.append(Row(f"claim, round trip, median: {crowd}", median(trips), "ms", None, f"p99 {percentile(trips, 0.99):.3f} ms"))
        rows.append(Row(f"complete script, median: {crowd}", median(complete), "ms", None, f"p99 {percentile(complete, 0.99):.3f} ms"))
    return rows


def _claim_and_complete(table: Table, rounds: int, workers: int) -> tuple[list[float], list[float], list[float]]:
    """Server ms of claims, of completions, and round trips of claims in ms."""
    claims: list[float] = []
    completions: list[float] = []
    trips: list[float] = []
    for turn in range(rounds):
        held = {}
        with table.watched() as times:
            for worker in range(workers):
                began = time.perf_counter()
                held[worker] = table.claim(worker, f"c{turn}-{worker}")
                trips.append((time.perf_counter() - began) * 1000)
        claims += times
        with table.watched() as times:
            for worker, claim in held.items():
                if claim is None:
                    raise RuntimeError(f"nothing for worker {worker}")
                table.complete(worker, claim)
        completions += times
    return claims, completions, trips


def _reaper(table: Table, *, jobs: int, workers: int, ticks: int) -> list[Row]:
    table.fill(Shape(jobs, workers, 20, 40))
    for worker in range(workers):
        table.claim(worker, f"c{worker}")
    busy = _tick_times(table, ticks)
    with table.watched() as renewals:
        for worker in range(workers):
            table.workers.renew(f"w{worker:03}", f"life{worker}", [f"c{worker}"])
    table.fill(Shape(0, workers, 20, 40))
    idle = _tick_times(table, ticks)
    crowd = f"{jobs} jobs, {workers} workers"
    return [
        Row(f"reaper tick, server time, median: {crowd}, all busy", median(busy), "ms", None, f"once per second; {spread(busy)} ms"),
        Row(f"reaper tick, server time, median: no jobs, {workers} idle workers", median(idle), "ms", None, f"{spread(idle)} ms"),
        Row(f"sign of life, server time, median: {crowd}", median(renewals), "ms", None, f"p99 {percentile(renewals, 0.99):.3f} ms"),
    ]


def _tick_times(table: Table, ticks: int) -> list[float]:
    found: list[float] = []
    for _ in range(ticks):
        table.client.delete(table.scripts.keys("reaper"))
        with table.watched() as times:
            table.workers.reap(OWNER)
        found += times
    return found


# -- many pending items -------------------------------------------------------------------------------------------------
def _pending(table: Table, *, items: int, claims: int) -> list[Row]:
    few, _, _ = _with_pending(table, [10] * 10, claims)
    many, memory, submits = _with_pending(table, [items] * 10, claims)
    per_item = memory / (10 * items)
    server = [entry for entry, _ in submits]
    trips = [trip for _, trip in submits]
    return [
        Row(f"Redis memory per pending item, {10 * items} pending", per_item, "B", BYTES_PER_ITEM, f"{memory / 2**20:.1f} MiB in all"),
        Row(f"claim script with {10 * items} pending over the same with 100", median(many) / median(few), "x", SLOWDOWN, _both(few, many)),
        Row(f"submit {items} items, server time, median", median(server), "ms", None, f"nobody is served meanwhile; {spread(server)} ms"),
        Row(f"submit {items} items, all of it, median", median(trips), "ms", None, f"{spread(trips)} ms"),
    ]


def _both(few: list[float], many: list[float]) -> str:
    return f"medians {median(many):.3f} and {median(few):.3f} ms of {len(many)} claims each"


def _with_pending(table: Table, sizes: list[int], claims: int) -> tuple[list[float], float, list[tuple[float, float]]]:
    """Server ms of claims, bytes the jobs took, and (server, whole) ms of each submission."""
    table.fill(Shape(0, 10, 1, 1))
    before = _used_bytes(table)
    submits = []
    for number, size in enumerate(sizes):
        with table.watched() as times:
            began = time.perf_counter()
            table.submit(f"{number:012x}", size, f"user{number}")
            whole = (time.perf_counter() - began) * 1000
        submits.append((max(times), whole))
    memory = _used_bytes(table) - before
    found: list[float] = []
    for turn in range(claims):  # each item is given back, so that as many stay pending
        with table.watched() as times:
            claim = table.claim(turn % 10, f"c{turn}")
        found += times
        if claim is not None:
            table.workers.give_back(f"w{turn % 10:03}", f"life{turn % 10}", claim, "release")
    return found, memory, submits


def _used_bytes(table: Table) -> float:
    table.client.slowlog_reset()
    return float(table.client.info("memory")["used_memory"])


# -- two users ----------------------------------------------------------------------------------------------------------
def _two_users(table: Table) -> list[Row]:
    rows = []
    for workers in (1, 4):
        table.fill(Shape(0, workers, 1, 1))
        table.submit("a" * 12, 1000, "ann")
        held = {worker: _must(table.claim(worker, f"first-{worker}")) for worker in range(workers)}
        table.submit("b" * 12, 1, "bob")
        ended = 0
        while all(claim.job_id != "b" * 12 for claim in held.values()):
            worker = ended % workers
            table.complete(worker, held[worker])
            ended += 1
            held[worker] = _must(table.claim(worker, f"then-{ended}"))
        rows.append(Row(f"items that end before a one-image prompt starts, beside 1000 pending, {workers} worker(s)", ended, "", 1.0))
    return rows


# -- a job that grows ---------------------------------------------------------------------------------------------------
def _tiles(table: Table, *, tiles: int, claims: int) -> list[Row]:
    table.fill(Shape(0, 10, 1, 1))
    job = "a" * 12
    table.submit(job, 1, "ann", grows=True)
    table.complete(0, _must(table.claim(0, "first")))
    before = _used_bytes(table)
    with table.watched() as extends:
        table.jobs.extend(job, [_tile_spec(k) for k in range(1, tiles + 1)], final=True)
    memory = (_used_bytes(table) - before) / tiles
    with table.watched() as unblocks:
        table.jobs.unblock(job, [(k, _FEED) for k in range(1, tiles + 1)])
    with table.watched() as pairs:
        for turn in range(claims):
            table.complete(turn % 10, _must(table.claim(turn % 10, f"c{turn}")))
    with table.watched() as cancels:
        table.jobs.cancel(job, "enough")
    calls = f"median {median(extends):.2f} in {len(extends)} calls", f"median {median(unblocks):.2f} in {len(unblocks)} calls"
    return [
        Row(f"extend a job by {tiles} tiles, longest script", max(extends), "ms", SCRIPT_MS, calls[0]),
        Row(f"unblock {tiles} tiles, longest script", max(unblocks), "ms", SCRIPT_MS, calls[1]),
        Row(f"Redis memory per blocked tile, {tiles} tiles", memory, "B", BYTES_PER_ITEM),
        Row(f"claim or complete a tile, median, {tiles} tiles", median(pairs), "ms", None, f"p99 {percentile(pairs, 0.99):.3f} ms"),
        Row(f"cancel a job of {tiles} tiles", max(cancels), "ms", SCRIPT_MS),
    ]


_FEED = '{"12":{"images":[{"blob":"aaaaaaaaaaaa:crop:12345#1","dtype":"float32","shape":[1,576,576,3],"size_bytes":3981312}]}}'


def _tile_spec(index: int) -> ItemSpec:
    box = tuple(Patch("12", name, index) for name in ("x", "y", "width", "height"))
    return ItemSpec(index, "tile", "p" * 32, ("9",), (Patch("3", "seed", 2**63 + index), *box), str(2**63 + index))


def _must(claim: Claim | None) -> Claim:
    if claim is None:
        raise RuntimeError("there is an item, and nobody got it")
    return claim


def main(say: Callable[[str], object] = print) -> None:
    """Run this benchmark alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    section = run(quick=options.quick)
    for row in section.rows:
        target = f"target {shown(row.target, row.unit)}" if row.target is not None else ""
        say(f"{row.name:<105} {shown(row.value, row.unit):>10}  {target:<16} {row.verdict:<7} {row.note}")
    if options.json:
        options.json.write_text(json.dumps([{**asdict(row), "met": row.met} for row in section.rows], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
