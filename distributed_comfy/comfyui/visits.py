"""Items that workers of engine `attach` run in this ComfyUI: what their sources get and their sinks took, in memory, until they are over.

Each item is a visit, opened before its prompt is queued and known by that prompt's id.  A source asks for the blobs of its feed one after
the other and takes each out of here, so that never more than a few lie here.  What a visit leaves, its files among that, goes with it.
"""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from distributed_comfy.comfyui.host import ComfyHost
from distributed_comfy.comfyui.visit_files import VisitFiles
from distributed_comfy.engine.attach.following import prompt_id_of
from distributed_comfy.engine.attach.pack_words import FRAME_ROOM_BYTES, LEASE_S, Visit, VisitResult
from distributed_comfy.engine.context import GraphContext
from distributed_comfy.errors import BlobMissing, DistributedComfyError, FrameTooLarge, NodeOutsideJob
from distributed_comfy.messages import Capture
from distributed_comfy.nodes.context import NodeContext
from distributed_comfy.transport.blobs import make_blob_id
from distributed_comfy.transport.feed_names import tensors_of
from distributed_comfy.transport.frames import BytesLike
from distributed_comfy.transport.travel import capture_encoding
from distributed_comfy.transport.values import store_value

log = logging.getLogger(__name__)

MOST_VISITS = 64
"""At the same time; a worker has one or two."""
_SWEEP_S = 1.0
_FOR_EVER_S = 1e9


class VisitBlobs:
    """The blobs of one visit: those of its feed from when they come until they are read, those of its captures until its end.

    The part of a `BlobStore` that sources and captures need; what is asked for and not here is wanted.
    """

    def __init__(self, sizes: dict[str, int], on_want: Callable[[], None]) -> None:
        """Args:
        sizes: id of a blob of the feed -> payload bytes.
        on_want: called, from any thread, when something is wanted.
        """
        self._sizes = sizes
        self._on_want = on_want
        self._lock = threading.Lock()
        self._wanted: dict[str, None] = {}
        self._here: dict[str, bytearray] = {}
        self._given: dict[str, list[BytesLike]] = {}
        self._closed = False

    # -- for the nodes
    def exists(self, blobs: Sequence[str]) -> list[bool]:
        """See `BlobStore.exists`.

        Raises:
            BlobMissing: the visit is over, so nothing comes any more.
        """
        with self._lock:
            if self._closed and blobs:
                raise BlobMissing(blob=blobs[0])
            found = [blob in self._here for blob in blobs]
            new = [blob for blob, here in zip(blobs, found, strict=True) if not here and blob not in self._wanted]
            self._wanted.update(dict.fromkeys(new))
        if new:
            self._on_want()
        return found

    def get(self, blob: str) -> memoryview:
        """See `BlobReader.get`; it is not here any more then."""
        with self._lock:
            if blob not in self._here:
                raise BlobMissing(blob=blob)
            return memoryview(self._here.pop(blob))

    def unlink(self, blobs: Iterable[str]) -> None:
        """See `BlobStore.unlink`; reading has done it."""

    def put(self, name: str, pieces: Iterable[BytesLike], *, job_id: str = "") -> str:
        """See `BlobStore.put`: a frame of a capture, whose payload is not copied."""
        kept = list(pieces)
        blob = make_blob_id(name, 1, 1)
        with self._lock:
            self._given[blob] = kept
        return blob

    # -- for the worker
    def wanted(self) -> list[str]:
        """What sources wait for, in their order."""
        with self._lock:
            return list(self._wanted)

    def room_for(self, blob: str) -> int:
        """Most bytes that a frame may have; 0 for what nobody waits for."""
        with self._lock:
            return self._sizes.get(blob, 0) + FRAME_ROOM_BYTES if blob in self._wanted else 0

    def arrive(self, blob: str, frame: bytearray) -> None:
        """A frame has come."""
        with self._lock:
            if blob in self._wanted:
                del self._wanted[blob]
                self._here[blob] = frame

    def given(self, blob: str) -> list[BytesLike] | None:
        """The pieces of a frame of a capture."""
        with self._lock:
            return self._given.get(blob)

    def close(self) -> None:
        """Nothing is kept."""
        with self._lock:
            self._closed = True
            self._wanted, self._here, self._given = {}, {}, {}


