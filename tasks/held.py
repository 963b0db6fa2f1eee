"""The claims a worker holds, from just before it asks for one until the table has answered its end."""
from __future__ import annotations

import threading
import uuid
from typing import Literal

Phase = Literal["asking", "reserved", "started", "shipping", "ending"]
"""asking: the claim script may or may not have run; ending: complete or give-back is under way."""


class HeldClaims:
    """Thread-safe; `renew` reports all of them, and acts on a loss only where the engine may be working."""

    def __init__(self) -> None:
        self._phases: dict[str, Phase] = {}
        self._interrupted: set[str] = set()
        self._lock = threading.Lock()

    def new(self) -> str:
        """A fresh claim id, held from now on; made per delivery, so a ticket that comes twice asks twice."""
        claim_id = uuid.uuid4().hex
        with self._lock:
            self._phases[claim_id] = "asking"
        return claim_id

    def advance(self, claim_id: str, phase: Phase) -> None:
        """The claim enters its next phase; ignored for one that is not held."""
        with self._lock:
            if claim_id in self._phases:
                self._phases[claim_id] = phase

    def drop(self, claim_id: str) -> None:
        """The table has answered: the claim is over."""
        with self._lock:
            self._phases.pop(claim_id, None)
            self._interrupted.discard(claim_id)

    def interrupt(self, claim_id: str) -> None:
        """Mark a claim whose item is to end, whoever works on it; ignored for one that is not held."""
        with self._lock:
            if claim_id in self._phases:
                self._interrupted.add(claim_id)

    def is_interrupted(self, claim_id: str) -> bool:
        """Whether a claim is marked."""
        with self._lock:
            return claim_id in self._interrupted

    def all(self) -> list[str]:
        """Every claim id, for `renew`."""
        with self._lock:
            return list(self._phases)

    def running(self) -> list[str]:
        """Claims whose item the engine has, or whose files are on their way to it."""
        with self._lock:
            return [claim for claim, phase in self._phases.items() if phase in ("reserved", "started", "shipping")]

    def is_running(self, claim_id: str) -> bool:
        """True where this claim is one of `running`."""
        with self._lock:
            return self._phases.get(claim_id) in ("reserved", "started", "shipping")

    def __len__(self) -> int:
        with self._lock:
            return len(self._phases)
