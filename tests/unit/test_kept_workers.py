"""What the doctor says of workers that only their agents know of, and of hosts that are not heard of any more."""
from __future__ import annotations

from typing import Any

import pytest

from distributed_comfy.orchestrator.doctor.kept_workers import check_gone, check_kept, not_running
from distributed_comfy.state.records import GoneHost, HostRecord, HostWorker

MINUTE_MS = 60_000
NOW_MS = 1_700_000_000_000


def record(*workers: HostWorker, host: str = "pc2") -> HostRecord:
    return HostRecord(host, "me", 1, "a", workers=workers)


def own(phase: Any, reason: str = "", name: str = "pc2-cpu", **facts: Any) -> HostWorker:
    return HostWorker(name, phase, "cpu", reason=reason, **facts)


@pytest.mark.parametrize(
    ("worker", "level", "found", "remedy"),
    [
        (own("failed", "cuda:5 is not on this host; choose another"), "fail", "cuda:5 is not on this host", "choose another"),
        (own("failed"), "fail", "cannot start on pc2", "workers logs pc2-cpu"),
        (own("backing-off", "it ended with 1", next_start_s=7.2, restarts=3), "fail", "in 7 s (restart 3): it ended", "workers start"),
        (own("stopped", "its servers are gone"), "fail", "its servers are gone", "workers start pc2-cpu"),
        (own("starting", "it ended with 1"), "fail", "it ended with 1", "workers logs pc2-cpu"),
        (own("starting"), "warn", "is starting on pc2", "wait a moment"),
        (own("stopped"), "ok", "stopped by its user", ""),
        (own("disabled"), "ok", "switched off by its user", ""),
    ],
    ids=["failed", "failed silently", "backing off", "stopped by a failure", "fails to start", "starting", "stopped", "off"],
)  # fmt: skip
def test_a_worker_that_does_not_run_is_told_with_its_reason_and_what_to_do(worker: HostWorker, level: str, found: str, remedy: str) -> None:
    (finding,) = check_kept([record(worker)], [])
    assert (finding.check, finding.level) == ("worker pc2-cpu", level)
    assert found in finding.found and remedy in finding.remedy
    assert bool(finding.remedy) == (level != "ok")


def test_a_worker_that_can_be_tried_out_is_left_to_that() -> None:
    kept = [record(own("running"), own("failed", name="pc2-two"), own("stopped", name="pc2-three"))]
    assert [finding.check for finding in check_kept(kept, ["pc2-cpu"])] == ["worker pc2-three", "worker pc2-two"]
    assert not_running(kept) == {"pc2-two", "pc2-three"}


def test_a_host_that_is_missed_is_told_with_what_it_ran() -> None:
    gone = GoneHost(record(own("running"), own("stopped", name="pc2-off")), NOW_MS - 3 * MINUTE_MS)
    (finding,) = check_gone([gone], NOW_MS)
    assert (finding.check, finding.level) == ("host pc2", "fail")
    assert "(3 min ago)" in finding.found and "pc2-cpu" in finding.found and "pc2-off" not in finding.found
    assert "`distributed-comfy up` there" in finding.remedy and "hosts forget pc2" in finding.remedy