class OpenVisit:
    """One visit; its methods may be called from any thread."""

    def __init__(self, visit: Visit, check: Callable[[], None], on_want: Callable[[], None], limit_bytes: int) -> None:
        """Args:
        visit: the item.
        check: raises where ComfyUI is told to stop the prompt.
        on_want: see `VisitBlobs`.
        limit_bytes: largest tensor here.
        Raises:
            FrameTooLarge: the item is fed with a larger one.
        """
        self.visit = visit
        self.prompt_id = prompt_id_of(visit.claim_id)
        self._limit_bytes = min(limit_bytes, visit.limit_bytes)
        self.blobs = VisitBlobs(_feed_sizes(visit, self._limit_bytes), on_want)
        self.ended = False
        self._on_want = on_want
        self._lock = threading.Lock()
        """Held for moments: the server's own thread waits for it."""
        self._making = threading.Lock()
        self._heard = time.monotonic()
        self._busy = 0
        self._result: VisitResult | None = None
        # Whoever feeds gives up after a while, and then the visit ends; so the source needs no limit of its own.
        store: Any = self.blobs
        self._context = GraphContext(store, feed_timeout_s=_FOR_EVER_S)
        self._context.begin(visit.request(), check=lambda: self._go_on(check))

    @contextmanager
    def heard(self) -> Iterator[None]:
        """The worker has asked something, and is being answered."""
        with self._lock:
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1
                self._heard = time.monotonic()

    def silent_s(self) -> float:
        """Since when nothing has been heard."""
        with self._lock:
            return 0.0 if self._busy else time.monotonic() - self._heard

    @property
    def nodes(self) -> NodeContext:
        """For the nodes of the prompt.

        Raises:
            NodeOutsideJob: it is over.
        """
        if self.ended or self._result is not None:
            raise NodeOutsideJob(node_id=f"of claim {self.visit.claim_id}")
        return self._context

    def result(self) -> VisitResult:
        """What the nodes did, once the prompt has ended; always the same."""
        with self._making:
            if self._result is None:
                self._result = self._made()
            return self._result

    def close(self) -> None:
        """Nothing of it is kept in memory."""
        self.ended = True
        self.blobs.close()
        self._context.finish()
        self._on_want()

    def _made(self) -> VisitResult:
        failure = self._context.failure
        taken = [capture for capture in self._context.finish() if capture.value is not None]
        captures: list[Capture] = []
        store: Any = self.blobs
        try:
            for number, capture in enumerate(taken if failure is None else ()):
                encoding = capture_encoding(self.visit.frames, capture.node_id, capture.slot)
                value = store_value(store, f"value{number}", capture.value, job_id="", limit_bytes=self._limit_bytes, encoding=encoding)
                captures.append(Capture(capture.node_id, capture.slot, capture.list_index, value))
        except DistributedComfyError as error:
            failure, captures = error, []
        return VisitResult(tuple(captures), tuple(sorted(self._context.reached)), failure.to_wire() if failure else None)

    def _go_on(self, check: Callable[[], None]) -> None:
        check()
        if self.ended:
            raise NodeOutsideJob(node_id=f"of claim {self.visit.claim_id}")


