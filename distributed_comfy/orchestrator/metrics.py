"""The cluster in numbers for Prometheus: read from the table when somebody asks, never more than once a second.  It only looks."""
from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import redis
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from distributed_comfy.errors import DistributedComfyError, SettingInvalid
from distributed_comfy.orchestrator.metric_families import Reading, ServerMemory, families
from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.planning.requirements import matches
from distributed_comfy.settings import Settings
from distributed_comfy.state.connection import connect
from distributed_comfy.state.figures import read_figures
from distributed_comfy.state.hosts import HostTable
from distributed_comfy.state.matching import Matching
from distributed_comfy.state.records import HostRecord
from distributed_comfy.state.scripts import Scripts
from distributed_comfy.state.status import WorkerStatus
from distributed_comfy.state.status_board import StatusBoard
from distributed_comfy.state.workers import WorkerTable

log = logging.getLogger(__name__)

_CACHE_S = 1.0
_SOCKET_TIMEOUT_S = 3.0
"""A scrape is given up after ten seconds by default, and asks two servers."""


class ClusterReader:
    """Reads both servers; connections are kept, and lost ones opened again."""

    def __init__(self, settings: Settings, servers: Servers) -> None:
        """
        Args:
            settings: key prefix.
            servers: where to look.
        Raises:
            RedisUnreachable, RedisRefused, RedisTooOld: at the start.
        """
        self._state = connect(servers.redis_url, "DC_REDIS_URL", decode_responses=True, socket_timeout_s=_SOCKET_TIMEOUT_S)
        self._blobs = connect(servers.blob_url, "DC_BLOB_URL", decode_responses=True, socket_timeout_s=_SOCKET_TIMEOUT_S)
        self._scripts = Scripts(self._state, settings.key_prefix, lambda workers: None)
        self._workers = WorkerTable(self._scripts, Matching(self._scripts, matches), settings)
        self._statuses = StatusBoard(self._scripts)
        self._hosts = HostTable(self._scripts, settings)

    def read(self) -> Reading:
        """The cluster now; a server that does not answer leaves its part empty."""
        began = time.monotonic()
        memory = {"state": _memory(self._state, "state"), "blobs": _memory(self._blobs, "blobs")}
        figures, workers = None, []
        statuses: dict[str, WorkerStatus] = {}
        hosts: list[HostRecord] = []
        if memory["state"] is not None:
            try:
                figures, workers = read_figures(self._scripts), self._workers.workers()
                statuses = self._statuses.read([worker.facts.name for worker in workers])
                hosts = self._hosts.living()
            except (DistributedComfyError, redis.RedisError) as error:
                log.warning("the table could not be read: %s", error)
        return Reading(figures, tuple(workers), memory, time.monotonic() - began, statuses, tuple(hosts))

    def close(self) -> None:
        """Give the connections back."""
        self._state.close()
        self._blobs.close()


class ClusterCollector(Collector):
    """Gives Prometheus' client the metrics of a reading that is at most a second old; from any thread."""

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._reading: Reading | None = None
        self._read_at = 0.0

    def collect(self) -> Iterable[Metric]:
        """All metrics; called once for each scrape."""
        return families(self._recent())

    def describe(self) -> Iterable[Metric]:
        """Nothing: without this the client would scrape once to learn the names."""
        return ()

    def _recent(self) -> Reading:
        with self._lock:  # whoever comes meanwhile waits for the same reading
            if self._reading is None or time.monotonic() - self._read_at >= _CACHE_S:
                self._reading = self._read()
                self._read_at = time.monotonic()
            return self._reading


class MetricsServer:
    """A context in which scrapes are answered; its value is the address.

    Args:
        settings: key prefix.
        servers: of the cluster.
        host: address to listen on.
        port: 0: a free one.
    """

    def __init__(self, settings: Settings, servers: Servers, host: str, port: int) -> None:
        self._reader = ClusterReader(settings, servers)
        registry = CollectorRegistry()
        registry.register(ClusterCollector(self._reader.read))
        try:
            self._server, _ = start_http_server(port, host, registry)
        except OSError as error:
            self._reader.close()
            name = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
            raise SettingInvalid(name=name, reason=f"cannot listen on {host}:{port}: {error.strerror}") from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_port}/metrics"

    def __enter__(self) -> str:
        """
        Returns:
            The address.
        """
        return self.url

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._reader.close()


def _memory(client: Any, server: str) -> ServerMemory | None:
    try:
        found = client.info("memory")
    except redis.RedisError as error:
        log.warning("the %s server does not answer: %s", server, error)
        return None
    return ServerMemory(int(found["used_memory"]), int(found.get("maxmemory", 0)))
