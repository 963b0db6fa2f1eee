"""A submitter's, collector's and person's side of the table: submit, watch, steer."""
from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from distributed_comfy.errors import BlobMissing, JobStateInvalid, JobUnknown, RedisForbids
from distributed_comfy.messages import FED_KINDS, ItemKind, ItemResult, ItemSpec, JobRecord, Prompt, Requirement, canonical_json, dump, load
from distributed_comfy.settings import Settings
from distributed_comfy.state import celery_meta
from distributed_comfy.state.job_rows import FIELDS, fatal_error, job_state, row_of
from distributed_comfy.state.matching import Matching
from distributed_comfy.state.records import EventKind, ItemState, JobEvent, JobState, Outer, SpoolPlace
from distributed_comfy.state.scripts import Scripts
from distributed_comfy.state.specs import pack_specs, unpack_spec
from distributed_comfy.state.workers import to_ms

TEMPLATES = "templates"
"""Field beside the prompts that holds the shared parts of the item specs; `extend` writes it too."""
_EXTEND_BATCH = 500
_UNBLOCK_BATCH = 200
"""Items of one script call: the server serves nobody else meanwhile."""
_UNCAPPED = 2**50
"""Results that are kept are meant to lie there together: only the cap on the bytes of all jobs holds such a job back."""


@dataclass(frozen=True)
class FinishedItem:
    """An item that an earlier job finished, and whose result the new job's owner has already."""

    index: int
    claim_id: str
    """The execution that gave the result."""
    result: ItemResult


@dataclass(frozen=True)
class Submission:
    """Everything that enters the table with a job."""

    record: JobRecord
    specs: Sequence[ItemSpec]
    prompts: Mapping[str, Prompt]
    """By hash; the stages and the user's own."""
    signature: str
    last_signature: str = ""
    finished: Sequence[FinishedItem] = ()
    """Of these nothing runs and nothing is fetched any more."""
    blocked: Sequence[int] = ()
    """Items that wait for `JobTable.unblock`, beside the last stage and the one that prepares for tiles where others come before it."""
    outer: Outer = ""
    """What the submitter's own ComfyUI answers for."""


