"""Texts out of a fuzzer, for whatever reads another process' words: something that can be used comes of them, or an error of our own.

`make fuzz` runs the same for minutes.  What it finds becomes an `example` here, or a file in ``tests/golden/findings``.
"""
from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distributed_comfy.access.token import JoinToken, read_token
from distributed_comfy.engine.protocol import _TYPES as TYPES
from distributed_comfy.engine.protocol import from_message
from distributed_comfy.errors import (
    DistributedComfyError,
    FileDamaged,
    MessageVersionUnknown,
    PipeMalformed,
    PromptIsWorkflow,
    PromptMalformed,
    PromptUnreadable,
    TokenUnreadable,
    all_errors,
    from_wire,
)
from distributed_comfy.host_messages import HostAnswer, HostOrder
from distributed_comfy.messages import (
    Capability,
    Capture,
    FileRef,
    ItemResult,
    ItemSpec,
    JobRecord,
    LiteralValue,
    MappingValue,
    Requirement,
    RunRequest,
    TensorRef,
    dump,
    load,
)
from distributed_comfy.state.records import WorkerFacts
from distributed_comfy.transport.feed_names import Feed
from distributed_comfy.transport.latents import read_latent
from distributed_comfy.workflow.graph import as_link
from distributed_comfy.workflow.parse import parse_prompt
from tasks.broker import NotOurs, check_message

DEEP = "[" * 100_000
NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.integers(0, 9)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=10)
WORDS = ["prompt", "class_type", "inputs", "nodes", "_meta", "extra_data", "version", "1", "12:5", "self", "code"]
KEYS = st.sampled_from(WORDS) | st.text(max_size=5)
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=20)
RESULT = ItemResult(
    captures=(
        Capture("9", "images", 0, TensorRef("b#1", "float32", (1, 8, 8, 3), 768)),
        Capture("9", "audio", 0, MappingValue({"rate": LiteralValue(44100)})),
    ),
    files=(FileRef("a.png", "image/png", "0" * 64, 7, "f#1"),),
    worker="w",
)
RECORDS: list[Any] = [
    RESULT,
    ItemSpec(0, "generate", "p", ("9",)),
    JobRecord("0123456789ab", "ann", 5, 1, ("p",), "p"),
    Capability("builtin", "1", ("A",)),
    Requirement("", ("A",)),
    RunRequest("c", "j", 0, "generate", {"1": {"class_type": "A", "inputs": {}}}, ("1",), {}),
]
READERS = [*(type(record) for record in RECORDS), Feed, WorkerFacts, HostOrder, HostAnswer]


@st.composite
def changed(draw: st.DrawFn, plain: Any) -> Any:
    """The value with one of its parts replaced, taken out or added."""
    if isinstance(plain, (dict, list)) and plain and draw(st.integers(0, 5)):
        keys = list(plain) if isinstance(plain, dict) else list(range(len(plain)))
        key = draw(st.sampled_from(keys))
        changes = {name: plain[name] for name in keys}
        if draw(st.integers(0, 9)):
            changes[key] = draw(changed(plain[key]))
        else:
            del changes[key]
        return changes if isinstance(plain, dict) else list(changes.values())
    if isinstance(plain, dict) and draw(st.booleans()):
        return {**plain, draw(KEYS): draw(JSON)}
    return draw(JSON)


def texts_like(plain: Any) -> st.SearchStrategy[str]:
    """JSON that was this value once, also cut off."""
    whole = changed(plain).map(json.dumps)
    return whole | whole.flatmap(lambda text: st.integers(0, len(text)).map(lambda end: text[:end]))


CHANGED_RECORDS = st.sampled_from(RECORDS).flatmap(lambda record: texts_like(json.loads(dump(record))))
RECORD_TEXTS = CHANGED_RECORDS | JSON.map(json.dumps) | st.text(max_size=30)


@given(st.sampled_from(READERS), RECORD_TEXTS)
@example(ItemResult, DEEP)
@example(ItemResult, '{"version": ' + DEEP)
def test_a_record_is_read_and_written_the_same_or_is_refused(reader: Any, text: str) -> None:
    try:
        record = load(reader, text)
    except MessageVersionUnknown:
        return
    assert load(reader, dump(record)) == record or "nan" in text.lower()


CODES = st.sampled_from(sorted({error.code for error in all_errors()}))
FACTS = st.sampled_from(sorted({name for error in all_errors() for name in error.field_names()}))
WIRES = st.fixed_dictionaries({"code": CODES | JSON}, optional={"fields": st.dictionaries(FACTS | KEYS, JSON, max_size=12) | JSON})


def complete(code: str, value: Any) -> dict[str, Any]:
    """An error of this code in which every field has this value."""
    cls = next(error for error in all_errors() if error.code == code)
    return {"code": code, "fields": dict.fromkeys(cls.field_names(), value)}


COMPLETE = st.builds(complete, CODES, JSON)


