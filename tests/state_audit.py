"""Recomputes what the table of truth must say from the items alone, and compares: counters, index, claims, tickets, bytes."""
from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from distributed_comfy.state.figures import read_figures
from tests.state_cluster import Cluster

STEP = 2**40
COUNTED = ("running", "done", "failed", "blocked")


def snapshot(client: Any) -> dict[str, Any]:
    """Every key of the server with its value: str, list, set, or dict (hashes; sorted sets with their scores; streams without ids)."""
    readers = {
        "string": lambda pipe, key: pipe.get(key),
        "list": lambda pipe, key: pipe.lrange(key, 0, -1),
        "set": lambda pipe, key: pipe.smembers(key),
        "hash": lambda pipe, key: pipe.hgetall(key),
        "zset": lambda pipe, key: pipe.zrange(key, 0, -1, withscores=True),
        "stream": lambda pipe, key: pipe.xrange(key),
    }
    keys = sorted(client.keys())
    pipe = client.pipeline(transaction=True)
    for key in keys:
        pipe.type(key)
    types = pipe.execute()
    for key, kind in zip(keys, types, strict=True):
        if kind != "none":
            readers[kind](pipe, key)
    found = [(key, kind) for key, kind in zip(keys, types, strict=True) if kind != "none"]
    shapes = {"zset": dict, "stream": lambda entries: [fields for _, fields in entries]}
    rows = zip(found, pipe.execute(), strict=True)
    return {key: shapes.get(kind, lambda value: value)(value) for (key, kind), value in rows if value is not None}


def _sizes(fields: dict[str, str]) -> tuple[int, bool]:
    """Bytes that a running item of the job may add, and whether a result tells so."""
    largest, done = ("tiles_largest", "tiles_done") if int(fields.get("tiles", 0)) else ("largest", "done")
    found = int(fields.get(largest, 0))
    return found, found > 0 or int(fields.get(done, 0)) > 0


def _kind(fields: dict[str, str], index: str) -> str:
    """Kind of an item, as metrics tell it."""
    if index in (fields["last"], fields["prepare"]):
        return "last" if index == fields["last"] else "prepare"
    return "tile" if int(index) >= int(fields["total"]) - int(fields.get("tiles", 0)) else fields["kind"]


class _Snapshot:
    """Answers the reading commands from one snapshot."""

    def __init__(self, client: Any) -> None:
        self._keys = snapshot(client)

    def get(self, key: str) -> Any:
        return self._keys.get(key)

    def exists(self, key: str) -> bool:
        return key in self._keys

    def hgetall(self, key: str) -> dict[str, str]:
        return dict(self._keys.get(key, {}))

    def hget(self, key: str, name: str) -> Any:
        return self.hgetall(key).get(name)

    def hkeys(self, key: str) -> list[str]:
        return list(self.hgetall(key))

    def members(self, key: str) -> set[str]:
        return set(self._keys.get(key, ()))

    def entries(self, key: str) -> list[str]:
        return list(self._keys.get(key, ()))

    def scores(self, key: str) -> dict[str, float]:
        return dict(self._keys.get(key, {}))

    def matching(self, pattern: str) -> dict[str, Any]:
        return {key: value for key, value in self._keys.items() if fnmatchcase(key, pattern)}


@dataclass
class _Truth:
    """What follows from jobs, items and workers."""

    work: Counter[str] = field(default_factory=Counter)
    queue: dict[tuple[str, str, str], dict[str, float]] = field(default_factory=dict)
    lists: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    claims: dict[str, dict[str, str]] = field(default_factory=dict)
    submitters: Counter[str] = field(default_factory=Counter)
    open_jobs: Counter[str] = field(default_factory=Counter)
    signatures: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    active: set[str] = field(default_factory=set)
    capped: set[str] = field(default_factory=set)
    figures: Counter[tuple[str, str]] = field(default_factory=Counter)