class JobTable:
    """Access to jobs for one process; safe to use from several threads."""

    def __init__(self, scripts: Scripts, matching: Matching, settings: Settings) -> None:
        self._scripts = scripts
        self._matching = matching
        self._settings = settings
        self._client = scripts.client
        self._keys = scripts.keys

    # -- submit --------------------------------------------------------------------------------------------------------
    def submit(self, submission: Submission, owner: str) -> None:
        """Enter a job with all its items and call idle workers; the same job id again changes nothing.

        Args:
            owner: who holds the owner lease; empty where nobody has to, because the results are kept for Celery.
        """
        record, settings = submission.record, self._settings
        kept = record.results == "celery"
        templates, packed = pack_specs(submission.specs)
        last, prepare = _only(submission.specs, "last"), _only(submission.specs, "prepare")
        fed = [index for index in (last, prepare if record.generated else "") if index]
        blocked = sorted({*map(str, submission.blocked), *fed})
        args: list[str | int] = [
            record.job_id, dump(record), record.submitter, record.priority, submission.signature, submission.last_signature,
            _UNCAPPED if kept else settings.job_bytes_in_flight,
            to_ms(settings.priority_aging_s),
            settings.job_ttl_s,
            last,
            record.host,
            "" if kept else owner,
            to_ms(settings.blob_ttl_s if kept else settings.owner_ttl_s),
            record.title,
            *_requirements(record),
            next((spec.kind for spec in submission.specs if spec.kind not in FED_KINDS), "generate"),
            record.spare,
            int(record.grows),
            prepare,
            submission.outer,
            *(len(each) for each in (packed, blocked, submission.finished)),
            *(part for pair in packed for part in pair),
            *blocked,
            *_finished(record.job_id, submission.finished),
        ]  # fmt: skip
        args += [part for name, prompt in submission.prompts.items() for part in (name, _in_order(prompt))]
        args += [TEMPLATES, canonical_json(templates)]
        # Workers whose capability is known here are called at once; a look at all capabilities, where it is due, comes after.
        needs = {submission.signature: record.requirement, submission.last_signature: record.last_requirement}
        (outcome, *workers), (_, *more) = self._scripts.run_together([("submit", args), ("serve", [0, *self._matching.known_pairs(needs)])])
        self._scripts.send_tickets([*workers, *more])
        if outcome == "new":
            self._matching.match_signatures((submission.signature, submission.last_signature))

    def set_byte_limit(self, limit: int) -> None:
        """Cap on the bytes in flight of all jobs; who may not submit leaves it to those who do."""
        with suppress(RedisForbids):
            self._scripts.reply(lambda: self._client.hset(self._keys("limits"), "all", limit))

    # -- read ----------------------------------------------------------------------------------------------------------
    def record(self, job_id: str) -> JobRecord:
        """The job as it was submitted.

        Raises:
            JobUnknown: no such job, or it ended too long ago.
        """
        return _record(job_id, self._field(job_id, "record"))

    def prompts(self, job_id: str) -> tuple[dict[str, Prompt], list[str]]:
        """The job's prompts by hash, and its spec templates."""
        return _prompts(self._hash("prompts", job_id))

    def texts(self, job_id: str) -> tuple[JobRecord, dict[str, Prompt], list[str]]:
        """`record` and `prompts` in one round trip: what a worker reads before the first item of a job; errors as `record`."""
        pipe = self._client.pipeline(transaction=False)
        pipe.hget(self._keys("job", job_id), "record")
        pipe.hgetall(self._keys("prompts", job_id))
        record, prompts = self._scripts.reply(pipe.execute)
        return (_record(job_id, record), *_prompts(prompts))

    def specs(self, job_id: str) -> dict[int, ItemSpec]:
        """Every item's spec, of one moment: a job may be growing."""
        pipe = self._client.pipeline(transaction=True)
        pipe.hgetall(self._keys("prompts", job_id))
        pipe.hgetall(self._keys("spec", job_id))
        prompts, stored = self._scripts.reply(pipe.execute)
        _, templates = _prompts(prompts)
        specs = (unpack_spec(templates, int(index), text) for index, text in stored.items())
        return {spec.index: spec for spec in sorted(specs, key=lambda spec: spec.index)}

    def feed(self, job_id: str, index: int) -> str:
        """The feed of an item, as `unblock` stored it; empty before."""
        key = self._keys("feeds", job_id)
        return str(self._scripts.reply(lambda: self._client.hget(key, str(index))) or "")

    def job_state(self, job_id: str) -> JobState:
        """The truth about a job.

        Raises:
            JobUnknown: no such job.
        """
        fields = self._hash("job", job_id)
        if "state" not in fields:
            raise JobUnknown(job_id=job_id)
        error = self.errors([job_id])[job_id] if fields["state"] == "failed" else None
        return job_state(fields, error)

    def errors(self, failed: Collection[str]) -> dict[str, dict[str, Any] | None]:
        """What failed jobs failed with, in wire form; None where that is not known, or the job is gone."""
        pipe = self._client.pipeline(transaction=False)
        for job_id in failed:
            pipe.hget(self._keys("job", job_id), "fatal")
            pipe.hgetall(self._keys("error", job_id))
        replies = self._scripts.reply(pipe.execute)
        return {job_id: fatal_error(*pair) for job_id, pair in zip(failed, zip(replies[::2], replies[1::2], strict=True), strict=True)}

    def jobs(self, among: Collection[str] | None = None) -> dict[str, JobState]:
        """All known jobs, oldest first; those whose record expired are left out.

        Args:
            among: only these, in their order.
        """
        ids = self._scripts.reply(lambda: self._client.zrange(self._keys("jobs"), 0, -1)) if among is None else list(among)
        pipe = self._client.pipeline(transaction=False)
        for job_id in ids:
            pipe.hmget(self._keys("job", job_id), FIELDS)
        rows = zip(ids, map(row_of, self._scripts.reply(pipe.execute)), strict=True)
        return {job_id: job_state(fields, None) for job_id, fields in rows if "state" in fields}

    def item_states(self, job_id: str) -> dict[int, ItemState]:
        """The truth about every item."""
        pipe = self._client.pipeline(transaction=False)
        pipe.hkeys(self._keys("spec", job_id))
        pipe.hgetall(self._keys("item", job_id))
        pipe.hgetall(self._keys("error", job_id))
        indexes, items, errors = self._scripts.reply(pipe.execute)
        states = {int(index): ItemState("pending") for index in indexes}
        for index, text in items.items():
            states[int(index)] = _item_state(json.loads(text), errors.get(index))
        return dict(sorted(states.items()))

    def holder(self, job_id: str, index: int) -> str:
        """The worker that runs an item or ran it last; empty before the first."""
        text = self._scripts.reply(lambda: self._client.hget(self._keys("item", job_id), str(index)))
        return str(json.loads(text)["w"]) if text else ""

    def result(self, job_id: str, index: int) -> tuple[str, ItemResult] | None:
        """Claim id and result of a done item; None where it is not done."""
        pipe = self._client.pipeline(transaction=True)
        pipe.hget(self._keys("item", job_id), str(index))
        pipe.hget(self._keys("result", job_id), str(index))
        item, result = self._scripts.reply(pipe.execute)
        if item is None or result is None:
            return None
        return json.loads(item)["c"], load(ItemResult, result)

    def wait_events(self, job_id: str, cursor: str, block_s: float) -> tuple[str, list[JobEvent]]:
        """Events after ``cursor`` (empty: from now on), waiting up to ``block_s`` for the first one; the new cursor and the events."""
        key = self._keys("events", job_id)
        if not cursor:
            newest = self._scripts.reply(lambda: self._client.xrevrange(key, count=1))
            cursor = newest[0][0] if newest else "0"
        block_ms = max(1, to_ms(block_s)) if block_s > 0 else None
        reply = self._scripts.reply(lambda: self._client.xread({key: cursor}, block=block_ms, count=500))
        entries = (reply[key][0] if isinstance(reply, dict) else reply[0][1]) if reply else []
        events = [_event(fields) for _, fields in entries]
        return (entries[-1][0] if entries else cursor), events

    def unfetched(self, job_id: str) -> int:
        """Bytes of results that nobody has fetched yet."""
        return int(float(self._field(job_id, "unfetched") or 0))

    def in_flight(self) -> dict[str, int]:
        """Job -> bytes of its results that nobody has fetched yet, and of those that are being made; without those that have none."""
        found = self._scripts.reply(lambda: self._client.hgetall(self._keys("unsettled")))
        return {job_id: int(float(size)) for job_id, size in found.items()}

    # -- collect -------------------------------------------------------------------------------------------------------
    def own(self, job_id: str, owner: str) -> bool:
        """Keep the owner lease, or get it where there is no owner; False where another owner is alive."""
        ttl_ms = to_ms(self._settings.owner_ttl_s)
        outcome = self._scripts.transition("collect", "own", job_id, owner, ttl_ms)
        if outcome == "new":  # whoever submitted it died before its signatures were matched
            self._match(job_id)
        return outcome in ("ok", "new")

    def owner(self, job_id: str) -> str:
        """Who holds the owner lease; empty where nobody does."""
        return str(self._scripts.reply(lambda: self._client.get(self._keys("owner", job_id))) or "")

    def owner_lease_ms(self, job_id: str) -> int:
        """What is left of the owner lease; 0 where nobody holds it."""
        return max(0, int(self._scripts.reply(lambda: self._client.pttl(self._keys("owner", job_id)))))

    def disown(self, job_id: str, owner: str) -> None:
        """Give the owner lease back at once."""
        self._scripts.transition("collect", "disown", job_id, owner)

    def mark_fetched(self, job_id: str, index: int, claim_id: str) -> None:
        """The item's bytes are no longer in flight."""
        self._scripts.transition("collect", "fetched", job_id, index, claim_id)

    def reopen(self, job_id: str, index: int, claim_id: str) -> bool:
        """A blob of this result is gone or damaged: run the item again; counts as an attempt.

        One that an earlier job finished has no feed here; it waits for `unblock` where it needs one.

        Returns:
            False where the item is not done by this claim (any more), or its job was cancelled or has failed.
        """
        error = BlobMissing(blob=f"of item {index}")
        wire = json.dumps({**error.to_wire(), "worker": "", "index": index})
        meta = celery_meta.failure(job_id, index, error)
        needs = _requirements(self.record(job_id))
        outcome = self._scripts.transition("collect", "reopen", job_id, index, claim_id, *needs, self._settings.max_attempts, wire, meta)
        if outcome == "new":
            self._match(job_id)
        return outcome in ("ok", "new")

    def extend(self, job_id: str, specs: Sequence[ItemSpec], *, finished: Sequence[FinishedItem] = (), final: bool = False) -> bool:
        """Add items to a job that grows, all blocked; those that it has already stay as they are.

        A job that grows is not done before the call that says ``final``.  A worker must meet the job's first requirement to run them.

        Args:
            specs: in the order of their indexes, which go on where the job's end.
            finished: those of them that an earlier job finished; they are done at once.
            final: these are the last ones (there may be none).
        Returns:
            False where something would change, but the job has ended (or is unknown), or does not grow (any more).
        """
        key, done = self._keys("prompts", job_id), {item.index: item for item in finished}
        stored = self._scripts.reply(lambda: self._client.hget(key, TEMPLATES))
        templates, packed = pack_specs(specs, json.loads(stored or "[]"))
        for start in range(0, max(1, len(packed)), _EXTEND_BATCH):
            batch = packed[start : start + _EXTEND_BATCH]
            known = [done[index] for index, _ in batch if index in done]
            last = final and start + _EXTEND_BATCH >= len(packed)
            args = [int(last), canonical_json(templates), len(batch), len(known), *(part for pair in batch for part in pair)]
            if self._scripts.transition("collect", "extend", job_id, *args, *_finished(job_id, known)) != "ok":
                return False
        return True

    def restore(self, job_id: str, finished: Sequence[FinishedItem]) -> bool:
        """Items that their owner has are done (again): a crash of the server made the table forget that they were.

        Those that are done or have failed stay so; who runs one of the others is told to stop.  False where the job has ended.
        """
        batches = (finished[start : start + _UNBLOCK_BATCH] for start in range(0, len(finished), _UNBLOCK_BATCH))
        return all(self._scripts.transition("collect", "restore", job_id, *_finished(job_id, batch)) == "ok" for batch in batches)

    def unblock(self, job_id: str, ready: Sequence[tuple[int, str]]) -> bool:
        """Make items claimable, in this order, and keep the feed of each; those that are not blocked stay as they are.

        Args:
            ready: (index, feed as JSON); what a tile's feed names lies in the blob store already.
        Returns:
            False where one of them is blocked and the job has ended, or where there is no such job.
        """
        batches = (ready[start : start + _UNBLOCK_BATCH] for start in range(0, len(ready), _UNBLOCK_BATCH))
        parts = ([part for pair in batch for part in pair] for batch in batches)
        return all(self._scripts.transition("collect", "unblock", job_id, *batch) == "ok" for batch in parts)

    def note_spool(self, job_id: str, spool: SpoolPlace) -> None:
        """Say where the owner keeps what it fetches."""
        self._scripts.transition("collect", "spool", job_id, spool.host, spool.folder, spool.out)

    def spool(self, job_id: str) -> SpoolPlace | None:
        """Where the job's results were fetched to; None where nobody has begun to."""
        key = self._keys("job", job_id)
        host, folder, out = self._scripts.reply(lambda: self._client.hmget(key, "spool_host", "spool", "out"))
        return SpoolPlace(host, folder, out) if folder else None

    def settle(self, job_id: str) -> None:
        """The owner has all it wants of an ended job: nothing of it is in flight any more."""
        self._scripts.transition("collect", "settle", job_id)

    # -- steer ---------------------------------------------------------------------------------------------------------
    def cancel(self, job_id: str, reason: str) -> None:
        """Stop everything of the job.

        Raises:
            JobUnknown: no such job.
            JobStateInvalid: it has ended.
        """
        self._steer("cancel", job_id, "a job that has not ended", reason)

    def pause(self, job_id: str) -> None:
        """Hand out no further items; errors as `cancel`."""
        self._steer("pause", job_id, "a job that has not ended")

    def resume(self, job_id: str) -> None:
        """Hand out items again; errors as `cancel`."""
        self._steer("resume", job_id, "a job that has not ended")

    def set_priority(self, job_id: str, priority: int) -> None:
        """0 (last) to 9 (first); errors as `cancel`."""
        self._steer("priority", job_id, "a job that has not ended", priority)

    def retry(self, job_id: str) -> None:
        """Run the failed and stopped items of a failed or cancelled job again; errors as `cancel`."""
        record = self.record(job_id)
        if self._steer("retry", job_id, "a failed or cancelled job", *_requirements(record)) == "new":
            self._match(job_id)

    def drain(self, worker: str, drained: bool = True) -> bool:
        """Let a worker claim nothing more (or again); False where there is no such worker."""
        return self._scripts.transition("steer", "drain" if drained else "undrain", worker, "") == "ok"

    def _steer(self, order: str, job_id: str, needed: str, *args: str | int) -> str:
        outcome = self._scripts.transition("steer", order, job_id, *args)
        if outcome == "unknown":
            raise JobUnknown(job_id=job_id)
        if outcome not in ("ok", "new"):
            raise JobStateInvalid(job_id=job_id, state=outcome, order=order, needed=needed)
        return outcome

    def _match(self, job_id: str) -> None:
        key = self._keys("job", job_id)
        sigs = self._scripts.reply(lambda: self._client.hmget(key, "sig", "last_sig"))
        self._matching.match_signatures(sig.split("!")[0] for sig in sigs if sig)

    def _hash(self, name: str, job_id: str) -> dict[str, str]:
        key = self._keys(name, job_id)
        return dict(self._scripts.reply(lambda: self._client.hgetall(key)))

    def _field(self, job_id: str, name: str) -> str:
        key = self._keys("job", job_id)
        return str(self._scripts.reply(lambda: self._client.hget(key, name)) or "")


