"""What is known of prompts that wait."""
from __future__ import annotations

import logging
from typing import Any

import pytest

from distributed_comfy.comfyui.ordinary_rules import Suitable
from distributed_comfy.comfyui.ordinary_verdicts import RETURNS, Live, Verdicts
from distributed_comfy.comfyui.queue_consumer import Item
from distributed_comfy.messages import Requirement
from tests.prompts import capability

LIVE = {"one": capability()}
YES = Suitable(Requirement("comfyui", ()))


def item(prompt: Any = "yes") -> Item:
    """An entry of the queue; all have the same id."""
    return (1, "p", prompt, {}, ["1"])


class Judge:
    """Says what the prompt says."""

    def __init__(self) -> None:
        self.asked: list[Item] = []

    def __call__(self, entry: Item, _live: Live) -> Suitable | str:
        self.asked.append(entry)
        if entry[2] == "fails":
            raise TypeError("unhashable")
        return YES if entry[2] == "yes" else str(entry[2])


def test_entries_of_one_id_are_judged_each_for_itself_and_once() -> None:
    judge = Judge()
    verdicts = Verdicts(judge)
    stays, goes = item("no"), item()
    for _ in range(2):
        assert verdicts.of(stays, LIVE) == "no" and verdicts.of(goes, LIVE) is YES
    assert judge.asked == [stays, goes]


def test_other_workers_are_another_question() -> None:
    judge = Judge()
    verdicts = Verdicts(judge)
    entry = item()
    for live in (LIVE, {**LIVE, "two": capability()}, LIVE):
        verdicts.of(entry, live)
    assert len(judge.asked) == 3


def test_what_comes_back_too_often_or_for_good_stays_and_its_namesake_does_not() -> None:
    verdicts = Verdicts(Judge())
    often, once, other = item(), item(), item()
    for _ in range(RETURNS):
        verdicts.came_back(often, stays=False)
        assert verdicts.of(often, LIVE) is YES
    verdicts.came_back(often, stays=False)
    verdicts.came_back(once, stays=True)
    assert isinstance(verdicts.of(often, LIVE), str) and isinstance(verdicts.of(once, LIVE), str)
    assert verdicts.of(other, LIVE) is YES


def test_a_prompt_that_cannot_be_judged_stays_and_keeps_no_other_one_here(caplog: pytest.LogCaptureFixture) -> None:
    verdicts = Verdicts(Judge())
    entry = item("fails")
    with caplog.at_level(logging.INFO):
        assert verdicts.of(entry, LIVE) == verdicts.of(entry, LIVE) == "an error of ours: unhashable"
    assert caplog.text.count("please report") == 1
    assert verdicts.of(item(), LIVE) is YES


def test_entries_that_are_gone_are_forgotten() -> None:
    verdicts = Verdicts(Judge())
    kept, gone = item(), item()
    for entry in (kept, gone):
        verdicts.came_back(entry, stays=True)
    verdicts.keep([kept])
    assert len(verdicts) == 1 and isinstance(verdicts.of(kept, LIVE), str)
