"""Real engine processes with the built-in engine and the probe nodes, and a record of everything they tell."""
from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis

from distributed_comfy.engine.host import EngineProcess, HostEvent
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.engine.protocol import Failed, Finished
from distributed_comfy.messages import Prompt, RunRequest
from distributed_comfy.transport.redis_blobs import RedisBlobStore
from tests.conftest import RedisServer

PROJECT = Path(__file__).parents[3]
E = TypeVar("E")


class Recorded:
    """An engine process and its events."""

    def __init__(self, options: EngineOptions, blobs: RedisBlobStore) -> None:
        self.options = options
        self.blobs = blobs
        self.events: list[HostEvent] = []
        self._news = threading.Condition()
        self._claims = itertools.count(1)
        self.process = EngineProcess(options, self._record)

    def _record(self, event: HostEvent) -> None:
        with self._news:
            self.events.append(event)
            self._news.notify_all()

    def wait(self, kind: type[E], accept: Callable[[E], bool] = lambda event: True, *, timeout_s: float = 30) -> E:
        """The first event of this kind that is acceptable, now or when it comes."""
        deadline = time.monotonic() + timeout_s
        with self._news:
            while True:
                for event in self.events:
                    if isinstance(event, kind) and accept(event):
                        return event
                if not self._news.wait(deadline - time.monotonic()):
                    wanted = getattr(kind, "__name__", kind)
                    pytest.fail(f"no {wanted} within {timeout_s} s; {self.events}; log: {self.log()}", pytrace=False)

    def run(self, prompt: Prompt, *targets: str, **facts: Any) -> str:
        """Queue a prompt under a new claim."""
        claim_id = f"claim{next(self._claims)}"
        known = {"claim_id": claim_id, "job_id": "job1", "index": 0, "kind": "generate", "original_prompt": prompt}
        self.process.run(RunRequest(**{**known, "prompt": prompt, "targets": targets or ("9",), **facts}))
        return claim_id

    def end(self, claim_id: str, *, timeout_s: float = 30) -> Finished | Failed:
        """How a claim ended."""

        def ours(event: Any) -> bool:
            return bool(event.claim_id == claim_id)

        return self.wait((Finished, Failed), ours, timeout_s=timeout_s)  # type: ignore[arg-type, return-value]

    def result(self, claim_id: str) -> Finished:
        """The result of a claim that must have ended well."""
        end = self.end(claim_id)
        assert isinstance(end, Finished), end
        return end

    def of(self, claim_id: str) -> list[str]:
        """The kinds of events of one claim, in order."""
        return [type(event).__name__ for event in self.events if getattr(event, "claim_id", None) == claim_id]

    def log(self) -> str:
        """Everything the process printed."""
        return self.options.log_file.read_text(errors="replace") if self.options.log_file.exists() else ""


@contextmanager
def blobs_at(blob_url: str) -> Iterator[RedisBlobStore]:
    """What the engines of these tests store, seen from outside."""
    with redis.Redis.from_url(blob_url) as client:
        yield RedisBlobStore(client, prefix="t:", chunk_bytes=2**20, ttl_s=600)


@pytest.fixture
def blobs(blob_url: str) -> Iterator[RedisBlobStore]:
    with blobs_at(blob_url) as store:
        yield store


@pytest.fixture
def blob_keys(blob_url: str) -> Iterator[Callable[[], list[bytes]]]:
    """``blob_keys()``: the keys of all chunks in the blob Redis."""
    with redis.Redis.from_url(blob_url) as client:
        yield lambda: list(client.scan_iter(b"t:blob:*", count=10_000))


def options_in(folder: Path, blob_url: str) -> EngineOptions:
    """Options of a worker whose files all lie in ``folder``."""
    return EngineOptions(
        engine="builtin",
        worker="w1",
        python=sys.executable,
        folder=folder / "w1",
        log_file=folder / "logs" / "w1.log",
        blob_url=blob_url,
        key_prefix="t:",
        chunk_bytes=2**20,
        cache_folder=folder / "cache",
        execution_log=folder / "executions",
        threads=1,
        beat_interval_s=0.1,
        node_provider="tests.integration.engine.probe_nodes:provide",
        import_paths=(str(PROJECT),),
    )


@pytest.fixture
def engine(blob_url: str, blobs: RedisBlobStore, tmp_path: Path) -> Iterator[Callable[..., Recorded]]:
    """``engine(**options)``: a process of the test's own that is ready; ``start=False`` leaves that to the test."""
    made: list[Recorded] = []

    def make(*, start: bool = True, **changes: Any) -> Recorded:
        recorded = Recorded(replace(options_in(tmp_path, blob_url), **changes), blobs)
        made.append(recorded)
        if start:
            recorded.process.start(timeout_s=60)
        return recorded

    yield make
    for recorded in made:
        recorded.process.kill()


@pytest.fixture(scope="module")
def _shared(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    with blobs_at(redis_server.blob_url) as store:
        recorded = Recorded(options_in(tmp_path_factory.mktemp("shared"), redis_server.blob_url), store)
        recorded.process.start(timeout_s=60)
        yield recorded
        recorded.process.kill()


@pytest.fixture
def recorded(_shared: Recorded, blob_url: str) -> Recorded:
    """A process that the tests of a file share; the blob Redis and the record are empty, no claim is left."""
    assert _shared.process.alive, _shared.log()
    _shared.events.clear()
    return _shared
