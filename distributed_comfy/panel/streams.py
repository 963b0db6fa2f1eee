"""Server-sent events: the state of the cluster and what changes in it, and lines of a log as they come."""
from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress

import redis
from aiohttp import web

from distributed_comfy.errors import DistributedComfyError
from distributed_comfy.panel.answering import SECRET, Threads
from distributed_comfy.panel.watch import Watch
from distributed_comfy.panel.worker_logs import LogReader, shown_line

HEARTBEAT_S = 10.0
_LOG_POLL_S = 0.4
_HEADERS = {**SECRET, "Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}


class Streams:
    """All open streams of one panel.

    Args:
        watch: what is told.
        logs: of workers.
        threads: to wait in.
    """

    def __init__(self, watch: Watch, logs: LogReader, threads: Threads) -> None:
        self._watch = watch
        self._logs = logs
        self._threads = threads
        self._ended = False
        self._wakes: set[asyncio.Event] = set()

    def end(self) -> None:
        """Let every stream end; to be called on the event loop."""
        self._ended = True
        for wake in self._wakes:
            wake.set()

    async def state(self, request: web.Request, job_id: str) -> web.StreamResponse:
        """First everything, then what changes."""
        wake = asyncio.Event()
        with self._watch.viewing(_waker(wake), job_id):
            await self._threads.quick(self._watch.state)
            response = await _begin(request)
            self._wakes.add(wake)
            try:
                await self._tell_changes(response, wake, job_id)
            except ConnectionError:  # the page is gone
                pass
            finally:
                self._wakes.discard(wake)
        return response

    async def _tell_changes(self, response: web.StreamResponse, wake: asyncio.Event, job_id: str) -> None:
        revision = -1
        while not self._ended:
            wake.clear()
            changes = self._watch.since(revision)
            if changes is None:
                revision, text = await self._threads.quick(self._watch.snapshot, job_id)
                await _send(response, "snapshot", text)
            for change in changes or ():
                revision = change.revision
                if text := change.text(job_id):
                    await _send(response, "change", text)
            try:
                await asyncio.wait_for(wake.wait(), HEARTBEAT_S)
            except asyncio.TimeoutError:
                await response.write(b": still here\n\n")

    async def log(self, request: web.Request, name: str, after: str) -> web.StreamResponse:
        """Lines behind one, as they come; a server that is away for a while ends nothing."""
        newest = await self._threads.quick(self._logs.newest, name)  # says where there is no such worker
        last, told_at = after or newest, time.monotonic()
        response = await _begin(request)
        with suppress(ConnectionError):
            while not self._ended:
                try:
                    lines = await self._threads.follow(self._logs.after, name, last)
                except (DistributedComfyError, redis.RedisError):
                    lines = []
                if lines:
                    last = lines[-1].entry_id
                    await _send(response, "lines", json.dumps({"lines": [shown_line(line) for line in lines]}))
                    told_at = time.monotonic()
                elif time.monotonic() - told_at >= HEARTBEAT_S:
                    await response.write(b": still here\n\n")
                    told_at = time.monotonic()
                await asyncio.sleep(_LOG_POLL_S)
        return response


def _waker(wake: asyncio.Event) -> Callable[[], None]:
    """Sets an event from any thread."""
    loop = asyncio.get_running_loop()

    def set_it() -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(wake.set)

    return set_it


async def _begin(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers=_HEADERS)
    await response.prepare(request)
    return response


async def _send(response: web.StreamResponse, event: str, text: str) -> None:
    await response.write(f"event: {event}\ndata: {text}\n\n".encode())
