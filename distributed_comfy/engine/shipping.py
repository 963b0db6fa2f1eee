"""Brings what an execution gave into the blob store, in a thread of its own, so that the next item can already run."""
from __future__ import annotations

import json
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import redis

from distributed_comfy.engine.base import CapturedValue, OutputFile, RunOutcome
from distributed_comfy.engine.claims import ClaimBook, LifeSign
from distributed_comfy.engine.folders import discard_outgoing
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.engine.protocol import Event, Failed, Finished, Waits
from distributed_comfy.errors import BlobStoreFull, ConnectionLost, DistributedComfyError, ItemInterrupted, ResultTooLarge
from distributed_comfy.log_lines import subject
from distributed_comfy.messages import Capability, Capture, FileRef, ItemResult, RunRequest, item_id
from distributed_comfy.transport.blobs import BlobStore
from distributed_comfy.transport.files import FileSource, store_file
from distributed_comfy.transport.frames import BytesLike
from distributed_comfy.transport.travel import capture_encoding
from distributed_comfy.transport.values import store_value

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 0.5
"""Added to what an attempt takes, see `state.connection.connect`: an interrupted claim is noticed between two of them."""


@dataclass(frozen=True)
class Shipment:
    """One execution that ended well."""

    request: RunRequest
    outcome: RunOutcome
    seconds: float
    capability: Capability


@dataclass
class Harbour:
    """What the shipping thread works with."""

    blobs: BlobStore
    options: EngineOptions
    claims: ClaimBook
    send: Callable[[Event], None]
    life: LifeSign = field(default_factory=LifeSign)