@given(WIRES | COMPLETE | JSON)
@example({"code": "node_failed", "fields": {"self": 1}})
@example([])
def test_an_error_from_elsewhere_is_an_error_here(wire: Any) -> None:
    error = from_wire(wire)
    assert isinstance(error, DistributedComfyError) and isinstance(str(error), str)
    assert isinstance(json.dumps(error.to_wire(), default=str), str)


ENGINE_FIELDS = st.sampled_from(["claim_id", "request", "result", "error", "text", "description"]) | KEYS


@given(st.dictionaries(ENGINE_FIELDS, JSON, max_size=5), st.sampled_from(sorted(TYPES)) | st.text(max_size=8))
@example({"error": DEEP, "claim_id": "c"}, "failed")
@example({"result": DEEP, "claim_id": "c"}, "done")
def test_a_message_of_an_engine_is_one_or_is_refused(message: dict[str, Any], kind: str) -> None:
    try:
        from_message({**message, "type": kind})
    except PipeMalformed:
        pass


INPUTS = st.dictionaries(KEYS, JSON | st.tuples(st.sampled_from(["1", "2"]), st.integers(-1, 2)), max_size=3)
NODE = st.fixed_dictionaries({"class_type": st.text(max_size=5) | JSON}, optional={"inputs": INPUTS | JSON, "_meta": JSON})
NODES = st.dictionaries(st.text(max_size=4) | st.sampled_from(["1", "2", "12:5"]), NODE, max_size=4)
PROMPTS = NODES | JSON | st.fixed_dictionaries({"prompt": NODES | JSON}, optional={"extra_data": JSON})


@given(PROMPTS.map(json.dumps) | PROMPTS.flatmap(texts_like))
def test_a_text_is_a_prompt_or_is_refused_by_name(text: str) -> None:
    try:
        parsed = parse_prompt(text if text.lstrip()[:1] in ("{", "[") else f"[{text}")
    except (PromptUnreadable, PromptMalformed, PromptIsWorkflow):
        return
    assert parse_prompt(parsed.prompt).prompt == parsed.prompt
    for node in parsed.prompt.values():
        assert isinstance(node["class_type"], str) and isinstance(node["inputs"], dict)
        links = [as_link(value) for value in node["inputs"].values()]
        assert all(link is None or link.node_id in parsed.prompt for link in links)


TICKET: dict[str, Any] = {
    "body": "W1sidyJdLCB7fSwge31d",
    "content-encoding": "utf-8",
    "content-type": "application/json",
    "headers": {"task": "tasks.run_item", "id": "x", "eta": None, "retries": 0, "timelimit": [None, None]},
    "properties": {"delivery_tag": "t", "delivery_info": {"exchange": "", "routing_key": "gpu.w"}, "body_encoding": "base64"},
}


@given(changed(TICKET) | JSON, st.sampled_from(["gpu.w", "host.pc2", "w@pc2.celery.pidbox"]), JSON)
@example(TICKET, "gpu.w", 0)
def test_a_message_of_a_queue_is_a_ticket_or_is_dropped(message: Any, queue: str, content: Any) -> None:
    for said in (message, {**TICKET, "body": base64.b64encode(json.dumps(content).encode()).decode()}):
        try:
            check_message(said, queue)
        except NotOurs:
            continue
        assert isinstance(said["headers"], dict) and isinstance(json.loads(base64.b64decode(said["body"])), (dict, list))
        assert not queue.startswith("gpu.") or said["headers"]["task"] == "tasks.run_item"


def token_of(text: str) -> str:
    return "dc1." + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


URL = "rediss://h:6379/0"
TOKEN = {"v": 1, "url": URL, "blob_url": URL, "user": "host-a", "secret": "s", "host": "a", "prefix": "dc:", "ca": "", "expires_ms": 1}
TOKENS = (changed(TOKEN).map(json.dumps) | JSON.map(json.dumps) | st.text(max_size=40)).map(token_of)


@given(TOKENS | st.text(max_size=40))
@example(token_of("[" * 12_000))
def test_an_invitation_is_one_or_is_refused(text: str) -> None:
    try:
        assert isinstance(read_token(text), JoinToken)
    except TokenUnreadable as error:
        assert len(text) < 8 or text not in str(error)


LATENT = {"latent_tensor": {"dtype": "F32", "shape": [1, 4, 1, 1], "data_offsets": [0, 16]}}


def latent_of(header: str, length: int | None, samples: bytes) -> bytes:
    said = len(header.encode(errors="replace")) if length is None else length
    return said.to_bytes(8, "little") + header.encode(errors="replace") + samples


LATENTS = st.builds(latent_of, texts_like(LATENT), st.none() | st.integers(0, 2**64 - 1), st.binary(max_size=20)) | st.binary(max_size=40)


@given(LATENTS)
@example(latent_of(DEEP, None, b""))
@example(latent_of(json.dumps(LATENT).replace("[1, 4, 1, 1]", str([2**70])), None, bytes(16)))
def test_a_latent_is_one_or_is_damaged(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = Path(tmp_path_factory.getbasetemp()) / "fuzzed.latent"
    file.write_bytes(content)
    try:
        read_latent(file)
    except FileDamaged:
        pass
