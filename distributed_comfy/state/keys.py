"""The name of every key of the state Redis, once: Python calls `Keys`, the Lua scripts get the same names as functions ``K.<name>``.

    job      HASH    one job: record, state, counters, where it stands in the index
    spec     HASH    item index -> packed spec, never changes
    item     HASH    item index -> {s: state, c: claim id, w: worker, a: attempts per error class}; absent = untouched, still pending
    result   HASH    item index -> ItemResult
    error    HASH    item index -> error with its worker
    runs     HASH    item index -> "claim id|worker" of running items
    pending, back, finish    LIST    item indexes: never run; given back; last stage ready
    q_*      ZSET    the claim index: what a worker of a matching signature may take (see claim.lua)
    worker, claims, barred, lease    one worker: facts; claim id -> "job|index"; signatures it proved unable to run; its lease
    sig_caps, cap_sigs    SET    which capability hash serves which requirement signature
"""
from __future__ import annotations

from dataclasses import dataclass

_TEMPLATES = {
    "jobs": "jobs",  # ZSET job -> sequence number, for listings
    "active": "active",  # SET of jobs that have not ended
    "capped": "capped",  # ZSET job -> sequence, out of the index because of the byte caps
    "aging": "aging",  # ZSET job -> when it gains a priority step, ms
    "backoff": "backoff",  # ZSET "job|index" -> when it is claimable again, ms
    "inflight": "inflight",  # STRING bytes in flight of all jobs
    "unsettled": "unsettled",  # SET of jobs with bytes in flight
    "limits": "limits",  # HASH all: cap on inflight, bytes
    "sequence": "sequence",  # STRING counter: job numbers
    "served": "served",  # STRING counter: claims handed out
    "reaper": "reaper",  # STRING with PX: the elected reaper
    "reaper_facts": "reaper-facts",  # HASH run_id, last_ms, grace_ms
    "sigs": "sigs",  # HASH signature -> requirement
    "sig_refs": "sig-refs",  # HASH signature -> number of jobs
    "caps": "caps",  # HASH capability hash -> capability
    "ticketed": "ticketed",  # HASH capability hash -> tickets under way
    "workers": "workers",  # SET of registered names
    "job": "job:{}",
    "prompts": "job:{}:prompts",
    "spec": "job:{}:spec",
    "item": "job:{}:item",
    "result": "job:{}:result",
    "error": "job:{}:error",
    "runs": "job:{}:runs",
    "pending": "job:{}:pending",
    "back": "job:{}:back",
    "finish": "job:{}:finish",
    "events": "job:{}:events",  # STREAM of wake-ups
    "owner": "job:{}:owner",  # STRING with PX: who collects
    "submitter": "submitter:{}",  # HASH running, served_seq, served_ms, jobs
    "submitter_places": "submitter:{}:places",  # SET "signature|priority"
    "q_back": "q:{}:back",
    "q_finish": "q:{}:finish",
    "q_levels": "q:{}:levels",  # ZSET of priorities that have work
    "q_submitters": "q:{}:{}",  # ZSET submitter -> running, then least recently served
    "q_jobs": "q:{}:{}:{}",  # ZSET job -> running, then age
    "worker": "worker:{}",
    "claims": "worker:{}:claims",
    "barred": "worker:{}:barred",
    "lease": "worker:{}:lease",
    "starting": "worker:{}:starting",  # STRING with PX: the name is being taken
    "idle": "idle:{}",  # SET of workers with this capability hash and a free slot
    "sig_caps": "sig:{}:caps",
    "cap_sigs": "cap:{}:sigs",
    "cap_workers": "cap:{}:workers",
    "progress": "progress:{}",  # pub/sub channel of a job: steps and previews
    "orders": "orders:{}",  # pub/sub channel of a worker: "cancel <claim id>", "look"
}


@dataclass(frozen=True)
class Keys:
    """Key names under one prefix; ``keys("job", job_id)`` -> ``dc:job:<id>``."""

    prefix: str

    def __call__(self, name: str, *parts: str) -> str:
        """The full name of a key."""
        return self.prefix + _TEMPLATES[name].format(*parts)

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
