"""Sends what a worker and its engine log to Redis, from where it can be read on any host."""
from __future__ import annotations

import logging
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import redis

from distributed_comfy.engine.log_tail import LineFolder, LogTail
from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.log_lines import TextFormatter
from distributed_comfy.state.worker_log import LogLine
from distributed_comfy.state.workers import to_ms
from tasks.cluster import Cluster
from tasks.log_buffer import LogBuffer, Redactor

log = logging.getLogger(__name__)

STREAM_LIMIT_BYTES = 2 * 2**20
"""Of the text of one worker's lines; long ones make the stream shorter."""

_INTERVAL_S = 0.25
_PAUSE_S = 1.0
_BATCH_LINES = 250
_JOIN_S = 3.0


class BufferHandler(logging.Handler):
    """Puts this process's log records into the buffer."""

    def __init__(self, buffer: LogBuffer) -> None:
        super().__init__()
        self._buffer = buffer
        self.setFormatter(TextFormatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record."""
        self._buffer.add("worker", record.levelname, self.format(record))


class LogStream:
    """A context in which all that this process logs, and all that is added to the engine's log, is sent.

    Args:
        cluster: open connections.
        name: of the worker.
        engine_log: file of its engine.
    """

    def __init__(self, cluster: Cluster, name: str, engine_log: Path) -> None:
        self._cluster = cluster
        self._name = name
        self._buffer = LogBuffer(Redactor(cluster.settings, (cluster.redis_url, cluster.blob_url)))
        self._handler = BufferHandler(self._buffer)
        self._tail = LogTail(engine_log)
        self._folder = LineFolder()
        self._sender = _Sender(cluster, name)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)

    def __enter__(self) -> LogStream:
        logging.getLogger().addHandler(self._handler)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Send what is left, if the server takes it at once; also the error that ends the worker."""
        if kind is not None and error is not None and issubclass(kind, Exception):
            self._buffer.add("worker", "CRITICAL", "".join(traceback.format_exception(kind, error, trace)).rstrip())
        logging.getLogger().removeHandler(self._handler)
        self._stopped.set()
        self._thread.join(_JOIN_S)

    def _run(self) -> None:
        away = False
        while not self._stopped.wait(_PAUSE_S if away else _INTERVAL_S):
            self._read_engine()
            away = not self._send()
        self._read_engine()
        for level, text in self._folder.end(time.monotonic()):
            self._buffer.add("engine", level, text)
        self._send()

    def _read_engine(self) -> None:
        added = self._tail.read()
        if self._tail.skipped_bytes:
            self._buffer.skipped("engine", self._tail.skipped_bytes)
        for level, text in self._folder.feed(added, time.monotonic()):
            self._buffer.add("engine", level, text)

    def _send(self) -> bool:
        """Send all that waits; False where the server does not take it."""
        while lines := self._sender.unsent() or self._buffer.take(_BATCH_LINES):
            try:
                self._sender.send(lines)
            except (DistributedComfyError, redis.RedisError) as error:
                log.debug("worker %s: its log cannot be sent: %s", self._name, error)
                return False
        return True


class _Sender:
    """Sends batches; one whose answer was lost is sent again as the same batch, which the server then knows."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self._name = name
        self._batch: tuple[str, list[LogLine]] = ("", [])
        self._sizes: deque[int] = deque(maxlen=cluster.settings.log_lines)

    def unsent(self) -> list[LogLine]:
        """The batch that was not answered; empty where all were."""
        return self._batch[1]

    def send(self, lines: list[LogLine]) -> None:
        """
        Raises:
            RedisUnreachable, RedisRefusesWrites: it may have been entered, or not.
        """
        if lines is not self._batch[1]:
            self._batch = (uuid.uuid4().hex[:8], lines)
            self._sizes.extend(len(line.text.encode()) for line in lines)
        settings = self._cluster.settings
        keep_ms = to_ms(settings.log_ttl_s)
        keep_lines = newest_within(self._sizes, settings.log_lines)
        self._cluster.logs.append(self._name, lines, self._batch[0], keep_lines=keep_lines, keep_ms=keep_ms)
        self._batch = ("", [])


def newest_within(sizes: Sequence[int], most: int, limit_bytes: int = STREAM_LIMIT_BYTES) -> int:
    """How many lines a stream may have: ``most``, or as many of the newest as have no more bytes than the limit together.

    Args:
        sizes: bytes of the lines that were sent, oldest first.
    """
    total = 0
    for kept, size in enumerate(reversed(sizes)):
        total += size
        if total > limit_bytes:
            return max(1, kept)
    return most
