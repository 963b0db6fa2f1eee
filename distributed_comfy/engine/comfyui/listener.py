"""ComfyUI's messages to its browser, received in this process and passed on to a `Sink`.

The engine poses as a connected client: that is the surface that stays the same from version to version, and nodes that report by
themselves use it too.  Nothing goes out to any socket.
"""
from __future__ import annotations

import io
import threading
import time
from typing import Any

from distributed_comfy.engine.base import Sink
from distributed_comfy.engine.comfyui.echo import Echo

CLIENT_ID = "distributed-comfy"
PREVIEW_INTERVAL_S = 0.2
"""Shortest time between two previews: each costs a JPEG encoding in the sampling thread."""

_UNENCODED_PREVIEW = 2
_PREVIEW_WITH_METADATA = 4


class ClientListener:
    """Takes the place of ``PromptServer.send_sync``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sink: Sink | None = None
        self._echo: Echo | None = None
        self._reported: dict[str, tuple[int, int]] = {}
        self._preview_due = 0.0
        self._current = ""
        self.started: set[str] = set()
        """Nodes that ComfyUI began to execute in this run, so not those it served from its cache."""

    def attach(self, server: Any) -> None:
        """Become the one client of a ``PromptServer``."""
        server.sockets_metadata[CLIENT_ID] = {"feature_flags": {"supports_preview_metadata": True}}
        # Its own method queues every message for the web server's loop; without clients they would only pile up.
        server.send_sync = self.receive

    def begin(self, sink: Sink, *, echoes: bool = False) -> None:
        """A run starts; ``echoes`` as in `RunRequest`."""
        with self._lock:
            self._echo = Echo(sink) if echoes else None
            self._sink, self._reported, self._preview_due, self._current = sink, {}, 0.0, ""
            self.started = set()

    def end(self) -> None:
        """The run is over; later messages are dropped."""
        with self._lock:
            self._sink = None

    def receive(self, event: Any, data: Any, sid: str | None = None) -> None:
        """One message, from any thread; events that do not matter here are dropped."""
        sink = self._sink
        if sink is None:
            return
        if self._echo is not None and isinstance(data, dict):
            self._echo.receive(event, data)
        if event == "executing" and data.get("node") is not None:
            self._current = str(data["node"])
            self.started.add(self._current)
        elif event == "progress_state":
            for node_id, state in data["nodes"].items():
                self._report(sink, state.get("real_node_id") or node_id, state)
        elif event == "progress":
            self._report(sink, data.get("node") or self._current, data)
        elif event == _PREVIEW_WITH_METADATA:
            image, metadata = data
            self._preview(sink, metadata.get("real_node_id") or metadata.get("node_id"), image)
        elif event == _UNENCODED_PREVIEW:
            self._preview(sink, self._current, data)

    def _report(self, sink: Sink, node_id: Any, state: dict[str, Any]) -> None:
        progress = (int(state["value"]), int(state["max"]))
        with self._lock:
            if self._reported.get(str(node_id)) == progress:
                return
            self._reported[str(node_id)] = progress
        sink.progress(str(node_id), *progress)

    def _preview(self, sink: Sink, node_id: Any, image: tuple[str, Any, int | None]) -> None:
        now = time.monotonic()
        with self._lock:
            if now < self._preview_due:
                return
            self._preview_due = now + PREVIEW_INTERVAL_S
        sink.preview(str(node_id), _jpeg(image[1], image[2]))


def _jpeg(picture: Any, longest_side_px: int | None) -> bytes:
    """A Pillow image as JPEG bytes, scaled down to ``longest_side_px``."""
    picture = picture.convert("RGB")
    if longest_side_px is not None:
        picture.thumbnail((longest_side_px, longest_side_px))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
