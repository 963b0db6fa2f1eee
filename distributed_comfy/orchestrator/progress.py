"""Listens to the steps and previews that workers publish about a job."""
from __future__ import annotations

import base64
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis

from distributed_comfy.state.keys import Keys
from tasks.cluster import Cluster

log = logging.getLogger(__name__)


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


class ProgressListener:
    """A context that calls ``on_step`` from a thread of its own; steps may be lost, so nothing may depend on them."""

    def __init__(self, cluster: Cluster, job_id: str, on_step: Callable[[Step], None]) -> None:
        self._cluster = cluster
        self._channel = Keys(cluster.settings.key_prefix)("progress", job_id)
        self._on_step = on_step
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, name=f"progress-{job_id}", daemon=True)

    def __enter__(self) -> ProgressListener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=2)

    def _listen(self) -> None:
        while not self._ended.is_set():
            try:
                client: Any = self._cluster.client  # redis-py leaves pubsub untyped
                with client.pubsub(ignore_subscribe_messages=True) as channel:
                    channel.subscribe(self._channel)
                    while not self._ended.is_set():
                        message = channel.get_message(timeout=0.2)
                        if message:
                            self._on_step(_step(str(message["data"])))
            except redis.RedisError as error:
                log.debug("progress: %s", error)
                self._ended.wait(1.0)


def _step(text: str) -> Step:
    fields = json.loads(text)
    return Step(
        int(fields["index"]),
        str(fields["worker"]),
        str(fields["node"]),
        int(fields.get("value", 0)),
        int(fields.get("maximum", 0)),
        base64.b64decode(fields.get("preview", "")),
    )
