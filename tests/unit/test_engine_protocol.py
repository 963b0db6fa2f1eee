"""Orders and events survive the pipe; what is none of them is refused."""
from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from distributed_comfy.engine import protocol
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.engine.pipe import MessageReader, MessageWriter
from distributed_comfy.engine.protocol import from_message, to_message
from distributed_comfy.errors import EngineStartFailed, NodeFailed, PipeMalformed
from distributed_comfy.messages import Capability, Capture, ItemResult, MappingValue, RunHistory, RunRequest, TensorRef

CAPABILITY = Capability("builtin", "0.1.0", ("A", "B"), choices={"A": {"x": 0}}, choice_lists=(("one",),))
RESULT = ItemResult(
    captures=(Capture("9", "images", 0, MappingValue({"samples": TensorRef("b#1", "float32", (1, 2), 8)})),),
    outputs={"3": {"images": [{"filename": "x.png"}]}},
    history=RunHistory(("1",), {"3": {"display_node": "3"}}),
    seconds=1.25,
)
REQUEST = RunRequest("c", "j", 3, "generate", {"1": {"class_type": "A", "inputs": {"seed": 2**70, "x": 0.1}}}, ("1",), {})
OPTIONS = EngineOptions("builtin", "w", "python3", Path("/w"), Path("/w/log"), "redis://x", execution_log=Path("/w/executions"))
FAILED = NodeFailed(node_id="1", class_type="A", exception_type="ValueError", exception_message="ö", traceback=["line\n"])

ITEMS: list[Any] = [
    protocol.Init(OPTIONS),
    protocol.Run(REQUEST),
    protocol.Interrupt("c"),
    protocol.Free(),
    protocol.Describe(),
    protocol.Close(),
    protocol.Ready(CAPABILITY),
    protocol.Described(CAPABILITY),
    protocol.Started("c"),
    protocol.Progress("c", "12:5", 3, 20),
    protocol.Preview("c", "1", b"\xff\xd8\xff"),
    protocol.Said("c", "executing", '{"node": "12:5"}'),
    protocol.Shipping("c", 0.5),
    protocol.Waits("c", "the blob Redis is full"),
    protocol.Finished("c", RESULT),
    protocol.Beat(1.5),
    protocol.Beat(0.0, 3 * 2**30, 80 * 2**30),
]


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: type(item).__name__)
def test_an_item_is_the_same_after_the_pipe(item: Any) -> None:
    stream = io.BytesIO()
    MessageWriter(stream).write(to_message(item))
    stream.seek(0)
    message = MessageReader(stream).read()
    assert message is not None
    assert from_message(message) == item


@pytest.mark.parametrize("item", [protocol.Failed("c", FAILED), protocol.StartFailed(EngineStartFailed(reason="no torch"))])
def test_an_error_keeps_class_and_facts(item: Any) -> None:
    back = from_message(to_message(item)).error
    assert (type(back), back.fields) == (type(item.error), item.error.fields)


def test_a_fact_that_json_does_not_know_is_told_as_text() -> None:
    error = NodeFailed(node_id="1", class_type="A", exception_type="E", exception_message="x", traceback=Path("/t"))
    assert from_message(to_message(protocol.Failed("c", error))).error.traceback == "/t"


@pytest.mark.parametrize(
    "message",
    [
        {"type": "explode"},
        {"type": "interrupt"},
        {"type": "interrupt", "claim_id": "c", "extra": 1},
        {"type": "run", "request": "{}"},
        {"type": "run", "request": "not json"},
        {"type": "failed", "claim_id": "c", "error": "not json"},
    ],
    ids=["unknown type", "missing field", "stray field", "other record", "no record", "no error"],
)
def test_what_is_no_order_and_no_event_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(PipeMalformed):
        from_message(message)
