"""Why a job waits of which nothing runs: no worker is there, or none has what it needs."""
from __future__ import annotations

import logging
from collections.abc import Mapping

from distributed_comfy.errors import ClusterUnavailable, JobUnknown, MessageVersionUnknown
from distributed_comfy.messages import Capability, JobRecord, Requirement
from distributed_comfy.orchestrator.waiting import needed_next, nobody_can_run, waits, why_it_waits
from distributed_comfy.planning.requirements import matches
from distributed_comfy.state.records import JobState
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

Words = tuple[str, str]
"""Why, and what to do; both empty where there is nothing to say."""

_MOST = 50
"""Jobs that are looked at, the oldest first: what waits behind them waits for them, too."""
_LONGEST = 400
_REMEDY = "install on a worker what it lacks, or start a worker that has it; the job then goes on by itself"


class Unserved:
    """Looks at the jobs of one cluster; used by one thread."""

    def __init__(self) -> None:
        self._records: dict[str, JobRecord | None] = {}
        """None: it cannot be read here, or is gone."""
        self._told = False

    def look(self, cluster: Cluster, jobs: Mapping[str, JobState]) -> dict[str, Words]:
        """Words about those that nobody can run now."""
        idle = sorted((job_id for job_id, state in jobs.items() if waits(state)), key=lambda job_id: jobs[job_id].created_ms)[:_MOST]
        self._records = {job_id: self._records[job_id] for job_id in idle if job_id in self._records}
        if not idle:
            return {}
        for job_id in idle:
            if job_id not in self._records:
                self._records[job_id] = _record(cluster, job_id)
        live, found = cluster.matching.live(), {}
        served: dict[Requirement | None, bool] = {}
        for job_id, record in self._records.items():
            try:
                need = needed_next(record, jobs[job_id]) if record else None
                if need not in served:
                    served[need] = _is_served(need, live)
                if record and not served[need] and (error := nobody_can_run(record, jobs[job_id], live)):
                    found[job_id] = in_words(error)
            except Exception:  # noqa: BLE001 - of what others have written: it is to take no other job from the page
                self._tell(job_id)
        return found

    def _tell(self, job_id: str) -> None:
        """That something is wrong with a job; of the first one, and once."""
        if not self._told:
            log.exception("why job %s waits cannot be told; please report it", job_id)
        self._told = True


def why_unserved(cluster: Cluster, job_id: str, state: JobState) -> Words:
    """The same of one job."""
    record = _record(cluster, job_id) if waits(state) else None
    error = nobody_can_run(record, state, cluster.matching.live()) if record else None
    return in_words(error) if error else ("", "")


def in_words(error: ClusterUnavailable) -> Words:
    """For a page; with a hundred workers not of each."""
    said = why_it_waits(error)
    if len(said) > _LONGEST:
        said = said[:_LONGEST] + "…"
    return said, _REMEDY if "lacks" in error.fields else "start one, or add one under Workers"


def _is_served(need: Requirement | None, live: Mapping[str, Capability]) -> bool:
    """Workers that are alike share their capability, and jobs that are alike their need: this is asked every other second."""
    if need is None:
        return bool(live)
    return any(matches(need, capability) for capability in {id(each): each for each in live.values()}.values())


def _record(cluster: Cluster, job_id: str) -> JobRecord | None:
    try:
        return cluster.jobs.record(job_id)
    except (JobUnknown, MessageVersionUnknown):
        return None
