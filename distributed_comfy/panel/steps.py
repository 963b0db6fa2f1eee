"""The steps and previews that workers publish of their items, the newest of each; heard while somebody looks, and kept in bounds."""
from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import redis

from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.orchestrator.progress import Step, step_of
from distributed_comfy.state.keys import Keys
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

_MOST_ITEMS = 512
_MOST_BYTES = 64 * 2**20
_LARGEST_PREVIEW_BYTES = 2 * 2**20
_LISTEN_S = 0.5
_RETRY_S = 1.0


StepPlace = tuple[str, int, str]
"""Job, index, and the worker that says it: what is said of the same item by two is not mixed, since only one of them holds its claim."""


@dataclass(frozen=True)
class StepView:
    """How far an item is, as one worker says."""

    node_id: str = ""
    value: int = 0
    maximum: int = 0
    number: int = 0
    """Of its newest preview; 0: there is none."""
    preview: bytes = b""


class Steps:
    """What is heard of all jobs; safe to use from several threads."""

    def __init__(self) -> None:
        self._found: OrderedDict[StepPlace, StepView] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def of(self, job_id: str, index: int, worker: str) -> StepView | None:
        """The newest of an item by the worker that runs or ran it."""
        with self._lock:
            return self._found.get((job_id, index, worker))

    def all(self) -> dict[StepPlace, StepView]:
        """The newest of each."""
        with self._lock:
            return dict(self._found)

    def hear(self, job_id: str, step: Step) -> None:
        """Keep one; the item that was heard of the longest ago makes room."""
        place = (job_id, step.index, step.worker)
        with self._lock:
            before = self._found.pop(place, StepView())
            if not step.preview:
                now = replace(before, node_id=step.node_id, value=step.value, maximum=step.maximum)
            elif len(step.preview) <= _LARGEST_PREVIEW_BYTES:
                now = replace(before, number=before.number + 1, preview=step.preview)
            else:
                now = before
            self._found[place] = now
            self._bytes += len(now.preview) - len(before.preview)
            while len(self._found) > _MOST_ITEMS or self._bytes > _MOST_BYTES:
                _, oldest = self._found.popitem(last=False)
                self._bytes -= len(oldest.preview)

    def listen(self, cluster: Callable[[], Cluster], stop: threading.Event) -> None:
        """Hear what is published until ``stop`` is set; what is missed meanwhile is of no importance."""
        while not stop.is_set():
            try:
                self._listen(cluster(), stop)
            except (DistributedComfyError, redis.RedisError, OSError, ValueError, TypeError) as error:  # the last two: it was closed
                log.debug("progress: %s", error)
                stop.wait(_RETRY_S)
            except Exception:  # a fault of ours must not end the thread
                if not stop.is_set():
                    log.exception("the panel cannot hear what workers do; please report it")
                stop.wait(_RETRY_S)

    def _listen(self, cluster: Cluster, stop: threading.Event) -> None:
        pattern = Keys(cluster.settings.key_prefix)("progress", "*")
        before = len(pattern) - 1
        client: Any = cluster.client  # redis-py leaves pubsub untyped
        with client.pubsub(ignore_subscribe_messages=True) as channel:
            channel.psubscribe(pattern)
            while not stop.is_set():
                message = channel.get_message(timeout=_LISTEN_S)
                if message:
                    self._hear(str(message["channel"])[before:], str(message["data"]))

    def _hear(self, job_id: str, text: str) -> None:
        try:
            step = step_of(json.loads(text))
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
            log.debug("progress: a message that is none: %s", error)
            return
        if step is not None:
            self.hear(job_id, step)
