"""Where workers put their status, and where whoever watches them reads it: at once by key, or as it changes by channel."""
from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from distributed_comfy.errors import MessageVersionUnknown
from distributed_comfy.messages import dump, load
from distributed_comfy.state.scripts import Scripts
from distributed_comfy.state.status import WorkerStatus

log = logging.getLogger(__name__)

_LISTEN_S = 0.5


@dataclass(frozen=True)
class StatusAnswer:
    """What the table says to a worker that told its status."""

    now_ms: int
    """Redis time."""
    drained: bool
    """Somebody has ordered that it gets nothing more."""
    entered: bool
    """False where another live worker has the name, and where this one has left."""


class StatusBoard:
    """The statuses of all workers of one cluster; safe to use from several threads."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    def publish(self, status: WorkerStatus, incarnation: str, *, ttl_ms: int, log_ttl_ms: int) -> StatusAnswer:
        """Enter a status, tell it to whoever listens, and keep the worker's log: one script.

        Args:
            status: of this worker.
            incarnation: of this life of it.
            ttl_ms: until it vanishes without another one.
            log_ttl_ms: how long its log outlives it.
        """
        outcome, now_ms, drained = self._scripts.run("status", status.name, incarnation, dump(status), ttl_ms, log_ttl_ms)
        return StatusAnswer(int(now_ms), drained == "1", outcome == "ok")

    def withdraw(self, name: str) -> None:
        """Remove the status of a worker that ends before it was ever on the table; `WorkerTable.leave` does so for others."""
        self._scripts.reply(lambda: self._scripts.client.delete(self._scripts.keys("status", name)))

    def read(self, names: Collection[str]) -> dict[str, WorkerStatus]:
        """The statuses of these workers; one that has none, or one of another version, is left out."""
        keys = [self._scripts.keys("status", name) for name in names]
        texts = self._scripts.reply(lambda: self._scripts.client.mget(keys)) if keys else []
        found = {name: _status(text) for name, text in zip(names, texts, strict=True)}
        return {name: status for name, status in found.items() if status is not None}

    def watch(self, stop: threading.Event) -> Iterator[WorkerStatus]:
        """Every status of every worker as it is told, until ``stop``; begin with `read`, and read again after an error.

        Raises:
            RedisUnreachable: the connection is lost; statuses may have been missed.
        """
        client, pattern = self._scripts.client, self._scripts.keys("statuses", "*")
        with client.pubsub(ignore_subscribe_messages=True) as channel:
            self._scripts.reply(lambda: channel.psubscribe(pattern))
            while not stop.is_set():
                message: Any = self._scripts.reply(lambda: channel.get_message(timeout=_LISTEN_S))
                status = _status(message["data"]) if message else None
                if status is not None:
                    yield status


def _status(text: str | None) -> WorkerStatus | None:
    if text is None:
        return None
    try:
        return load(WorkerStatus, text)
    except MessageVersionUnknown as error:
        log.debug("a worker's status cannot be read: %s", error)
        return None
