"""Items of a job as the panel shows them; of a job that somebody watches, what changes of them."""
from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from distributed_comfy.errors import DistributedComfyError, MessageVersionUnknown
from distributed_comfy.messages import FileRef, ItemResult, ItemSpec, TensorRef, load
from distributed_comfy.panel.steps import Steps, StepView
from distributed_comfy.panel.words import item_error
from distributed_comfy.state.keys import Keys
from distributed_comfy.state.records import ItemState, JobState, SpoolPlace
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

_LOOK_S = 0.5
_DIMENSIONS = 4
_LARGEST_SIDE_PX = 16_384
_ERRORS = ("failed", "waiting")
"""States in which the last error of an item still says something; afterwards it succeeded."""


@dataclass(frozen=True)
class ResultFacts:
    """What the panel needs to know of a result."""

    seconds: float
    has_picture: bool


@dataclass
class KnownItems:
    """What was read of one job."""

    specs: dict[int, ItemSpec] = field(default_factory=dict)
    results: dict[int, ResultFacts] = field(default_factory=dict)
    total: int = -1
    read_at: float = -_LOOK_S
    state: JobState | None = None
    shown: dict[str, dict[str, Any]] = field(default_factory=dict)
    odd: bool = False
    """Whether the last look failed because of what somebody wrote."""


def read_items(cluster: Cluster, job_id: str, known: KnownItems, steps: Steps) -> dict[str, dict[str, Any]]:
    """All items of a job as ``Item`` of openapi.json, by index; what never changes is kept in ``known``."""
    states = cluster.jobs.item_states(job_id)
    if known.specs.keys() != states.keys():
        known.specs = cluster.jobs.specs(job_id)
    for index in known.results.keys() - {index for index, state in states.items() if state.state == "done"}:
        del known.results[index]
    fresh = [index for index, state in states.items() if state.state == "done" and index not in known.results]
    known.results.update(_results(cluster, job_id, fresh))
    visible = has_pictures(cluster.jobs.spool(job_id), cluster.settings.host_name)
    return {
        str(index): _shown(known.specs[index], state, known.results.get(index), steps.of(job_id, index, state.worker), visible=visible)
        for index, state in states.items()
        if index in known.specs
    }


def has_pictures(spool: SpoolPlace | None, host: str) -> bool:
    """Whether results lie where this host can read them: in the blob store still, or in a spool on its own disk."""
    return spool is None or (spool.host == host and Path(spool.folder).is_dir())


def _results(cluster: Cluster, job_id: str, indexes: Collection[int]) -> dict[int, ResultFacts]:
    if not indexes:
        return {}
    key = Keys(cluster.settings.key_prefix)("result", job_id)
    texts: Any = cluster.client.hmget(key, [str(index) for index in indexes])
    return {index: _facts(text) for index, text in zip(indexes, texts, strict=True) if text}


def _facts(text: str) -> ResultFacts:
    """Of a result as its worker wrote it, which may be anything."""
    try:
        result = load(ItemResult, text)
    except MessageVersionUnknown as error:
        log.debug("a result that cannot be read: %s", error)
        return ResultFacts(0.0, has_picture=False)
    seconds = result.seconds if math.isfinite(result.seconds) else 0.0
    return ResultFacts(seconds, has_picture=next(pictures_of(result), None) is not None)


def pictures_of(result: ItemResult) -> Iterator[TensorRef | FileRef]:
    """What of a result is an image."""
    for capture in result.captures:
        value = capture.value
        if isinstance(value, TensorRef) and is_image(value.shape):
            yield value
    yield from (file for file in result.files if file.media_type.startswith("image/"))


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether it is [B, H, W, C] of a size that is shown."""
    return len(shape) == _DIMENSIONS and shape[0] > 0 and shape[-1] in (1, 3, 4) and 0 < max(shape[1:3]) <= _LARGEST_SIDE_PX


def _shown(spec: ItemSpec, state: ItemState, result: ResultFacts | None, step: StepView | None, *, visible: bool) -> dict[str, Any]:
    number = step.number if step is not None and state.state == "running" else 0
    if result is not None:
        number = (step.number if step is not None else 0) + 1 if result.has_picture and visible else 0
    return {
        "index": spec.index, "kind": spec.kind, "seed": spec.seed, "state": state.state, "worker": state.worker,
        "attempts": state.attempts, "seconds": round(result.seconds, 3) if result else None,
        "error": item_error(state.error, state.worker) if state.state in _ERRORS else None, "preview": number,
    }  # fmt: skip


class WatchedItems:
    """Items of the jobs that somebody watches; used by one thread, but for `known`.

    Args:
        steps: what is heard of them.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._jobs: dict[str, KnownItems] = {}
        self._different: dict[str, dict[str, Any]] = {}

    def look(self, cluster: Cluster, watched: Collection[str], states: Mapping[str, JobState]) -> None:
        """Read them again where something may have happened."""
        for job_id in self._jobs.keys() - set(watched):
            del self._jobs[job_id]
        for job_id in watched:
            known = self._jobs.setdefault(job_id, KnownItems())
            state, now = states.get(job_id), time.monotonic()
            runs = state is not None and not state.ended
            if (state == known.state and not runs) or now - known.read_at < _LOOK_S:
                continue
            known.read_at = now
            after = self._read(cluster, job_id, known) if state is not None else {}
            known.state = state
            rows: dict[str, Any] = {index: item for index, item in after.items() if known.shown.get(index) != item}
            rows.update(dict.fromkeys(known.shown.keys() - after.keys()))
            known.shown = after
            if rows:
                self._different.setdefault(job_id, {}).update(rows)

    def _read(self, cluster: Cluster, job_id: str, known: KnownItems) -> dict[str, dict[str, Any]]:
        """What is there now; what was known before where it makes no sense: one odd job must not take the state from all pages."""
        try:
            after = read_items(cluster, job_id, known, self._steps)
        except (DistributedComfyError, redis.RedisError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever somebody wrote
            if not known.odd:
                log.warning("the panel cannot read the items of job %s (%s: %s)", job_id, type(error).__name__, error)
            known.odd = True
            return known.shown
        known.odd = False
        return after

    def changes(self) -> dict[str, dict[str, Any]]:
        """What was different since the last call: job -> index -> item, None where it is gone."""
        found, self._different = self._different, {}
        return found

    def known(self, job_id: str) -> dict[str, dict[str, Any]]:
        """What is known of a job's items now; empty before the first look."""
        known = self._jobs.get(job_id)
        return known.shown if known else {}
