"""The pack's connection to the cluster: made in a thread, so that ComfyUI starts as fast as without us, and made again when it fails."""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import redis

from distributed_comfy.comfyui.host import ComfyHost
from distributed_comfy.errors import ClusterNotReady, DistributedComfyError
from distributed_comfy.orchestrator.servers import Servers, redis_servers
from distributed_comfy.settings import Settings
from tasks.cluster import Cluster, open_cluster

log = logging.getLogger(__name__)

SessionState = Literal["off", "starting", "ready", "failed"]

_FIRST_RETRY_S = 2.0
_LONGEST_RETRY_S = 30.0
_END_S = 20.0


class Session:
    """One per process.

    Args:
        settings: of this process.
        host: the ComfyUI of this process.
    """

    def __init__(self, settings: Settings, host: ComfyHost) -> None:
        self.settings = settings
        self.host = host
        self.state: SessionState = "off"
        self.reason = ""
        """Why it is not ready, in words; empty where there is nothing to say."""
        self.servers: Servers | None = None
        self._cluster: Cluster | None = None
        self._error: DistributedComfyError | None = None
        self._changed = threading.Condition()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._tell("starting")
        self._thread = threading.Thread(target=self._work, name="distributed-comfy session", daemon=True)
        self._thread.start()

    def cluster(self, timeout_s: float) -> Cluster:
        """The open cluster, as soon as there is one.

        Raises:
            ClusterUnavailable: there is none, and why.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.state != "starting", timeout_s)
            if self._cluster is not None:
                return self._cluster
            if self._error is not None:
                raise self._error
            raise ClusterNotReady(state=self.state, timeout_s=timeout_s)

    def end(self) -> None:
        """Close everything; an embedded Redis that nobody else uses ends."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(_END_S)

    def _work(self) -> None:
        wait_s = _FIRST_RETRY_S
        while not self._ending.is_set():
            try:
                with self._connected():
                    wait_s = _FIRST_RETRY_S
                    self._ending.wait()
            except (DistributedComfyError, redis.RedisError) as error:
                self._fail(error)
                self._ending.wait(wait_s)
                wait_s = min(_LONGEST_RETRY_S, wait_s * 2)
        self._tell("off")

    @contextmanager
    def _connected(self) -> Iterator[None]:
        with ExitStack() as open_things:
            begun = time.monotonic()
            servers = open_things.enter_context(redis_servers(self.settings))
            cluster = open_cluster(self.settings, servers.redis_url, servers.blob_url)
            open_things.callback(cluster.close)
            self.servers, self._cluster, self._error = servers, cluster, None
            open_things.callback(self._forget)
            self._tell("ready")
            log.info("ready after %.1f s: %s", time.monotonic() - begun, servers.shown)
            yield

    def _forget(self) -> None:
        with self._changed:
            self.servers = self._cluster = None

    def _fail(self, error: Exception) -> None:
        known = error if isinstance(error, DistributedComfyError) else ClusterNotReady(state=str(error), timeout_s=0.0)
        if str(known) != self.reason:
            log.warning("no cluster: %s; this ComfyUI works alone until it is there", known)
        with self._changed:
            self._error = known
        self._tell("failed", str(known))

    def _tell(self, state: SessionState, reason: str = "") -> None:
        with self._changed:
            self.state, self.reason = state, reason
            self._changed.notify_all()