class Audit:
    """`check` raises AssertionError where the table contradicts itself."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._key = cluster.key
        self._redis = _Snapshot(cluster.client)

    def check(self) -> None:
        """Everything, as it is now."""
        self._redis = _Snapshot(self._cluster.client)
        truth = _Truth()
        for job_id in self._redis.scores(self._key("jobs")):
            fields = self._redis.hgetall(self._key("job", job_id))
            if fields:
                self._job(truth, job_id, fields)
        self._index(truth)
        self._counters(truth)
        self._workers(truth)
        self._tickets(truth)
        shown = read_figures(self._cluster.scripts).items
        assert {place: count for place, count in shown.items() if count} == dict(truth.figures)

    # -- one job ---------------------------------------------------------------------------------------------------------
    def _job(self, truth: _Truth, job_id: str, fields: dict[str, str]) -> None:
        rows = self._rows(job_id)
        states = Counter(row["s"] for row in rows.values())
        counted = {name: int(fields.get(name, 0)) for name in (*COUNTED, "total")}
        assert counted == {**{name: states[name] for name in COUNTED}, "total": len(rows)}, (job_id, counted, states)
        self._tiles(job_id, fields, rows)
        lists = {name: self._redis.entries(self._key(name, job_id)) for name in ("pending", "back", "finish")}
        self._listed(job_id, rows, lists, fields.get("last", ""))
        results = set(self._redis.hkeys(self._key("result", job_id)))
        assert results == {index for index, row in rows.items() if row["s"] == "done"}, (job_id, results)
        runs = self._redis.hgetall(self._key("runs", job_id))
        assert runs == {index: f"{row['c']}|{row['w']}" for index, row in rows.items() if row["s"] == "running"}
        for index, row in rows.items():
            if row["s"] == "running":
                truth.claims.setdefault(row["w"], {})[row["c"]] = f"{job_id}|{index}"
        settled = int(fields.get("settled", 0))
        there = [row for row in rows.values() if row["s"] == "done" and row.get("f") != 1 and row.get("e", 0) == settled]
        assert int(fields.get("unfetched", 0)) == sum(row.get("b", 0) for row in there), (job_id, there)
        if fields["state"] == "active":
            truth.figures.update((_kind(fields, index), row["s"]) for index, row in rows.items() if row["s"] != "failed")
            self._active(truth, job_id, fields, lists)
        else:
            assert not states["running"], (job_id, states)
            assert fields.get("place", "") == "", job_id
        inflight = int(fields.get("unfetched", 0))
        if fields["state"] == "active":
            inflight += states["running"] * _sizes(fields)[0]
        if inflight:
            truth.bytes[job_id] = inflight

    def _rows(self, job_id: str) -> dict[str, dict[str, Any]]:
        rows = {index: {"s": "pending", "c": "", "w": ""} for index in self._redis.hkeys(self._key("spec", job_id))}
        for index, text in self._redis.hgetall(self._key("item", job_id)).items():
            rows[index] = json.loads(text)
        return rows

    def _tiles(self, job_id: str, fields: dict[str, str], rows: dict[str, dict[str, Any]]) -> None:
        """What was added later: counted by state, and fed before it may run."""
        first = len(rows) - int(fields.get("tiles", 0))
        tiles = {index: row for index, row in rows.items() if int(index) >= first}
        states = Counter(row["s"] for row in tiles.values())
        counted = {name.removeprefix("tiles_"): int(count) for name, count in fields.items() if name.startswith("tiles_") and count != "0"}
        counted.pop("largest", None)
        assert counted == dict(states), (job_id, counted, states)
        assert {int(index) for index in rows} == set(range(len(rows)))
        fed = set(self._redis.hkeys(self._key("feeds", job_id)))
        assert fed >= {index for index, row in tiles.items() if row["s"] == "running"}, job_id

    def _listed(self, job_id: str, rows: dict[str, dict[str, Any]], lists: dict[str, list[str]], last: str) -> None:
        """Each pending item stands in one list, once; the others in none."""
        listed = [index for entries in lists.values() for index in entries]
        assert sorted(listed) == sorted(index for index, row in rows.items() if row["s"] == "pending"), (job_id, lists, rows)
        assert set(lists["finish"]) <= {last}
        assert last not in lists["pending"] + lists["back"]
        waiting = {entry.split("|")[1] for entry in self._redis.scores(self._key("backoff")) if entry.startswith(f"{job_id}|")}
        assert waiting == {index for index, row in rows.items() if row["s"] == "waiting"}, (job_id, waiting)

    def _active(self, truth: _Truth, job_id: str, fields: dict[str, str], lists: dict[str, list[str]]) -> None:
        truth.active.add(job_id)
        truth.submitters[fields["submitter"]] += int(fields.get("running", 0))
        truth.open_jobs[fields["submitter"]] += 1
        sig, last_sig, seq = fields["sig"], fields["last_sig"], float(fields["seq"])
        truth.signatures.update(name for name in (sig, last_sig) if name)
        if int(fields.get("paused", 0)) or int(fields.get("parked", 0)):
            assert fields.get("place", "") == ""
            return
        if lists["finish"]:
            truth.lists.setdefault(("finish", last_sig), {})[job_id] = seq
            truth.work[last_sig] += len(lists["finish"])
        if not lists["pending"] and not lists["back"]:
            return
        room, full = self._room(fields, len(lists["back"]) + len(lists["pending"]))
        shown = int(fields.get("offered", 0))
        # Two things follow from others and are known at the next look: the cap on all bytes, and that a worker has gone.
        full = full or job_id in self._redis.scores(self._key("capped"))
        unsized = not _sizes(fields)[1]
        assert shown == room or (full and shown <= 1) or (unsized and shown > room), (job_id, shown, room)
        if not shown:
            return
        if lists["back"]:
            truth.lists.setdefault(("back", sig), {})[job_id] = seq
        if lists["pending"]:
            place = (fields["level"], sig, fields["submitter"])
            truth.queue.setdefault(place, {})[job_id] = int(fields.get("running", 0)) * STEP + seq
        truth.work[sig] += shown

    def _room(self, fields: dict[str, str], wanted: int) -> tuple[int, bool]:
        """How many of ``wanted`` items the job's own byte cap lets run; whether the cap on all bytes is reached."""
        running, unfetched = (int(fields.get(name, 0)) for name in ("running", "unfetched"))
        (largest, known), room, full = _sizes(fields), wanted, False
        if not known:
            caps = self._redis.members(self._key("sig_caps", fields["sig"]))
            room = 2 * sum(len(self._redis.members(self._key("cap_workers", cap))) for cap in caps) - running
        elif largest:
            room = (int(fields["cap"]) - unfetched) // largest - running
            limit = int(self._redis.hget(self._key("limits"), "all") or 2**32)
            full = int(self._redis.get(self._key("inflight")) or 0) + largest > limit
        if not running and not unfetched:
            return min(wanted, max(1, room)), full
        return max(0, min(wanted, room)), full

    # -- the whole -------------------------------------------------------------------------------------------------------
    def _index(self, truth: _Truth) -> None:
        assert self._zset("work") == dict(truth.work)
        for kind in ("back", "finish"):
            expected = {sig: jobs for (of, sig), jobs in truth.lists.items() if of == kind}
            assert self._zset(f"{kind}_heads") == {sig: min(jobs.values()) for sig, jobs in expected.items()}
            assert self._all(f"{kind}:*") == {f"{kind}:{sig}": jobs for sig, jobs in expected.items()}
        queues = {f"queue:{level}:{sig}:{user}": jobs for (level, sig, user), jobs in truth.queue.items()}
        assert self._all("queue:*") == queues
        heads: dict[str, dict[str, float]] = {}
        levels: dict[str, dict[str, float]] = {}
        for (level, sig, user), jobs in truth.queue.items():
            heads.setdefault(f"heads:{level}:{user}", {})[sig] = min(jobs.values())
            levels.setdefault(f"level:{level}", {})[user] = self._submitter_score(user)
        assert self._all("heads:*") == heads
        assert self._all("level:*") == levels
        assert self._zset("levels") == {level: float(level) for level, _, _ in truth.queue}
        assert set(self._zset("aging")) == {job for jobs in truth.queue.values() for job in jobs}

    def _submitter_score(self, user: str) -> float:
        fields = self._redis.hgetall(self._key("submitter", user))
        return int(fields.get("running", 0)) * STEP + int(fields.get("served_seq", 0))

    def _counters(self, truth: _Truth) -> None:
        assert self._redis.members(self._key("active")) == truth.active
        found = self._redis.matching(self._key("submitter", "*"))
        users = {key.removeprefix(self._key("submitter", "")): fields for key, fields in found.items()}
        assert {user: int(fields["jobs"]) for user, fields in users.items()} == dict(truth.open_jobs)
        assert {user: int(fields.get("running", 0)) for user, fields in users.items()} == {user: truth.submitters[user] for user in users}
        refs = {sig: int(count) for sig, count in self._redis.hgetall(self._key("sig_refs")).items()}
        assert refs == dict(truth.signatures)
        assert set(self._redis.hkeys(self._key("sigs"))) == set(refs)
        assert self._redis.members(self._key("matched")) <= set(refs)
        booked = {job: int(count) for job, count in self._redis.hgetall(self._key("unsettled")).items()}
        assert booked == dict(truth.bytes)
        assert int(self._redis.get(self._key("inflight")) or 0) == sum(booked.values())

    def _workers(self, truth: _Truth) -> None:
        idle: dict[str, dict[str, float]] = {}
        caps: dict[str, set[str]] = {}
        guests = self._redis.members(self._key("guests"))
        for name in guests:
            assert self._redis.hgetall(self._key("claims", name)) == truth.claims.pop(name, {}), name
            assert self._redis.hget(self._key("worker", name), "cap") == "" and not self._redis.hgetall(self._key("calls", name)), name
        names = set(self._redis.members(self._key("workers")))
        assert not guests & names
        for name in names:
            fields = self._redis.hgetall(self._key("worker", name))
            assert self._redis.hgetall(self._key("claims", name)) == truth.claims.pop(name, {}), name
            caps.setdefault(fields["cap"], set()).add(name)
            load = len(self._redis.hgetall(self._key("claims", name))) + int(fields.get("tickets", 0))
            off = fields.get("drained") == "1" or fields.get("down") == "1"
            if not off and load < int(fields["slots"]) and self._redis.exists(self._key("lease", name)):
                idle.setdefault(fields["cap"], {})[name] = load + 100 * int(fields.get("unanswered", 0))
            barred = self._redis.members(self._key("barred", name))
            assert all(name in self._redis.members(self._key("sig_barred", sig)) for sig in barred)
        assert not truth.claims, truth.claims
        assert set(self._redis.hkeys(self._key("caps"))) == set(caps)
        for cap, members in caps.items():
            assert self._redis.members(self._key("cap_workers", cap)) == members
            for sig in self._redis.members(self._key("cap_sigs", cap)):
                assert cap in self._redis.members(self._key("sig_caps", sig))
        found = self._all("idle:*")
        stale = {name for members in found.values() for name in members if not self._redis.exists(self._key("lease", name))}
        assert {key: {n: s for n, s in m.items() if n not in stale} for key, m in found.items() if set(m) - stale} == {
            f"idle:{cap}": members for cap, members in idle.items()
        }
        assert self._redis.members(self._key("idle_caps")) == {key.removeprefix("idle:") for key in found}

    def _tickets(self, truth: _Truth) -> None:
        """As many tickets are under way for a signature as it has items to claim, or nobody who serves it is idle."""
        called: Counter[str] = Counter()
        for name in self._redis.members(self._key("workers")):
            calls = {sig: int(count) for sig, count in self._redis.hgetall(self._key("calls", name)).items()}
            assert all(count > 0 for count in calls.values())
            assert sum(calls.values()) == int(self._redis.hget(self._key("worker", name), "tickets") or 0), name
            for sig, count in calls.items():
                assert int(self._redis.hget(self._key("called", sig), name)) == count
                called[sig] += count
        reverse = {key: sum(map(int, tickets.values())) for key, tickets in self._redis.matching(self._key("called", "*")).items()}
        assert reverse == {self._key("called", sig): count for sig, count in called.items()}
        for sig, count in truth.work.items():
            idle = [name for name in self._idle() if self._serves(name, sig)]
            assert called[sig] >= count or not idle, f"{count} items of {sig}, {called[sig]} tickets, idle: {idle}"

    def _idle(self) -> list[str]:
        names = [name for members in self._all("idle:*").values() for name in members]
        return [name for name in names if self._redis.exists(self._key("lease", name))]

    def _serves(self, name: str, sig: str) -> bool:
        cap = self._redis.hget(self._key("worker", name), "cap")
        return cap in self._redis.members(self._key("sig_caps", sig)) and sig not in self._redis.members(self._key("barred", name))

    def _zset(self, name: str) -> dict[str, float]:
        return self._redis.scores(self._key(name))

    def _all(self, pattern: str) -> dict[str, dict[str, float]]:
        prefix = self._cluster.scripts.keys.prefix
        return {key.removeprefix(prefix): scores for key, scores in self._redis.matching(prefix + pattern).items()}
