"""How far each claim of an engine process is, and how quiet its work."""
from __future__ import annotations

import time

from distributed_comfy.engine.claims import ClaimBook, LifeSign, Stage


def test_a_claim_goes_from_queued_to_its_end() -> None:
    book = ClaimBook()
    assert book.add("c1", "j-0")
    assert book.advance("c1", Stage.RUNNING)
    assert book.advance("c1", Stage.SHIPPING)
    book.end("c1")
    assert book.all() == []


def test_a_claim_that_is_here_is_not_taken_twice() -> None:
    book = ClaimBook()
    assert (book.add("c1", "j-0"), book.add("c1", "j-0")) == (True, False)


def test_an_interrupted_claim_that_waits_is_gone_at_once() -> None:
    book = ClaimBook()
    book.add("c1", "j-0")
    assert book.interrupt("c1") == (Stage.QUEUED, "j-0")
    assert not book.advance("c1", Stage.RUNNING)
    assert book.all() == []


def test_an_interrupted_claim_that_runs_does_not_get_to_ship() -> None:
    book = ClaimBook()
    book.add("c1", "j-0")
    book.advance("c1", Stage.RUNNING)
    assert book.interrupt("c1") == (Stage.RUNNING, "j-0")
    assert book.is_interrupted("c1")
    assert not book.advance("c1", Stage.SHIPPING)


def test_an_interrupt_for_a_claim_that_ended_leaves_no_mark() -> None:
    book = ClaimBook()
    assert book.interrupt("c1") == (None, "")
    book.add("c1", "j-0")
    assert not book.is_interrupted("c1")


def test_work_is_quiet_only_while_there_is_some() -> None:
    life = LifeSign()
    assert life.quiet_s == 0
    life.touch()
    time.sleep(0.02)
    assert life.quiet_s >= 0.02
    life.rest()
    assert life.quiet_s == 0