class Visits:
    """All visits of this ComfyUI.

    Args:
        host: this ComfyUI.
        limit_bytes: largest tensor.
    """

    def __init__(self, host: ComfyHost, limit_bytes: int, lease_s: float = LEASE_S) -> None:
        self._host = host
        self._limit_bytes = limit_bytes
        self._lease_s = lease_s
        self._files = VisitFiles(host)
        self._lock = threading.Lock()
        self._removing = threading.Lock()
        self._open: dict[str, OpenVisit] = {}
        self._leaving: dict[str, OpenVisit] = {}
        self._sweeper: threading.Thread | None = None
        self._told = ""

    def open(self, visit: Visit, on_want: Callable[[], None]) -> OpenVisit | None:
        """A new visit, also where one of this claim was open, whose answer was lost; None where there are too many.

        Raises:
            FrameTooLarge: it is fed with a larger tensor than this ComfyUI takes.
        """
        opened = OpenVisit(visit, self._host.model_management.throw_exception_if_processing_interrupted, on_want, self._limit_bytes)
        with self._lock:
            before = self._open.get(visit.claim_id)
            if before is None and len(self._open) >= MOST_VISITS:
                return None
            self._open[visit.claim_id] = opened
            self._files.expect(visit.worker)
            if self._sweeper is None:
                self._sweeper = threading.Thread(target=self._sweep, name="distributed-comfy visits", daemon=True)
                self._sweeper.start()
        if before is not None:
            before.close()
        return opened

    def kept_files(self, worker: str) -> list[str]:
        """Names of the files that a worker has in the input folder."""
        return self._files.names(worker)

    def of_claim(self, claim_id: str) -> OpenVisit | None:
        """An open visit."""
        with self._lock:
            return self._open.get(claim_id)

    def of_prompt(self, prompt_id: str) -> OpenVisit | None:
        """The open visit of a prompt."""
        with self._lock:
            return next((visit for visit in self._open.values() if visit.prompt_id == prompt_id), None)

    def end(self, claim_id: str) -> None:
        """End a visit, and take away what it has left."""
        with self._lock:
            visit = self._open.pop(claim_id, None)
            if visit is None:
                return
            self._leaving[claim_id] = visit
        visit.close()
        self._take_away()

    # -- what is left
    def _sweep(self) -> None:
        """Whatever goes wrong is tried again: without this thread no silent worker would ever be ended."""
        while True:
            time.sleep(_SWEEP_S)
            for step in (self._end_silent, self._take_away, self._forget_idle):
                with self._tried_again():
                    step()
            with self._lock:
                if not (self._open or self._leaving or self._files.expected):
                    self._sweeper = None
                    return

    def _end_silent(self) -> None:
        with self._lock:
            silent = [claim_id for claim_id, visit in self._open.items() if visit.silent_s() > self._lease_s]
        for claim_id in silent:
            log.warning("nothing is heard of the worker of claim %s any more; its prompt is ended", claim_id)
            self.end(claim_id)

    def _forget_idle(self) -> None:
        with self._lock:
            busy = {visit.visit.worker for visit in self._open.values()}
        self._files.forget_idle(busy)

    @contextmanager
    def _tried_again(self) -> Iterator[None]:
        """A fault is told, once in a row, and keeps nothing else from being done."""
        try:
            yield
        except OSError as error:  # a file that is open elsewhere, on Windows
            log.info("files of a worker are removed later: %s", error)
        except Exception as error:  # of ComfyUI, or of a node pack that has changed it
            if repr(error) != self._told:
                log.warning("what a worker's item has left cannot be removed; that is tried again", exc_info=error)
            self._told = repr(error)

    def _take_away(self) -> None:
        with self._removing:
            with self._lock:
                leaving = list(self._leaving.items())
            for claim_id, visit in leaving:
                with self._tried_again():
                    if self._is_out(visit.prompt_id):
                        self._files.remove(claim_id, visit.prompt_id)
                        with self._lock:
                            self._leaving.pop(claim_id, None)

    def _is_out(self, prompt_id: str) -> bool:
        """Whether a prompt is neither queued nor running; it is told to end."""
        queue = self._host.server.prompt_queue
        queue.delete_queue_item(lambda item: item[1] == prompt_id)
        with queue.mutex:  # or another prompt, which begins meanwhile, is interrupted
            running, _ = queue.get_current_queue_volatile()
            if all(item[1] != prompt_id for item in running):
                return True
            self._host.nodes.interrupt_processing()
        return False


def _feed_sizes(visit: Visit, limit_bytes: int) -> dict[str, int]:
    """Id of each blob of the feed -> payload bytes.

    Raises:
        FrameTooLarge: one has more than the limit, as it comes or as a tensor.
    """
    sizes: dict[str, int] = {}
    for value in (value for slots in visit.feed.values() for values in slots.values() for value in values):
        for tensor in tensors_of(value):
            largest = max(tensor.payload_bytes, tensor.size_bytes)
            if largest > limit_bytes:
                raise FrameTooLarge(size_bytes=largest, limit_bytes=limit_bytes)
            sizes[tensor.blob] = tensor.payload_bytes
    return sizes


class VisitContext:
    """The `nodes.context.NodeContext` of the pack: items of workers here, all else as before.

    Args:
        visits: of this ComfyUI.
        executing: prompt and node that run in this context.
        otherwise: for all other prompts.
    """

    def __init__(self, visits: Visits, executing: Callable[[], tuple[str, str]], otherwise: NodeContext | None) -> None:
        self._visits = visits
        self._executing = executing
        self._otherwise = otherwise

    def capture(self, node_id: str, slot: str, values: list[Any]) -> None:
        """See `nodes.context.NodeContext.capture`."""
        self._behind(node_id).capture(node_id, slot, values)

    def supply(self, node_id: str, slot: str) -> list[Any]:
        """See `nodes.context.NodeContext.supply`."""
        return self._behind(node_id).supply(node_id, slot)

    def _behind(self, node_id: str) -> NodeContext:
        visit = self._visits.of_prompt(self._executing()[0])
        if visit is not None:
            return visit.nodes
        if self._otherwise is None:
            raise NodeOutsideJob(node_id=node_id)
        return self._otherwise
