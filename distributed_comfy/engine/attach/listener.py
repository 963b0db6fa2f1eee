"""ComfyUI's messages about our prompts, taken from its web socket for as long as the worker lives, and passed on to a `Sink`."""
from __future__ import annotations

import json
import logging
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from distributed_comfy.engine.attach.server import REFUSED, ComfyServer
from distributed_comfy.engine.base import Sink
from distributed_comfy.errors import ComfyUIUnreachable

log = logging.getLogger(__name__)

REFUSED_GONE_S = 5.0
"""ComfyUI counts as gone when nobody has listened at its address for so long: its queue is gone with it."""
SILENT_GONE_S = 60.0
"""The same where it is anything else: a link, or a proxy, may come back."""

_RECONNECT_S = 0.5
_PREVIEW, _PREVIEW_WITH_METADATA = 1, 4
_ENDS = ("execution_success", "execution_error", "execution_interrupted")


@dataclass
class Outage:
    """How long a connection has been away."""

    began: float | None = None
    refused_since: float | None = None

    @property
    def is_new(self) -> bool:
        """Whether nothing has failed yet."""
        return self.began is None

    def lasts_too_long(self, how: str, now: float) -> bool:
        """Take note of a failure.

        Args:
            how: field ``lost`` of the error.
            now: monotonic time.
        """
        self.began = now if self.began is None else self.began
        self.refused_since = None if how != REFUSED else now if self.refused_since is None else self.refused_since
        return now - self.began > SILENT_GONE_S or (self.refused_since is not None and now - self.refused_since > REFUSED_GONE_S)


class EventListener:
    """Holds the web socket; one run at a time is listened to."""

    def __init__(self, server: ComfyServer, on_gone: Callable[[ComfyUIUnreachable], None]) -> None:
        """Args:
        server: where to listen.
        on_gone: called, from the listener's thread, when ComfyUI has not been there for too long.
        """
        self._server = server
        self._on_gone = on_gone
        self._lock = threading.Lock()
        self._sink: Sink | None = None
        self._prompt_id = ""
        self._origin: Mapping[str, str] = {}
        self._current = ""
        self._reported: dict[str, tuple[int, int]] = {}
        self._closed = threading.Event()
        self.news = threading.Event()
        """Set when something happened that whoever waits for a prompt should look at."""
        self.started: set[str] = set()
        """Nodes of the prompt that ComfyUI began to execute in this run, as far as messages came."""
        threading.Thread(target=self._stay_connected, name="comfyui-events", daemon=True).start()

    def begin(self, sink: Sink, prompt_id: str) -> None:
        """A run starts.

        Args:
            sink: told about steps and previews.
            prompt_id: whose messages count.
        """
        with self._lock:
            self._sink, self._prompt_id, self._origin = sink, prompt_id, {}
            self._current, self._reported, self.started = "", {}, set()

    def rename(self, origin: Mapping[str, str]) -> None:
        """Report steps of nodes that stand for another one under its id: node of the queued prompt -> node of the item's prompt."""
        with self._lock:
            self._origin = origin

    def end(self) -> None:
        """The run is over; later messages are dropped."""
        with self._lock:
            self._sink, self._prompt_id = None, ""

    def close(self) -> None:
        """Connect no more."""
        self._closed.set()

    # -- the connection -------------------------------------------------------------------------------------------------
    def _stay_connected(self) -> None:
        outage = Outage()
        while not self._closed.is_set():
            try:
                self._server.listen(self._hear, self.news.set)
                outage = Outage()
                log.info("the web socket of ComfyUI at %s closed", self._server.shown)
            except ComfyUIUnreachable as error:
                if outage.is_new:
                    log.warning("%s", error)
                if outage.lasts_too_long(error.lost, time.monotonic()) and not self._closed.is_set():
                    self._on_gone(error)
            self._closed.wait(_RECONNECT_S)

    # -- messages -------------------------------------------------------------------------------------------------------
    def _hear(self, message: str | bytes) -> None:
        """One message; whatever is not known here is dropped, for nodes send messages of their own."""
        try:
            self._understand(message)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.debug("a message of ComfyUI is not understood: %r", error)

    def _understand(self, message: str | bytes) -> None:
        with self._lock:
            sink = self._sink
            if sink is None:
                return
            if isinstance(message, bytes):
                self._hear_picture(sink, message)
                return
            event = json.loads(message)
            facts = event.get("data")
            if isinstance(facts, dict) and facts.get("prompt_id") == self._prompt_id:
                self._hear_event(sink, str(event.get("type")), facts)

    def _hear_event(self, sink: Sink, kind: str, facts: dict[str, Any]) -> None:
        if kind == "executing":
            self._current = str(facts["node"]) if facts.get("node") is not None else ""
            self.started |= {self._here(self._current)} if self._current else set()
        elif kind == "progress_state":
            for node_id, state in facts.get("nodes", {}).items():
                self._report(sink, str(state.get("real_node_id") or node_id), state)
        elif kind == "progress":
            self._report(sink, str(facts.get("node") or self._current), facts)
        if kind in _ENDS or (kind == "executing" and not self._current):
            self.news.set()

    def _report(self, sink: Sink, node_id: str, state: Mapping[str, Any]) -> None:
        node_id, steps = self._here(node_id), (int(state["value"]), int(state["max"]))
        if self._reported.get(node_id) != steps:
            self._reported[node_id] = steps
            sink.progress(node_id, *steps)

    def _hear_picture(self, sink: Sink, message: bytes) -> None:
        """A preview: kind, then the format or the length of JSON about it, then the picture; of other prompts only with that JSON."""
        if len(message) < 8:
            return
        kind, number = struct.unpack_from(">II", message)
        if kind == _PREVIEW and self._current:
            sink.preview(self._here(self._current), message[8:])
        elif kind == _PREVIEW_WITH_METADATA:
            about = json.loads(message[8 : 8 + number])
            if about.get("prompt_id") in (None, self._prompt_id):
                sink.preview(self._here(str(about.get("real_node_id") or about.get("node_id"))), message[8 + number :])

    def _here(self, node_id: str) -> str:
        return self._origin.get(node_id, node_id)
