"""The public address of a cluster, opened and closed from a page; it ends with this process."""
from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import redis

from distributed_comfy.errors import DistributedComfyError, OrderRefused, PanelFault, TunnelEnded
from distributed_comfy.panel.place import Place
from distributed_comfy.panel.words import told

log = logging.getLogger(__name__)

_END_S = 15.0
LEADING = ("opening", "open", "closing")
"""States in which there is one, or may be."""


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
        self._over = threading.Event()
        """Set while nobody leads here."""
        self._over.set()
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
            if not self._over.is_set():
                closes = self._stop.is_set()
                raise OrderRefused(what="tunnel", reason="it is closing; wait for that" if closes else "there is one; close it first")
            stop = self._stop = threading.Event()
            self._show("opening")
            threading.Thread(target=self._lead, args=(stop,), name="panel tunnel", daemon=True).start()
            self._over.clear()
        self._on_change()
        return self.shown()

    def close(self) -> dict[str, Any]:
        """Close it; returns when it is closed, or says that it is closing where that takes long."""
        with self._lock:
            self._stop.set()
            self._show("closed" if self._over.is_set() else "closing")  # where it had failed, that is forgotten
        self._on_change()
        self._over.wait(_END_S)
        return self.shown()

    def lose(self, error: TunnelEnded) -> None:
        """Tell that the one with which this process was started has ended, unless another one was opened here."""
        with self._lock:
            if not self._over.is_set():
                return
            self._show("ended", error=told(error))
        self._on_change()

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
            raise OrderRefused(what="tunnel", reason="none is open; open one first")
        return str(found["url"])

    def _lead(self, stop: threading.Event) -> None:
        try:
            self._place.lead_here(lambda url: self._opened(url, stop), stop)
        except (DistributedComfyError, redis.RedisError) as error:
            log.warning("no tunnel: %s", error)
            self._end("ended" if isinstance(error, TunnelEnded) else "failed", told(error))
        except BaseException as error:  # the page must not wait for a tunnel that nobody opens
            self._end("failed", told(PanelFault(reason=f"{type(error).__name__}: {error}"[:200])))
            log.exception("the tunnel failed; please report it")
            raise
        else:
            self._end("closed")

    def _opened(self, url: str, stop: threading.Event) -> None:
        with self._lock:
            if not stop.is_set():
                self._show("open", url=url)
        self._on_change()

    def _end(self, state: str, error: dict[str, Any] | None = None) -> None:
        with self._lock:
            self._show(state, error=error)
            self._over.set()
        self._on_change()

    def _show(self, state: str, *, url: str = "", error: dict[str, Any] | None = None) -> None:
        if self._shown["state"] != state:
            self._shown = {"state": state, "url": url, "since_ms": self._now_ms(), "error": error}