class Shipper:
    """Ships one outcome after the other and answers each claim with `Finished` or `Failed`."""

    def __init__(self, harbour: Harbour) -> None:
        self._harbour = harbour
        self._waiting: queue.SimpleQueue[Shipment | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="shipping", daemon=True)
        self._thread.start()

    def ship(self, shipment: Shipment) -> None:
        """Queue an outcome; returns at once."""
        self._waiting.put(shipment)

    def close(self) -> None:
        """Ship what is queued and end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (shipment := self._waiting.get()) is not None:
            self._harbour.life.touch()
            with subject(shipment.request.job_id, shipment.request.index):
                self._answer(shipment)
            self._harbour.life.rest()

    def _answer(self, shipment: Shipment) -> None:
        claim_id = shipment.request.claim_id
        crate = _Crate(self._harbour, shipment.request)
        try:
            event: Event = Finished(claim_id, crate.fill(shipment))
            log.info("shipped item %s (%d blobs)", item_id(shipment.request.job_id, shipment.request.index), len(crate.blobs))
        except DistributedComfyError as error:
            log.warning("item %s was not shipped: %s", item_id(shipment.request.job_id, shipment.request.index), error)
            crate.discard()
            event = Failed(claim_id, error)
        finally:
            self._harbour.claims.end(claim_id)
            discard_outgoing(self._harbour.options.folder, claim_id)
        self._harbour.send(event)  # last: whoever hears it finds nothing left


class _Crate:
    """The blobs of one claim; all of them, or none."""

    def __init__(self, harbour: Harbour, request: RunRequest) -> None:
        self._harbour = harbour
        self._request = request
        self.blobs: dict[str, None] = {}
        self._size_bytes = 0
        """Of what was stored, or was to be, since the last beginning."""

    def fill(self, shipment: Shipment) -> ItemResult:
        """Store everything.

        Raises:
            ItemInterrupted: the claim was interrupted meanwhile.
            DistributedComfyError: what the transport raises.
        """
        outcome = shipment.outcome
        captures, files = self._patiently(lambda: self._store(outcome))
        self._check()
        return ItemResult(
            captures=captures,
            files=files,
            outputs=json.loads(json.dumps(outcome.outputs, default=str)),  # a node's ui may hold anything
            blocked=outcome.blocked,
            history=outcome.history,
            worker=self._harbour.options.worker,
            device_class=shipment.capability.device_class,
            engine=shipment.capability.engine,
            seconds=shipment.seconds,
        )

    def discard(self) -> None:
        """Remove what was stored."""
        try:
            self._harbour.blobs.unlink(self.blobs)
        except ConnectionLost as error:
            log.warning("%d blobs of claim %s stay until they expire: %s", len(self.blobs), self._request.claim_id, error)

    def put(self, name: str, pieces: Iterable[BytesLike], *, size_bytes: int | None = None, **options: Any) -> str:
        """`BlobStore.put`, remembering the blob: a value of several tensors may break off half way."""
        if size_bytes is None:
            pieces = list(pieces)
            self._size_bytes += sum(map(len, pieces))
        else:
            self._size_bytes += size_bytes
        blob = self._harbour.blobs.put(name, pieces, size_bytes=size_bytes, **options)
        self.blobs[blob] = None
        self._harbour.life.touch()
        return blob

    def _patiently(self, store: Callable[[], T]) -> T:
        """Store, for as long as the blob server takes to come back, or to have room.

        The work is done, and the claim ours until it is interrupted.  Always from the beginning, under the same names: a server that was
        away may have lost all it had.

        Raises:
            ResultTooLarge: there will never be room for all of it.
        """
        wait_s, reason = _FIRST_WAIT_S, ""
        while True:
            try:
                self._size_bytes = 0
                stored = store()
                break
            except ConnectionLost as error:
                self._check()
                if not _is_away(error):
                    raise
                reason = self._tell(reason, error)
            except BlobStoreFull as error:
                self._check()
                self._make_room(error)
                reason = self._tell(reason, error)
            self._harbour.life.touch()
            time.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
        if reason:
            self._harbour.send(Waits(self._request.claim_id, ""))
        return stored

    def _tell(self, told: str, error: DistributedComfyError) -> str:
        """Say why the result waits, where that is news; what is told now."""
        reason = str(error)
        if reason != told:
            log.warning("item %s: %s; the result waits for it", item_id(self._request.job_id, self._request.index), reason)
            self._harbour.send(Waits(self._request.claim_id, reason))
        return reason

    def _make_room(self, error: BlobStoreFull) -> None:
        """Take back what was stored: of several workers that each hold a part none would ever get the rest.

        Raises:
            ResultTooLarge: the store would not hold it if nothing else were there.
        """
        self.discard()
        self.blobs.clear()
        try:
            capacity = self._harbour.blobs.capacity()
        except ConnectionLost:  # it has gone away as well, which the next attempt finds out
            return
        if capacity is not None and self._size_bytes > capacity:
            item = item_id(self._request.job_id, self._request.index)
            raise ResultTooLarge(item_id=item, size_bytes=self._size_bytes, target=error.target, limit_bytes=capacity) from error

    def _store(self, outcome: RunOutcome) -> tuple[tuple[Capture, ...], tuple[FileRef, ...]]:
        captures = tuple(self._capture(number, capture) for number, capture in enumerate(outcome.captures))
        return captures, tuple(self._file(number, file) for number, file in enumerate(outcome.files))

    def _capture(self, number: int, capture: CapturedValue) -> Capture:
        self._check()
        options, request = self._harbour.options, self._request
        store = cast("BlobStore", self)  # of a store, storing uses `put` alone
        name = self._name(f"value{number}")
        encoding = capture_encoding(request.frames, capture.node_id, capture.slot)
        limit_bytes = options.blob_limit_bytes
        value = store_value(store, name, capture.value, job_id=request.job_id, limit_bytes=limit_bytes, encoding=encoding)
        return Capture(node_id=capture.node_id, slot=capture.slot, list_index=capture.list_index, value=value)

    def _file(self, number: int, file: OutputFile) -> FileRef:
        self._check()
        options, request = self._harbour.options, self._request
        source = FileSource(path=file.path, name=file.name, folder=file.folder, node_id=file.node_id)
        name = self._name(f"file{number}")
        store = cast("BlobStore", self)
        return store_file(store, source, blob_name=name, job_id=request.job_id, limit_bytes=options.blob_limit_bytes)

    def _name(self, part: str) -> str:
        """Holds the claim, so that a claim that came too late removes only its own blobs."""
        return f"{self._request.job_id}:{self._request.index}:{self._request.claim_id}:{part}"

    def _check(self) -> None:
        if self._harbour.claims.is_interrupted(self._request.claim_id):
            raise ItemInterrupted(item_id=item_id(self._request.job_id, self._request.index))


def _is_away(error: ConnectionLost) -> bool:
    """Whether nobody answers; a server that answers and refuses would be waited for in vain."""
    cause = error.__cause__
    return isinstance(cause, (redis.ConnectionError, redis.TimeoutError)) and not isinstance(cause, redis.AuthenticationError)
