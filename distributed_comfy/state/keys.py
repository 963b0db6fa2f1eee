"""The name of every key of the state Redis, once: Python calls `Keys`, the Lua scripts get the same names as functions ``K.<name>``.

    job      HASH    one job: record, state, counters, where it stands in the index
    spec     HASH    item index -> packed spec, never changes
    item     HASH    item index -> {s: state, c: claim id, w: worker, a: attempts per error class}; absent = untouched, still pending
    feeds    HASH    item index -> what its source nodes get, from when it may run
    result   HASH    item index -> ItemResult
    error    HASH    item index -> error with its worker
    runs     HASH    item index -> "claim id|worker" of running items
    pending, back, finish    LIST    item indexes: ready and never run; given back; last stage ready
    work     ZSET    signature -> items that may be claimed now
    back_heads, finish_heads     ZSET    signature -> its oldest job with items given back, with a last stage ready
    levels, level, heads, queue  ZSET    priorities with work -> their submitters -> their signatures -> their jobs (see claim.lua)
    worker, claims, barred, lease    one worker: facts; claim id -> "job|index"; signatures it proved unable to run; its lease
    sig_caps, cap_sigs    SET    which capability hash serves which requirement signature
"""
from __future__ import annotations

from dataclasses import dataclass

_TEMPLATES = {
    "jobs": "jobs",  # ZSET job -> sequence number, for listings
    "active": "active",  # SET of jobs that have not ended
    "ended": "ended",  # ZSET job -> when its keys expire, ms
    "capped": "capped",  # ZSET job -> sequence, out of the index until others make room or a worker joins
    "aging": "aging",  # ZSET job -> when it gains a priority step, ms
    "backoff": "backoff",  # ZSET "job|index" -> when it is claimable again, ms
    "inflight": "inflight",  # STRING bytes in flight of all jobs
    "unsettled": "unsettled",  # HASH job -> its bytes in flight
    "limits": "limits",  # HASH all: cap on inflight, bytes
    "sequence": "sequence",  # STRING counter: job numbers
    "served": "served",  # STRING counter: twice the claims handed out
    "reaper": "reaper",  # STRING with PX: the elected call
    "reaper_answer": "reaper-answer",  # LIST with PX: what that call was answered
    "reaper_facts": "reaper-facts",  # HASH run_id, last_ms, grace_ms
    "sigs": "sigs",  # HASH signature -> requirement
    "sig_refs": "sig-refs",  # HASH signature -> number of jobs
    "matched": "matched",  # SET of signatures that have been compared with all capabilities
    "caps": "caps",  # HASH capability hash -> capability
    "idle_caps": "idle-caps",  # SET of capability hashes that have an idle worker
    "workers": "workers",  # SET of registered names
    "guests": "guests",  # SET of those that only take items of the job they name, as a master does of its own
    "tallies": "tallies",  # HASH of counters that only grow, for metrics; their names are in tallies.py
    "job": "job:{}",
    "prompts": "job:{}:prompts",
    "spec": "job:{}:spec",
    "item": "job:{}:item",
    "feeds": "job:{}:feeds",
    "result": "job:{}:result",
    "error": "job:{}:error",
    "runs": "job:{}:runs",
    "pending": "job:{}:pending",
    "back": "job:{}:back",
    "finish": "job:{}:finish",
    "events": "job:{}:events",  # STREAM of wake-ups
    "owner": "job:{}:owner",  # STRING with PX: who collects
    "submitter": "submitter:{}",  # HASH running, served_seq, served_ms, jobs
    "work": "work",
    "back_heads": "back-heads",
    "finish_heads": "finish-heads",
    "back_jobs": "back:{}",  # ZSET job -> sequence, of one signature
    "finish_jobs": "finish:{}",
    "levels": "levels",  # ZSET of priorities that have work
    "level": "level:{}",  # ZSET submitter -> running, then least recently served
    "heads": "heads:{}:{}",  # level, submitter: ZSET signature -> score of its first job
    "queue": "queue:{}:{}:{}",  # level, signature, submitter: ZSET job -> running, then age
    "hosts": "hosts",  # SET of hosts whose agents were heard of
    "host": "host:{}",  # STRING with PX: the record of a host's agent, its sign of life
    "heard": "heard:{}",  # STRING with PX: what a host's agent said last, for a day after it fell silent without a farewell
    "answer": "host:{}:answer:{}",  # STRING with PX: an agent's answer to an order; also the channel that tells of it
    "seal": "seal:{}",  # STRING with PX: an agent's incarnation, and with what orders to it are signed, made up at each start
    "worker": "worker:{}:facts",
    "claims": "worker:{}:claims",
    "calls": "worker:{}:calls",  # HASH signature -> tickets under way that were sent for it
    "unheld": "worker:{}:unheld",  # HASH claim -> the sign of life that did not hold it
    "barred": "worker:{}:barred",
    "lease": "worker:{}:lease",
    "memory": "worker:{}:memory",  # STRING with PX: "free|total" bytes of its device
    "starting": "worker:{}:starting",  # STRING with PX: the name is being taken
    "status": "worker:{}:status",  # STRING with PX: WorkerStatus
    "log": "worker:{}:log",  # STREAM with PX: its last lines
    "idle": "idle:{}",  # ZSET worker -> claims and tickets, of those with this capability hash and a free slot
    "sig_caps": "sig:{}:caps",
    "called": "sig:{}:called",  # HASH worker -> tickets, the other way round from calls
    "sig_barred": "sig:{}:barred",  # SET of workers, the other way round from barred
    "cap_sigs": "cap:{}:sigs",
    "cap_workers": "cap:{}:workers",
    "invites": "invites",  # HASH invited host -> record of the invite; workers of other hosts cannot read it
    "joined": "joined:{}",  # STRING "first|last" ms: when an invited host connected
    "progress": "progress:{}",  # pub/sub channel of a job: steps and previews
    "statuses": "status:{}",  # pub/sub channel of a worker: each WorkerStatus; `status:*` is that of all
    "orders": "orders:{}",  # pub/sub channel of a worker: "cancel <claim id>", by whoever changes the table
    "steering": "steering:{}",  # pub/sub channel of a worker: "look", "free", "end", by people and agents
}


@dataclass(frozen=True)
class Keys:
    """Key names under one prefix; ``keys("job", job_id)`` -> ``dc:job:<id>``."""

    prefix: str

    def __call__(self, name: str, *parts: str) -> str:
        """The full name of a key."""
        return self.prefix + _TEMPLATES[name].format(*parts)

    @staticmethod
    def templates() -> dict[str, str]:
        """Every key and channel by its short name, without the prefix; ``{}`` stands for an id.  `access.roles` says who may touch them."""
        return dict(_TEMPLATES)

    def celery_meta(self, item_id: str) -> str:
        """Where Celery's result API looks for a task of this id (kombu adds the same prefix)."""
        return f"{self.prefix}celery-task-meta-{item_id}"

    def lua(self) -> str:
        """Lua source that defines ``K``."""
        lines = [f"local P = '{self.prefix}'", "local K = {}"]
        for name, template in _TEMPLATES.items():
            names = [f"a{n}" for n in range(template.count("{}"))]
            text = template.format(*(f"' .. {part} .. '" for part in names))
            lines.append(f"function K.{name}({', '.join(names)}) return P .. '{text}' end")
        lines.append("function K.meta(a0) return P .. 'celery-task-meta-' .. a0 end")
        return "\n".join(lines).replace(" .. ''", "")
