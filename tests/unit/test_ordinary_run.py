"""How a prompt on a worker ends where several things happen to it at once."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distributed_comfy.comfyui.ordinary_run import Ending, OrdinaryRun
from distributed_comfy.comfyui.queue_consumer import TakenPrompt


class Told:
    """What ComfyUI's clients are sent."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __call__(self, event: str, _facts: Any, _client: Any) -> None:
        self.events.append(event)


@pytest.fixture
def told() -> Told:
    return Told()


def run_of(told: Told) -> OrdinaryRun:
    """Of a prompt that has not begun."""
    item = (1, "p", {"1": {"class_type": "A", "inputs": {}}}, {"client_id": "c"}, ["1"])
    around: Any = SimpleNamespace(send_sync=told, folders={"output": Path()})
    cluster: Any = None
    return OrdinaryRun(cluster, TakenPrompt(item, 0), around)


def test_a_prompt_that_goes_back_stays_ended_where_its_user_has_interrupted_it_meanwhile(told: Told) -> None:
    run = run_of(told)
    run.give_up("no worker has taken it")
    run.interrupt()
    assert run.settled(Ending("back", "no worker has taken it")).kind == "interrupted"
    assert told.events == ["execution_interrupted"] and run.events.messages[-1][0] == "execution_interrupted"


def test_without_an_interrupt_it_goes_back_and_what_is_done_is_done(told: Told) -> None:
    run = run_of(told)
    run.give_up("no worker has taken it")
    assert run.settled(Ending("back", "why")) == Ending("back", "why")
    run.interrupt()
    assert run.settled(Ending("done")) == Ending("done") and told.events == []
