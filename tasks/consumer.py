"""The worker process: a Celery consumer of one queue that owns an engine, and its orderly end."""
from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType
from typing import Any

from celery import bootsteps
from celery.worker import state as celery_state

from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.errors import DistributedComfyError, RemoteError
from distributed_comfy.log_lines import name_worker
from distributed_comfy.settings import Settings, redact_url
from tasks.app import gpu_queue
from tasks.broker import RUN_ITEM
from tasks.cluster import Cluster, open_cluster
from tasks.log_stream import LogStream
from tasks.names import free_worker_name, node_name, take_name
from tasks.reconnect import Reconnection, say_once
from tasks.run_item import ticket_body
from tasks.runtime import WorkerRuntime, with_folder

log = logging.getLogger(__name__)


class RuntimeStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Starts engine, lease and reaper with the Celery worker, and stops them with it."""

    requires = {"celery.worker.components:Pool"}  # noqa: RUF012 - Celery reads a set

    def __init__(self, parent: Any, runtime: WorkerRuntime | None = None, **_: Any) -> None:
        self.runtime = runtime
        self.enabled = runtime is not None

    def start(self, parent: Any) -> None:
        """Celery calls this before it consumes."""
        if self.runtime:
            self.runtime.start()

    def stop(self, parent: Any) -> None:
        """Celery calls this when it has stopped consuming."""
        if self.runtime:
            self.runtime.stop()


class PromptEventsStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Sends each monitoring event at once, at every new connection.

    Celery collects them in batches, which go with a worker that is killed in the next second; and up to 5.6 it forgets one that
    another thread adds while a batch is sent.  A few small messages per item cost nothing, and without a monitor none are sent.
    """

    requires = {"celery.worker.consumer.events:Events"}  # noqa: RUF012 - Celery reads a set

    def start(self, parent: Any) -> None:
        """Celery calls this with its consumer, before it takes the first ticket."""
        parent.event_dispatcher.buffer_group = frozenset()


def run_worker(settings: Settings, redis_url: str, blob_url: str, options: EngineOptions, *, end_with_stdin: bool = False) -> int:
    """Be a worker until a signal ends it.

    Args:
        settings: of this process.
        redis_url: state Redis.
        blob_url: blob Redis.
        options: engine; its ``worker``, ``folder`` and ``log_file`` are filled in here.
        end_with_stdin: end when standard input closes, so that a worker never outlives who started it.
    Returns:
        Exit status: 0 after an orderly end, else that of the error that it ended with.
    Raises:
        WorkerNameTaken: before anything was started.
    """
    cluster = open_cluster(settings, redis_url, blob_url)
    try:
        name = settings.worker_name or free_worker_name(cluster, options.device)
        if settings.worker_name:
            take_name(cluster, name)
        where = redact_url(redis_url)
        name_worker(name)
        options = with_folder(options, name, settings.cache_folder)
        with LogStream(cluster, name, options.log_file):
            log.info("worker %s starts: engine %s on %s, Redis at %s, pid %d", name, options.engine, options.device, where, os.getpid())
            return _Consumer(cluster, name, options).run(end_with_stdin)
    finally:
        cluster.close()


class _Consumer:
    """Ties the Celery worker, the runtime and the signals together."""

    def __init__(self, cluster: Cluster, name: str, options: EngineOptions) -> None:
        self._cluster = cluster
        self._runtime = WorkerRuntime(cluster, name, options, lambda: self._reconnection.ask())
        app = cluster.app
        say_once()
        app.conf.task_queues = (gpu_queue(name),)
        body = ticket_body(self._runtime, self._dispatcher)
        app.task(bind=True, name=RUN_ITEM, acks_late=True, ignore_result=True, throws=(DistributedComfyError,))(body)
        app.steps["worker"].add(RuntimeStep)
        app.steps["consumer"].add(PromptEventsStep)
        self._controller = app.WorkController(
            hostname=node_name(name, options.device, cluster.settings.host_name),
            pool_cls="threads",
            concurrency=cluster.settings.slots,
            loglevel=cluster.settings.log_level,
            without_gossip=True,
            without_mingle=True,
            runtime=self._runtime,
        )
        self._reconnection = Reconnection(self._controller)
        self._ending = threading.Event()

    def run(self, end_with_stdin: bool) -> int:
        """Consume until told to end."""
        for number in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGBREAK", signal.SIGINT)):
            signal.signal(number, self._on_signal)
        threading.excepthook = self._on_thread_error
        if end_with_stdin:
            threading.Thread(target=self._watch_stdin, name="stdin", daemon=True).start()
        threading.Thread(target=self._watch_failure, name="failure", daemon=True).start()
        self._controller.start()
        return self._runtime.failed.exit_code if self._runtime.failed else 0

    def _on_thread_error(self, error: threading.ExceptHookArgs) -> None:
        """A worker without one of its threads would look alive and do nothing: it ends with the reason."""
        name = error.thread.name if error.thread else "?"
        log.critical("worker %s: thread %s failed", self._runtime.name, name, exc_info=error.exc_value)
        self._runtime.failed = RemoteError(original_code=error.exc_type.__name__, details=f"in thread {name}: {error.exc_value}")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._ending.is_set():
            log.warning("worker %s: second signal, ending at once", self._runtime.name)
            self._runtime.stop()
            os._exit(1)
        self._begin_end(self._cluster.settings.drain_timeout_s)

    def _begin_end(self, drain_timeout_s: float) -> None:
        """Drain in a thread: the signal came in the middle of Celery's loop, which must go on meanwhile."""
        self._ending.set()

        def end() -> None:
            log.info("worker %s ends: no new items, up to %.0f s for the running one", self._runtime.name, drain_timeout_s)
            self._runtime.drain(drain_timeout_s)
            celery_state.should_stop = 0

        threading.Thread(target=end, name="drain", daemon=True).start()

    def _watch_stdin(self) -> None:
        while os.read(0, 4096):
            pass
        if not self._ending.is_set():
            log.info("worker %s: whoever started it is gone", self._runtime.name)
            self._begin_end(0)

    def _watch_failure(self) -> None:
        """A worker that cannot register ends with its reason."""
        while not self._ending.wait(0.2):
            if self._runtime.failed:
                self._begin_end(0)

    def _dispatcher(self) -> Any:
        """Celery's event dispatcher of the moment; None before the consumer is connected."""
        return getattr(getattr(self._controller, "consumer", None), "event_dispatcher", None)
