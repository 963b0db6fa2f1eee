"""A master that takes part tells the table that it lives, whichever table that is."""
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import redis

from distributed_comfy.comfyui.guest import Guest
from distributed_comfy.state.records import WorkerFacts
from tests.command_line import until


class Table:
    """Notes what it is told; can be away."""

    def __init__(self) -> None:
        self.settings = SimpleNamespace(renew_interval_s=0.01)
        self.workers = self
        self.registered: list[str] = []
        self.renewed = 0
        self.fault: Exception | None = None

    def register_guest(self, facts: WorkerFacts, incarnation: str) -> None:
        self.registered.append(incarnation)

    def claim(self, *_: object) -> None:
        return None

    def renew(self, name: str, incarnation: str, held: tuple[str, ...]) -> Any:
        assert incarnation == self.registered[-1]
        self.renewed += 1
        if self.fault is not None:
            raise self.fault
        return SimpleNamespace(alive=True)


def test_a_guest_lives_in_the_cluster_of_its_last_claim_alone() -> None:
    guest, old, new = Guest(WorkerFacts("pc1-master", "pc1", "", "comfyui", "1")), Table(), Table()
    guest.claim(old, "job")  # type: ignore[arg-type]
    guest.claim(old, "job")  # type: ignore[arg-type]
    until(lambda: old.renewed > 1)
    old.fault = redis.ConnectionError("gone")
    guest.claim(new, "job")  # type: ignore[arg-type]
    until(lambda: new.renewed > 1)
    assert len(old.registered) == len(new.registered) == 1 and old.registered != new.registered
    until(lambda: new.renewed > 5)
    said, told = old.renewed, new.renewed
    until(lambda: new.renewed > told + 5)
    assert old.renewed == said
