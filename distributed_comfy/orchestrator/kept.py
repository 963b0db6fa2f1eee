"""Watches a job whose results stay in the blob store for Celery's result API: nothing is collected, and nobody has to watch."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path

from distributed_comfy.collector.collect import job_error
from distributed_comfy.collector.patience import Patience
from distributed_comfy.errors import RunInterrupted, from_wire
from distributed_comfy.messages import ItemResult, JobRecord
from distributed_comfy.orchestrator.delivery import Delivery
from distributed_comfy.state.records import JobState
from tasks.cluster import Cluster

_LOOK_S = 1.0


class KeptJob:
    """One job, watched until it has ended.

    Args:
        cluster: open connections.
        record: the job.
        on_item: told once of each finished item; what it made stays where it is.
        stop: gives up where the servers do not answer.
    """

    def __init__(self, cluster: Cluster, record: JobRecord, on_item: Callable[[int, ItemResult], None], stop: threading.Event) -> None:
        self._jobs = cluster.jobs
        self._record = record
        self._on_item = on_item
        self._ask = Patience(f"job {record.job_id}", stop)
        self._results: dict[int, ItemResult] = {}
        self._began = time.monotonic()

    def wait(self) -> Delivery:
        """What came of it: no files, but who made each item; with an ``error`` where the job is not complete."""
        job_id, missing = self._record.job_id, {}
        try:
            cursor, _ = self._ask.call(self._jobs.wait_events, job_id, "", 0.0)
            while not (state := self._look()).ended:
                cursor, _ = self._ask.call(self._jobs.wait_events, job_id, cursor, _LOOK_S)
            items = self._ask.call(self._jobs.item_states, job_id)
            error = job_error(job_id, state, items)
            missing = {} if error else {index: from_wire(item.error or {}) for index, item in items.items() if item.state == "failed"}
        except CancelledError:
            error = RunInterrupted(when="while no server answered; the job goes on")
        seconds = time.monotonic() - self._began
        return Delivery(job_id, Path(), results=self._results, seconds=seconds, missing=missing, error=error, kept=True)

    def _look(self) -> JobState:
        """The job first, so that the items of an ended one are final."""
        state = self._ask.call(self._jobs.job_state, self._record.job_id)
        for index, item in self._ask.call(self._jobs.item_states, self._record.job_id).items():
            if item.state != "done" or index in self._results:
                continue
            found = self._ask.call(self._jobs.result, self._record.job_id, index)
            if found is not None:
                self._results[index] = found[1]
                self._on_item(index, found[1])
        return state
