"""One thread keeps the owner leases of all jobs, and tells those whose cluster stays away."""
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import redis

from distributed_comfy.comfyui import keeping
from distributed_comfy.comfyui.keeping import JobKeeper
from tests.command_line import until


class Table:
    """Notes what it is told; can be away."""

    def __init__(self) -> None:
        self.settings = SimpleNamespace(reaper_interval_s=0.01, owner_ttl_s=0.04)
        self.jobs = self.workers = self
        self.owned: list[str] = []
        self.disowned: list[str] = []
        self.reaped = 0
        self.away = False
        self.invites = None

    def own(self, job_id: str, owner: str) -> bool:
        self._answer()
        self.owned.append(job_id)
        return True

    def disown(self, job_id: str, owner: str) -> None:
        self._answer()
        self.disowned.append(job_id)

    def reap(self, process_id: str) -> Any:
        self._answer()
        self.reaped += 1
        return SimpleNamespace(gone=(), abandoned=())

    def _answer(self) -> None:
        if self.away:
            raise redis.ConnectionError("gone")


def test_jobs_are_owned_until_they_are_left() -> None:
    keeper, table = JobKeeper(), Table()
    for job in ("a", "b"):
        keeper.keep(table, job, "me", lambda: None)  # type: ignore[arg-type]
    until(lambda: table.owned.count("a") > 3 and table.owned.count("b") > 3 and table.reaped > 3)
    keeper.leave("a")
    assert table.disowned == ["a"]
    until(lambda: table.owned[-5:] == ["b"] * 5)
    keeper.leave("a")
    assert table.disowned == ["a"]


def test_jobs_of_a_cluster_that_stays_away_are_told_and_those_of_another_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "AWAY_S", 0.2)
    keeper, gone, other = JobKeeper(), Table(), Table()
    told: list[str] = []
    keeper.keep(gone, "lost", "me", lambda: told.append("lost"))  # type: ignore[arg-type]
    keeper.keep(other, "well", "me", lambda: told.append("well"))  # type: ignore[arg-type]
    until(lambda: gone.owned and other.owned)
    gone.away = True
    owned = len(other.owned)
    until(lambda: told)
    assert set(told) == {"lost"} and len(other.owned) > owned
    keeper.leave("lost")
    assert gone.disowned == []