def _record(job_id: str, text: str | None) -> JobRecord:
    if not text:
        raise JobUnknown(job_id=job_id)
    return load(JobRecord, text)


def _prompts(stored: dict[str, str]) -> tuple[dict[str, Prompt], list[str]]:
    templates = json.loads(stored.pop(TEMPLATES, "[]"))
    return {name: json.loads(text) for name, text in stored.items()}, templates


def _in_order(prompt: Prompt) -> str:
    """A prompt as JSON, in the user's order: some nodes look at the order of their inputs."""
    return json.dumps(prompt, separators=(",", ":"), ensure_ascii=False)


def _only(specs: Iterable[ItemSpec], kind: ItemKind) -> str:
    """Index of the item of this kind, of which a job has at most one; empty where there is none."""
    return next((str(spec.index) for spec in specs if spec.kind == kind), "")


def _finished(job_id: str, items: Iterable[FinishedItem]) -> list[str | int]:
    """Finished items as the scripts take them."""
    args: list[str | int] = []
    for item in items:
        meta = celery_meta.success(job_id, item.index, item.result)
        args += [item.index, item.claim_id, item.result.worker, dump(item.result), item.result.size_bytes, meta]
    return args


def _requirements(record: JobRecord) -> tuple[str, str]:
    any_worker = Requirement("", ())
    return dump(record.requirement or any_worker), dump(record.last_requirement) if record.last_requirement else ""


def _item_state(item: dict[str, Any], error: str | None) -> ItemState:
    attempts = item.get("a") or {}
    return ItemState(item["s"], item["c"], item["w"], sum(attempts.values()), json.loads(error) if error else None)


def _event(fields: Mapping[str, str]) -> JobEvent:
    return JobEvent(cast("EventKind", fields["k"]), int(fields["i"] or -1), fields["c"], fields["w"])
