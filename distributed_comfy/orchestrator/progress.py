"""Listens to the steps and previews that workers publish about a job."""
from __future__ import annotations

import base64
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis

from distributed_comfy.state.keys import Keys
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

_MARK_S = 0.2
_TELLING_S = 2.0


@dataclass(frozen=True)
class Step:
    """A worker did some steps of a node; or shows a preview."""

    index: int
    worker: str
    node_id: str
    value: int = 0
    maximum: int = 0
    preview: bytes = b""
    """JPEG or PNG; empty for a plain step."""


@dataclass(frozen=True)
class Said:
    """ComfyUI on a worker said this to its browser, about a job that `JobRecord.echoes`."""

    index: int
    worker: str
    claim_id: str
    """The execution; it stands in ``facts`` where a prompt's id would."""
    event: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Waits:
    """A finished item's result cannot be stored now, and its worker keeps it."""

    index: int
    worker: str
    reason: str
    """A sentence; empty where it goes on."""


class ProgressListener:
    """A context that calls ``on_step`` from a thread of its own; steps may be lost, so nothing may depend on them.

    Args:
        cluster: open connections.
        job_id: the job; it need not be in the table yet.
        on_step: told of steps and previews.
        on_said: told what ComfyUI said.
        on_waits: told of results that wait.
    """

    def __init__(
        self,
        cluster: Cluster,
        job_id: str,
        on_step: Callable[[Step], None],
        on_said: Callable[[Said], None] = lambda said: None,
        on_waits: Callable[[Waits], None] = lambda waits: None,
    ) -> None:
        self._cluster = cluster
        self._channel = Keys(cluster.settings.key_prefix)("progress", job_id)
        self._on_step, self._on_said, self._on_waits = on_step, on_said, on_waits
        self._marks: dict[str, threading.Event] = {}
        self._ended = threading.Event()
        self._telling = threading.Lock()
        self._thread = threading.Thread(target=self._listen, name=f"progress-{job_id}", daemon=True)

    def __enter__(self) -> ProgressListener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Afterwards nothing is told any more; the thread ends with its next look, which nobody waits for at the end of a job."""
        held = self._telling.acquire(timeout=_TELLING_S)
        self._ended.set()
        if held:
            self._telling.release()

    def catch_up(self, timeout_s: float) -> bool:
        """Wait until everything that was published before this call has been told; False where that takes too long.

        Raises:
            redis.RedisError: the server cannot be reached.
        """
        mark, heard = secrets.token_hex(8), threading.Event()
        self._marks[mark] = heard
        give_up = time.monotonic() + timeout_s
        while True:  # again and again: it may not have subscribed yet
            self._cluster.client.publish(self._channel, json.dumps({"mark": mark}))
            if heard.wait(_MARK_S) or time.monotonic() >= give_up:
                del self._marks[mark]
                return heard.is_set()

    def _listen(self) -> None:
        while not self._ended.is_set():
            try:
                client: Any = self._cluster.client  # redis-py leaves pubsub untyped
                with client.pubsub(ignore_subscribe_messages=True) as channel:
                    channel.subscribe(self._channel)
                    while not self._ended.is_set():
                        message = channel.get_message(timeout=0.2)
                        if message:
                            self._hear(str(message["data"]))
            except (redis.RedisError, OSError, TypeError, ValueError) as error:  # the last three: another thread closed the connection
                log.debug("progress: %s", error)
                self._ended.wait(1.0)

    def _hear(self, text: str) -> None:
        try:
            told = _told(json.loads(text))
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
            log.debug("progress: a message that is none: %s", error)
            return
        with self._telling:
            if not self._ended.is_set():
                self._pass_on(told)

    def _pass_on(self, told: Step | Said | Waits | str) -> None:
        if isinstance(told, Step):
            self._on_step(told)
        elif isinstance(told, Said):
            self._on_said(told)
        elif isinstance(told, Waits):
            self._on_waits(told)
        elif told in self._marks:
            self._marks[told].set()


def _told(fields: dict[str, Any]) -> Step | Said | Waits | str:
    """A mark is its text."""
    if "mark" in fields:
        return str(fields["mark"])
    if "waits" in fields:
        return Waits(int(fields["index"]), str(fields["worker"]), str(fields["waits"]))
    return _said(fields) if "said" in fields else _step(fields)


def step_of(fields: dict[str, Any]) -> Step | None:
    """The step or preview in a message; None where it is something else.

    Raises:
        TypeError, ValueError, LookupError, ArithmeticError, AttributeError: it is no message of ours.
    """
    return None if "mark" in fields or "said" in fields else _step(fields)


def _said(fields: dict[str, Any]) -> Said:
    facts = json.loads(fields["facts"])
    return Said(int(fields["index"]), str(fields["worker"]), str(fields["claim"]), str(fields["said"]), facts)


def _step(fields: dict[str, Any]) -> Step:
    return Step(
        int(fields["index"]),
        str(fields["worker"]),
        str(fields["node"]),
        int(fields.get("value", 0)),
        int(fields.get("maximum", 0)),
        base64.b64decode(fields.get("preview", "")),
    )
