"""The messages on an engine's pipe as types: orders go to the engine process, events come back.

Records travel as JSON text inside a message, because JSON holds integers of any size and msgpack does not.
"""
from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar, Union

from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.errors import DistributedComfyError, MessageVersionUnknown, PipeMalformed, from_wire
from distributed_comfy.messages import Capability, ItemResult, RunRequest, dump, load
from distributed_comfy.state.status import EngineReport


# -- orders: consumer -> engine -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Init:
    """The first message: what to be."""

    options: EngineOptions


@dataclass(frozen=True)
class Run:
    """Queue an item; answered by `Started`, then `Shipping`, any number of `Waits` and `Finished`, or by `Failed` at any time."""

    request: RunRequest


@dataclass(frozen=True)
class Interrupt:
    """End a claim, whether it waits, runs or ships; answered by its `Failed` unless it had ended."""

    claim_id: str


@dataclass(frozen=True)
class Free:
    """Give device memory back once nothing runs."""


@dataclass(frozen=True)
class Describe:
    """Look at models and node classes again; answered by `Described`."""


@dataclass(frozen=True)
class Close:
    """Interrupt everything and end."""


Order = Union[Init, Run, Interrupt, Free, Describe, Close]


# -- events: engine -> consumer -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Ready:
    """The engine can take items."""

    capability: Capability


@dataclass(frozen=True)
class StartFailed:
    """The engine cannot start; the process ends."""

    error: DistributedComfyError


@dataclass(frozen=True)
class Described:
    """Answer to `Describe`."""

    capability: Capability


@dataclass(frozen=True)
class Started:
    """The execution of a claim begins."""

    claim_id: str


@dataclass(frozen=True)
class Progress:
    """A node did ``value`` of ``maximum`` steps."""

    claim_id: str
    node_id: str
    value: int
    maximum: int


@dataclass(frozen=True)
class Preview:
    """A picture of the work so far."""

    claim_id: str
    node_id: str
    image: bytes
    """JPEG or PNG."""


@dataclass(frozen=True)
class Said:
    """What ComfyUI said to its browser, of an item that is echoed."""

    claim_id: str
    event: str
    facts_json: str
    """A JSON object; its ``prompt_id`` is the claim's id."""


@dataclass(frozen=True)
class Shipping:
    """A claim was executed; its result is on the way into the blob store and the next item may begin."""

    claim_id: str
    seconds: float
    """Engine time."""


@dataclass(frozen=True)
class Waits:
    """The result of a claim cannot be stored now, and is kept until it can."""

    claim_id: str
    reason: str
    """A sentence; empty where it goes on."""


@dataclass(frozen=True)
class Finished:
    """All of a claim's result lies in the blob store."""

    claim_id: str
    result: ItemResult


@dataclass(frozen=True)
class Failed:
    """A claim ended without a result; nothing of it is left in the blob store."""

    claim_id: str
    error: DistributedComfyError


@dataclass(frozen=True)
class Beat:
    """The process lives."""

    quiet_s: float
    """Seconds since work last showed a sign of life; 0 without work."""
    free_bytes: int = 0
    """Memory left on the device; both 0 where that is not known."""
    total_bytes: int = 0


@dataclass(frozen=True)
class Reported:
    """What the engine tells about itself; sent before `Ready`, and again when it has changed."""

    report: EngineReport


Event = Union[Ready, StartFailed, Described, Started, Progress, Preview, Said, Shipping, Waits, Finished, Failed, Beat, Reported]

T = TypeVar("T")

_RECORDS: dict[str, type] = {
    "options": EngineOptions, "request": RunRequest, "capability": Capability, "result": ItemResult, "report": EngineReport,
}  # fmt: skip
"""Field name -> the record that it holds."""

_TYPES: dict[str, type] = {
    kind.__name__.lower(): kind
    for kind in (
        *(Init, Run, Interrupt, Free, Describe, Close),
        *(Ready, StartFailed, Described, Started, Progress, Preview, Said, Shipping, Waits, Finished, Failed, Beat, Reported),
    )
}


def to_message(item: Order | Event) -> dict[str, Any]:
    """An order or event as a map for `engine.pipe.MessageWriter`."""
    message: dict[str, Any] = {"type": type(item).__name__.lower()}
    for declared in fields(item):
        value = getattr(item, declared.name)
        if declared.name in _RECORDS:
            value = dump(value)
        elif declared.name == "error":
            value = json.dumps(value.to_wire(), default=str)
        message[declared.name] = value
    return message


def from_message(message: dict[str, Any]) -> Any:
    """The order or event of a map that `to_message` made.

    Raises:
        PipeMalformed: an unknown type, or fields that are not its own.
    """
    kind = _TYPES.get(message["type"])
    if kind is None:
        raise PipeMalformed(reason=f"type {message['type']!r} is unknown")
    try:
        return kind(**{name: _decoders().get(name, _same)(value) for name, value in message.items() if name != "type"})
    except (TypeError, ValueError, RecursionError, MessageVersionUnknown) as error:
        raise PipeMalformed(reason=f"{message['type']}: {error}") from error


def _decoders() -> dict[str, Callable[[Any], Any]]:
    decoders: dict[str, Callable[[Any], Any]] = {name: _loader(record) for name, record in _RECORDS.items()}
    decoders["error"] = lambda text: from_wire(json.loads(text))
    return decoders


def _loader(record: type[T]) -> Callable[[Any], T]:
    return lambda text: load(record, text)


def _same(value: Any) -> Any:
    return value
