"""The pack's connection to the cluster: made in a thread, so that ComfyUI's start does not wait for it, and made again when it fails."""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import redis

from distributed_comfy.agent.agent import Agent
from distributed_comfy.comfyui.host import ComfyHost
from distributed_comfy.comfyui.host_workers import HostWorkers, ServersGone, like_this
from distributed_comfy.comfyui.options import OptionsFile
from distributed_comfy.errors import ClusterNotReady, DistributedComfyError, SessionFailed
from distributed_comfy.orchestrator.servers import Servers, cluster_servers
from distributed_comfy.settings import Settings, ignored_variables
from tasks.cluster import Cluster, open_cluster

log = logging.getLogger(__name__)

SessionState = Literal["off", "starting", "ready", "failed"]

_FIRST_RETRY_S = 2.0
_LONGEST_RETRY_S = 30.0
_LOOK_S = 2.0
_MISSES = 3
_LINGER_S = 60.0
"""An embedded Redis of ours outlives a killed ComfyUI for so long, which is what a restart takes with many node packs; jobs are on disk in
any case."""
_END_S = 30.0


class Session:
    """One per process.

    Args:
        settings: of this process.
        host: the ComfyUI of this process.
        options: of the user.
    """

    def __init__(self, settings: Settings, host: ComfyHost, options: OptionsFile) -> None:
        self.settings = like_this(settings, host)
        self.state: SessionState = "off"
        self.reason = ""
        """Why it is not ready, in words; empty where there is nothing to say."""
        self.servers: Servers | None = None
        self.workers = HostWorkers(host, options)
        """The workers of this host."""
        self.on_left: list[Callable[[Cluster], None]] = []
        """Called with a cluster that is left, before its connections are closed: it must be quick."""
        self._cluster: Cluster | None = None
        self._error: DistributedComfyError | None = None
        self._changed = threading.Condition()
        self._ending = threading.Event()
        self._misses = 0
        self._look_at = 0.0
        self._thread: threading.Thread | None = None

    @property
    def agent(self) -> Agent | None:
        """The agent of this host, where it is in this process."""
        return self.workers.agent

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
            raise ClusterNotReady(state=self.state)

    def end(self) -> None:
        """End the workers and close everything; an embedded Redis that nobody else uses ends."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(_END_S)

    def _work(self) -> None:
        if ignored := ignored_variables():
            log.warning("%s", ignored)
        wait_s = _FIRST_RETRY_S
        while not self._ending.is_set():
            begun = time.monotonic()
            try:
                with self._connected() as (cluster, servers):
                    self.workers.run(cluster, servers, self._wait)
            except ServersGone:
                log.warning("the embedded Redis is gone; it is started again, and jobs go on from its data on disk")
                self._tell("starting")
            except Exception as error:  # noqa: BLE001 - the boundary of the thread: after a fault of ours it is to come back too
                self._fail(error)
                wait_s = wait_s if time.monotonic() - begun < _LONGEST_RETRY_S else _FIRST_RETRY_S
                self._ending.wait(wait_s)
                wait_s = min(_LONGEST_RETRY_S, wait_s * 2)
        self._tell("off")

    @contextmanager
    def _connected(self) -> Iterator[tuple[Cluster, Servers]]:
        begun = time.monotonic()
        with cluster_servers(self.settings, linger_s=_LINGER_S) as (settings, servers), ExitStack() as open_things:
            cluster = open_cluster(settings, servers.redis_url, servers.blob_url)
            open_things.callback(cluster.close)
            with self._changed:
                self.servers, self._cluster, self._error = servers, cluster, None
            open_things.callback(self._forget)
            self._tell("ready")
            log.info("connected within %.1f s: %s", time.monotonic() - begun, servers.shown)
            yield cluster, servers

    def _wait(self, seconds: float) -> bool:
        """Wait; true once the session ends.

        Raises:
            ServersGone: there is nothing to wait for any more.
        """
        if self._ending.wait(seconds):
            return True
        cluster, servers = self._cluster, self.servers
        if cluster is not None and servers is not None and servers.embedded and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_S
            try:
                cluster.client.ping()
                self._misses = 0
            except redis.RedisError:  # a configured server comes back where it was, and needs no look
                self._misses += 1
            if self._misses >= _MISSES:
                self._misses = 0
                self._forget()  # jobs leave now: to end the workers takes a while
                raise ServersGone
        return False

    def _forget(self) -> None:
        with self._changed:
            left, self.servers, self._cluster = self._cluster, None, None
            self.state = "starting"
        if left is not None:
            for tell in self.on_left:
                tell(left)

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, (DistributedComfyError, redis.RedisError)):
            log.error("the session ended unexpectedly; please report it", exc_info=error)
        known = error if isinstance(error, DistributedComfyError) else SessionFailed(reason=str(error) or type(error).__name__)
        if str(known) != self.reason:
            log.warning("no cluster: %s; this ComfyUI works alone until there is one", known)
        with self._changed:
            self._error = known
        self._tell("failed", str(known))

    def _tell(self, state: SessionState, reason: str = "") -> None:
        with self._changed:
            self.state, self.reason = state, reason
            self._changed.notify_all()
