"""The public address of a cluster, opened and closed from a page; it ends with this process."""
from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import redis

from distributed_comfy.errors import DistributedComfyError, OrderRefused
from distributed_comfy.panel.place import Place
from distributed_comfy.panel.words import told

log = logging.getLogger(__name__)

_END_S = 15.0


class Tunnels:
    """At most one at a time.

    Args:
        place: what serves the panel.
        now_ms: the clock of Redis, as it is known here.
        on_change: called when its state is another.
    """

    def __init__(self, place: Place, now_ms: Callable[[], int], on_change: Callable[[], None]) -> None:
        self._place = place
        self._now_ms = now_ms
        self._on_change = on_change
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._shown: dict[str, Any] = {"state": "closed", "url": "", "since_ms": 0, "error": None}

    def shown(self) -> dict[str, Any]:
        """As ``Tunnel`` of openapi.json."""
        with self._lock:
            return dict(self._shown)

    def open(self) -> dict[str, Any]:
        """Begin to open it.

        Raises:
            OrderRefused: it is open, or being opened.
        """
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                raise OrderRefused(what="tunnel", reason="there is one already; close it first")
            stop = self._stop = threading.Event()
            self._shown = {"state": "opening", "url": "", "since_ms": self._now_ms(), "error": None}
            self._thread = threading.Thread(target=self._lead, args=(stop,), name="panel tunnel", daemon=True)
            self._thread.start()
        self._on_change()
        return self.shown()

    def close(self) -> dict[str, Any]:
        """Close it; returns when it is closed."""
        with self._lock:
            self._stop.set()
            thread = self._thread
        if thread is not None:
            thread.join(_END_S)
        self._tell("closed")
        return self.shown()

    def halt(self) -> None:
        """Let it end; returns at once."""
        self._stop.set()

    def url(self) -> str:
        """Its address.

        Raises:
            OrderRefused: it is not open.
        """
        found = self.shown()
        if found["state"] != "open":
            raise OrderRefused(what="tunnel", reason=f"it is {found['state']}; open it first")
        return str(found["url"])

    def _lead(self, stop: threading.Event) -> None:
        try:
            self._place.lead_here(lambda url: self._tell("open", url=url), stop)
        except (DistributedComfyError, redis.RedisError) as error:
            log.warning("the tunnel cannot be opened: %s", error)
            self._tell("failed", error=told(error))
        else:
            self._tell("closed")

    def _tell(self, state: str, *, url: str = "", error: dict[str, Any] | None = None) -> None:
        with self._lock:
            if (self._shown["state"], self._shown["url"]) != (state, url):
                self._shown = {"state": state, "url": url, "since_ms": self._now_ms(), "error": error}
        self._on_change()
