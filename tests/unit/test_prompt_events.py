"""What the client of a prompt hears while a worker runs it, and what the history keeps."""
from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from distributed_comfy.comfyui.prompt_events import PREVIEW_WITH_METADATA, UNENCODED_PREVIEW, PromptEvents
from distributed_comfy.errors import EngineDied, NodeFailed
from distributed_comfy.messages import ItemResult, RunHistory
from distributed_comfy.orchestrator.progress import Said, Step

PROMPT = {"7": {"class_type": "KSampler", "inputs": {}}, "8": {"class_type": "PreviewAny", "inputs": {}}, "9": {"class_type": "SaveImage"}}
FILE = {"filename": "x_00001_.png", "subfolder": "", "type": "output"}
HERE = {**FILE, "filename": "x_00012_.png"}


class Client:
    """Keeps what is sent."""

    def __init__(self, client_id: str | None = "tab") -> None:
        self.sent: list[tuple[Any, Any, str | None]] = []
        self.events = PromptEvents(lambda *message: self.sent.append(message), "p1", client_id, PROMPT)

    def says(self, event: str, claim_id: str = "claim", **facts: Any) -> None:
        self.events.hear(Said(0, "w1", claim_id, event, {"prompt_id": claim_id, **facts}))

    def runs(self, node_id: str, claim_id: str = "claim") -> None:
        self.says("executing", claim_id, node=node_id, display_node=node_id)

    def states(self, claim_id: str = "claim", **states: str) -> None:
        nodes = {
            node_id[1:]: {"state": state, "node_id": node_id[1:], "real_node_id": node_id[1:], "display_node_id": node_id[1:],
                          "parent_node_id": None, "prompt_id": claim_id}
            for node_id, state in states.items()
        }  # fmt: skip
        self.says("progress_state", claim_id, nodes=nodes)

    def heard(self) -> list[str]:
        return [str(event) for event, _, _ in self.sent]

    def last(self) -> dict[str, Any]:
        facts: dict[str, Any] = self.sent[-1][1]
        return {name: value for name, value in facts.items() if name != "timestamp"}


def test_a_prompt_is_told_from_start_to_end_in_the_order_of_comfyui() -> None:
    client = Client()
    client.events.start()
    client.says("execution_cached", nodes=["7", "a warm node of another prompt"])
    client.runs("8")
    client.says("executed", node="8", display_node="8", output={"text": ["t"]})
    client.runs("9")
    client.says("executed", node="9", display_node="9", output={"images": [FILE]})
    assert client.heard() == ["execution_start", "execution_cached", "executing", "executed", "executing"], "the file is not here yet"
    outputs = {"8": {"text": ["t"]}, "9": {"images": [HERE]}}
    history = client.events.succeed(ItemResult(outputs={}, history=RunHistory(("7",))), outputs)
    client.events.end()
    assert client.heard()[5:] == ["executed", "execution_success", "executing"]
    assert client.sent[5][1] == {"node": "9", "display_node": "9", "output": {"images": [HERE]}, "prompt_id": "p1"}
    assert client.last() == {"node": None, "prompt_id": "p1"}
    assert {client_id for _, _, client_id in client.sent} == {"tab"}
    assert [event for event, _ in client.events.messages] == ["execution_start", "execution_cached", "execution_success"]
    assert client.events.messages[1][1]["nodes"] == ["7"]
    assert all(facts["prompt_id"] == "p1" and facts["timestamp"] > 1e12 for _, facts in client.events.messages)
    assert history["outputs"] == outputs
    assert history["meta"]["9"] == {"node_id": "9", "display_node": "9", "parent_node": None, "real_node_id": "9"}


def test_steps_after_a_file_wait_for_it_but_not_longer_than_until_the_next_node_begins() -> None:
    client = Client()
    client.runs("9")
    client.says("executed", node="9", display_node="9", output={"images": [FILE]})
    client.states(_9="finished")
    assert client.heard() == ["executing"]
    client.runs("8")
    client.states(_9="finished", _8="running")
    assert client.heard() == ["executing", "progress_state", "executing", "progress_state"]
    client.says("executed", node="8", display_node="8", output={"images": [FILE]})
    client.states(_9="finished", _8="finished")
    client.events.succeed(ItemResult(), {"9": {"images": [HERE]}, "8": {"images": [HERE]}})
    assert client.heard()[4:] == ["execution_cached", "executed", "executed", "progress_state", "execution_success"]


def test_the_workers_id_of_a_prompt_never_reaches_the_client() -> None:
    client = Client()
    client.states(_7="running")
    assert client.last()["prompt_id"] == "p1" and client.last()["nodes"]["7"]["prompt_id"] == "p1"


