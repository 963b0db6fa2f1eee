"""What an engine passes on of ComfyUI's messages, and what a submitter hears of it."""
from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from distributed_comfy.engine.comfyui.echo import Echo, history_of, with_words
from distributed_comfy.engine.comfyui.listener import ClientListener
from distributed_comfy.engine.protocol import Progress, Said
from distributed_comfy.engine.reports import SAID_LIMIT_BYTES, ClaimSink
from distributed_comfy.errors import OutOfMemory
from distributed_comfy.messages import RunHistory

Sent = list[tuple[str, Any]]


class Sink:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said_so_far: Sent = []
        self.steps: list[tuple[str, int, int]] = []

    def progress(self, node_id: str, value: int, maximum: int) -> None:
        self.steps.append((node_id, value, maximum))

    def preview(self, node_id: str, image: bytes) -> None:
        """Nothing."""

    def said(self, event: str, facts: dict[str, Any]) -> None:
        self.said_so_far.append((event, facts))


def state(node_id: str, value: int, maximum: int, what: str = "running") -> dict[str, Any]:
    return {"nodes": {node_id: {"value": value, "max": maximum, "state": what, "real_node_id": node_id}}, "prompt_id": "c"}


def test_messages_that_say_how_a_prompt_gets_on_are_passed_on_and_those_of_packs_are_not() -> None:
    sink = Sink()
    echo = Echo(sink)
    passed_on = ["execution_cached", "executing", "executed", "progress", "progress_state"]
    for event in (*passed_on, "crystools.monitor", "execution_start", "status"):
        echo.receive(event, {"node": "1", "prompt_id": "c"})
    echo.receive("execution_error", {"exception_type": "ValueError"})
    assert [event for event, _ in sink.said_so_far] == passed_on, "an error that ends the prompt goes with its end"
    echo.receive("execution_error", {"exception_type": "ExecutionBlocked"})
    assert sink.said_so_far[-1][0] == "execution_error"


def test_of_many_steps_the_first_and_the_last_are_passed_on_and_few_between() -> None:
    sink = Sink()
    echo = Echo(sink)
    for step in range(1, 1001):
        echo.receive("progress_state", state("7", step, 1000))
        echo.receive("progress", {"node": "7", "value": step, "max": 1000, "prompt_id": "c"})
    echo.receive("progress_state", state("7", 1000, 1000, "finished"))
    values = [facts["value"] for event, facts in sink.said_so_far if event == "progress"]
    nodes = [facts["nodes"]["7"] for event, facts in sink.said_so_far if event == "progress_state"]
    states = [(node["value"], node["state"]) for node in nodes]
    assert (values[0], values[-1]) == (1, 1000) and len(values) < 50
    assert (states[0], states[-2:]) == ((1, "running"), [(1000, "running"), (1000, "finished")]) and len(states) < 50


def test_the_engine_echoes_only_where_it_is_asked_to_and_tells_steps_as_ever() -> None:
    for echoes in (False, True):
        listener, sink = ClientListener(), Sink()
        listener.begin(sink, echoes=echoes)
        listener.receive("executing", {"node": "7", "prompt_id": "c"})
        listener.receive("progress_state", state("7", 1, 4))
        listener.end()
        listener.receive("executing", {"node": "8", "prompt_id": "c"})
        assert sink.steps == [("7", 1, 4)]
        assert [event for event, _ in sink.said_so_far] == (["executing", "progress_state"] if echoes else [])


def test_what_is_no_json_or_too_long_does_no_harm() -> None:
    sent: list[Any] = []
    sink = ClaimSink("c", sent.append, lambda: None)
    sink.said("executed", {"output": {"odd": [object]}})
    sink.said("executed", {"output": {"text": ["x" * SAID_LIMIT_BYTES]}})
    sink.progress("7", 1, 1)
    said, progress = sent
    assert isinstance(said, Said) and json.loads(said.facts_json)["output"]["odd"] == ["<class 'object'>"]
    assert isinstance(progress, Progress)


def test_the_history_of_a_run_is_that_of_its_executor() -> None:
    messages = [("execution_start", {}), ("execution_cached", {"nodes": ["2", "1"]}), ("execution_success", {})]
    meta = {"9.0.1": {"node_id": "9.0.1", "display_node": "9", "parent_node": "9", "real_node_id": "9"}}
    executor = SimpleNamespace(status_messages=messages, history_result={"outputs": {}, "meta": meta})
    assert history_of(executor) == RunHistory(("2", "1"), meta)


def test_an_error_carries_comfyuis_own_words_without_the_id_of_the_claim() -> None:
    names = {"node_id": "7", "class_type": "K", "exception_type": "E", "exception_message": "m", "traceback": "t"}
    facts = {"node_id": "7", "current_inputs": {"seed": [1]}, "prompt_id": "claim", "timestamp": 5}
    error = with_words(OutOfMemory(device="cpu", **names), "execution_error", facts)
    assert isinstance(error, OutOfMemory) and error.fields["device"] == "cpu"
    assert error.said == {"event": "execution_error", "facts": {"node_id": "7", "current_inputs": {"seed": [1]}}}
