"""What an engine process tells its consumer: at a rate that a pipe can bear, and without ever waiting for it."""
from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from distributed_comfy.engine.pipe import MessageWriter, pack_message
from distributed_comfy.engine.protocol import Event, Preview, Progress, Said, to_message

log = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 0.05
PREVIEW_INTERVAL_S = 0.2
PREVIEW_LIMIT_BYTES = 4 * 2**20
"""A larger preview is left out."""
SAID_LIMIT_BYTES = 2**20
"""A longer message of ComfyUI's is left out."""


WAITING_LIMIT = 500
"""With more messages waiting, the consumer does not read; progress, previews and what ComfyUI says are left out then."""


class Outbox:
    """Events on their way into the pipe.

    They leave from a thread of their own: the thread that takes orders must never wait for a consumer that is itself waiting to give
    an order, and sampling must not wait for a consumer at all.
    """

    def __init__(self, writer: MessageWriter) -> None:
        self._writer = writer
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    def send(self, event: Event) -> None:
        """Queue an event; from any thread.

        Raises:
            PipeMessageTooLarge: the consumer would not take it.
        """
        if isinstance(event, (Progress, Preview, Said)) and self._waiting.qsize() > WAITING_LIMIT:
            return
        self._waiting.put(pack_message(to_message(event)))

    def close(self) -> None:
        """Write what is queued; nothing is sent afterwards."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (packed := self._waiting.get()) is not None:
            self._writer.write_packed(packed)


class ClaimSink:
    """The `engine.base.Sink` of one claim; every call is a sign of life, not every one becomes a message."""

    def __init__(self, claim_id: str, send: Callable[[Event], None], touch: Callable[[], None]) -> None:
        """Args:
        claim_id: put into every event.
        send: takes the events.
        touch: called for each report.
        """
        self._claim_id = claim_id
        self._send = send
        self._touch = touch
        self._lock = threading.Lock()
        self._progress_due: dict[str, float] = {}
        self._preview_due = 0.0

    def progress(self, node_id: str, value: int, maximum: int) -> None:
        """See `engine.base.Sink.progress`; a node's last step is always sent."""
        self._touch()
        now = time.monotonic()
        with self._lock:
            if now < self._progress_due.get(node_id, 0.0) and value < maximum:
                return
            self._progress_due[node_id] = now + PROGRESS_INTERVAL_S
        self._send(Progress(self._claim_id, node_id, value, maximum))

    def preview(self, node_id: str, image: bytes) -> None:
        """See `engine.base.Sink.preview`."""
        self._touch()
        now = time.monotonic()
        with self._lock:
            if now < self._preview_due:
                return
            self._preview_due = now + PREVIEW_INTERVAL_S
        if len(image) > PREVIEW_LIMIT_BYTES:
            log.debug("a preview of node %s has %d bytes and is left out", node_id, len(image))
            return
        self._send(Preview(self._claim_id, node_id, image))

    def said(self, event: str, facts: dict[str, Any]) -> None:
        """See `engine.base.Sink.said`; a node's ui may hold anything."""
        self._touch()
        text = json.dumps(facts, default=str)
        if len(text) > SAID_LIMIT_BYTES:
            log.debug("a message %s of ComfyUI's has %d characters and is left out", event, len(text))
            return
        self._send(Said(self._claim_id, event, text))