def test_what_was_lost_on_the_way_is_told_at_the_end() -> None:
    client = Client()
    client.runs("8")
    client.events.succeed(ItemResult(history=RunHistory(("7",))), {"8": {"text": ["t"]}, "9": {"images": [HERE]}})
    assert client.heard() == ["executing", "execution_cached", "executed", "executed", "execution_success"]


def test_a_prompt_that_begins_anew_on_another_worker_is_cached_once_in_the_history() -> None:
    client = Client()
    client.events.start()
    client.says("execution_cached", "one", nodes=["7"])
    client.runs("8", "one")
    client.says("execution_cached", "two", nodes=[])
    client.runs("7", "two")
    client.events.succeed(ItemResult(history=RunHistory()), {})
    assert [(event, facts.get("nodes")) for event, facts in client.events.messages] == [
        ("execution_start", None), ("execution_cached", []), ("execution_success", None),
    ]  # fmt: skip


def test_without_a_client_only_steps_are_told_and_to_everybody_as_comfyui_does() -> None:
    client = Client(None)
    client.events.start()
    client.runs("7")
    client.says("progress", node="7", value=1, max=4)
    client.states(_7="running")
    client.events.succeed(ItemResult(), {"9": {"images": [HERE]}})
    client.events.end()
    assert [(event, client_id) for event, _, client_id in client.sent] == [("progress", None), ("progress_state", None)]


def test_an_error_is_told_in_the_words_of_the_workers_comfyui() -> None:
    client = Client()
    client.events.start()
    facts = {
        "node_id": "7", "node_type": "KSampler", "executed": ["8"], "exception_message": "no\n", "exception_type": "ValueError",
        "traceback": ["line\n"], "current_inputs": {"seed": [1]}, "current_outputs": ["8"],
    }  # fmt: skip
    names = {"node_id": "7", "class_type": "KSampler", "exception_type": "ValueError", "exception_message": "no", "traceback": "line\n"}
    client.events.fail(NodeFailed(**names, said={"event": "execution_error", "facts": facts}))
    assert client.heard() == ["execution_start", "execution_error"]
    assert client.last() == {**facts, "prompt_id": "p1"}


def test_the_death_of_an_engine_is_an_error_of_the_node_that_ran() -> None:
    client = Client()
    client.states(_8="finished", _7="running")
    client.runs("8")
    client.runs("7")
    client.events.fail(EngineDied(status="signal 9 (SIGKILL)", log_tail=""))
    told = client.last()
    assert (told["node_id"], told["node_type"], told["executed"], told["exception_type"]) == ("7", "KSampler", ["8"], "EngineDied")
    assert "SIGKILL" in told["exception_message"]


@pytest.mark.parametrize("client_id", ["tab", None])
def test_an_interrupt_is_told_with_the_node_that_ran(client_id: str | None) -> None:
    client = Client(client_id)
    client.runs("8")
    client.runs("7")
    client.states(_8="finished", _7="running")
    client.events.interrupt()
    assert client.last() == {"node_id": "7", "node_type": "KSampler", "executed": ["8"], "prompt_id": "p1"}
    assert client.sent[-1][2] == client_id, "None: to everybody, as ComfyUI does"
    client.runs("9")
    assert client.heard()[-1] == "execution_interrupted", "later words of the worker are dropped"


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4), "red").save(buffer, "JPEG")
    return buffer.getvalue()


def test_previews_go_to_the_prompts_own_client_in_the_form_that_it_knows() -> None:
    client = Client()
    client.states(_7="running")
    client.events.preview(Step(0, "w1", "7", preview=jpeg()), with_metadata=True, side_px=64)
    client.events.preview(Step(0, "w1", "7", preview=jpeg()), with_metadata=False, side_px=4)
    client.events.preview(Step(0, "w1", "7", preview=b"no picture"), with_metadata=False, side_px=4)
    (new, (shown, whose), to), (old, plain, _) = client.sent[1:]
    assert (new, old, to) == (PREVIEW_WITH_METADATA, UNENCODED_PREVIEW, "tab")
    assert shown[0] == plain[0] == "JPEG" and shown[1].size == plain[1].size == (8, 4)
    assert (shown[2], plain[2]) == (64, None), "small ones are enlarged, as ComfyUI does, and others stay as they are"
    assert whose == {"node_id": "7", "prompt_id": "p1", "display_node_id": "7", "parent_node_id": None, "real_node_id": "7"}
    nobody = Client(None)
    nobody.events.preview(Step(0, "w1", "7", preview=jpeg()), with_metadata=False, side_px=4)
    assert nobody.sent == []
