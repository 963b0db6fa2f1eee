"""What a worker and the node pack in its ComfyUI say to each other: one visit for each item, which opens before its prompt is queued.

    GET    ATTACH_PATH                      `PackFacts`; tells strangers the version alone
    POST   VISITS_PATH                      opens a visit (`Visit`); gives the names of the worker's files in the input folder
    GET    VISITS_PATH/CLAIM/wanted         waits until a source needs blobs of the feed; their ids
    PUT    VISITS_PATH/CLAIM/blob?id=       one of them, a frame as it lies in the blob store
    GET    VISITS_PATH/CLAIM/captures       what the sinks took (`VisitResult`), once the prompt has ended
    GET    VISITS_PATH/CLAIM/blob?id=       a frame of a capture
    DELETE VISITS_PATH/CLAIM                ends the visit; nothing of it stays

A visit of which nothing is heard for `LEASE_S` is ended by the pack, and its prompt with it.  Frames are those of `transport.frames`.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from distributed_comfy.frame_plan import FramePlan
from distributed_comfy.messages import Capture, ItemKind, RunRequest, Value

ATTACH_PATH = "/distributed_comfy/attach"
VISITS_PATH = f"{ATTACH_PATH}/visits"

CLIENT_PREFIX = "distributed-comfy-"
"""Begins the client id of every prompt that a worker queues; the worker's name follows."""

NOT_FOR_IT = 409
"""Status for a visit whose item another worker is to run; the error says what a worker needs for it."""

LEASE_S = 20.0
"""Longest silence of a worker."""
WANTED_S = 5.0
"""Longest wait for something to be wanted, and how often a worker asks at least: that is the sign of life."""
FRAME_ROOM_BYTES = 8192
"""Most that a frame has beside its payload."""
RECORDS_LIMIT_BYTES = 64 * 2**20
"""Longest text of records: the feed of a last stage names each of its tensors."""


@dataclass(frozen=True)
class PackFacts:
    """What a pack tells about itself."""

    version: str
    allowed: bool = False
    """Whether whoever asks has shown the key."""
    device_class: str = ""
    """As `Capability.device_class` of a worker with such a ComfyUI of its own; empty for strangers."""


@dataclass(frozen=True)
class Visit:
    """An item that is about to run there."""

    claim_id: str
    job_id: str
    worker: str
    kind: ItemKind
    feed: dict[str, dict[str, tuple[Value, ...]]] = field(default_factory=dict)
    """As `RunRequest.feed`."""
    frames: FramePlan = field(default_factory=FramePlan)
    limit_bytes: int = 2**33
    """Largest tensor that the worker may store."""

    def request(self) -> RunRequest:
        """As much of the item's request as its nodes need."""
        return RunRequest(self.claim_id, self.job_id, 0, self.kind, {}, (), {}, feed=self.feed, frames=self.frames)


@dataclass(frozen=True)
class VisitResult:
    """What became of the nodes of a visit."""

    captures: tuple[Capture, ...] = ()
    reached: tuple[str, ...] = ()
    """Sinks that ran, with or without values."""
    failure: dict[str, Any] | None = None
    """The error (`errors.to_wire`) of a source, or of a value that cannot travel."""
