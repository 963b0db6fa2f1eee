"""The blob server goes away while a result ships: what is finished waits for it, as long as somebody wants it."""
from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import redis

from distributed_comfy.engine.protocol import Failed, Shipping, Waits
from distributed_comfy.errors import ConnectionLost, ItemInterrupted, ResultTooLarge
from distributed_comfy.messages import Prompt
from distributed_comfy.transport.values import value_blobs
from tests.blob_server import BlobServer
from tests.cluster_fixtures import open_rig
from tests.command_line import slow, until
from tests.conftest import RedisServer
from tests.integration.engine.conftest import Recorded, blobs_at, options_in
from tests.prompts import node, out

pytestmark = pytest.mark.redis

MIB = 2**20
AWAY_S = 5.0
GIVEN_UP_S = 1.6
"""After so long the connection itself stops trying."""
WAITS = "the result waits for it"
TWICE_96_MIB: Prompt = {
    "1": node("TakesLong", text="8"), "8": node("DistributedSink", value=out("1")), "9": node("DistributedSink", value=out("1")),
}  # fmt: skip


@pytest.fixture
def server(redis_server: RedisServer, tmp_path: Path) -> Iterator[BlobServer]:
    server = BlobServer(redis_server.program, tmp_path / "blobs")
    yield server
    server.kill()


@pytest.fixture
def recorded(server: BlobServer, tmp_path: Path) -> Iterator[Recorded]:
    """An engine that counts as dead when its work is quiet for less than the server is away."""
    with blobs_at(server.url) as blobs:
        recorded = Recorded(replace(options_in(tmp_path, server.url), stall_timeout_s=AWAY_S - 0.5, preload=True), blobs)
        recorded.process.start(timeout_s=60)
        yield recorded
        recorded.process.kill()


def test_a_result_that_is_on_its_way_when_the_blob_server_dies_arrives_after_it_is_back(recorded: Recorded, server: BlobServer) -> None:
    claim_id = recorded.run(TWICE_96_MIB, "8", "9")
    until(lambda: server.keys() > 100)  # chunks of a MiB: the first one is there, and is lost
    server.kill()
    until(lambda: WAITS in recorded.log())
    time.sleep(AWAY_S)
    assert recorded.of(claim_id)[-2:] == ["Shipping", "Waits"]
    server.start()
    captures = recorded.result(claim_id).result.captures
    assert recorded.blobs.exists([blob for capture in captures for blob in value_blobs(capture.value)]) == [True, True]
    assert recorded.options.execution_log is not None and len(recorded.options.execution_log.read_text().splitlines()) == 1


def test_a_claim_that_is_interrupted_waits_no_longer(recorded: Recorded, server: BlobServer) -> None:
    server.kill()
    claim_id = recorded.run(TWICE_96_MIB, "8", "9")
    recorded.wait(Shipping)
    until(lambda: WAITS in recorded.log())
    began = time.monotonic()
    recorded.process.interrupt(claim_id)
    end = recorded.end(claim_id)
    assert isinstance(end, Failed) and isinstance(end.error, ItemInterrupted)
    assert time.monotonic() - began < 2 * GIVEN_UP_S + 3, "an attempt to store, one to discard"


def test_a_server_that_answers_and_refuses_is_not_waited_for(recorded: Recorded, server: BlobServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")  # from now on it takes no changes
    end = recorded.end(recorded.run(TWICE_96_MIB, "8", "9"))
    assert isinstance(end, Failed) and isinstance(end.error, ConnectionLost) and WAITS not in recorded.log()


@contextmanager
def full(server: BlobServer, limit_bytes: int) -> Iterator[redis.Redis]:
    """A server with this ``maxmemory``, all of which others have, while the context lasts."""
    with redis.Redis.from_url(server.url) as client:
        pipe = client.pipeline(transaction=False)
        for number in range(limit_bytes // MIB):
            pipe.set(f"others:{number}", bytes(MIB))
        pipe.execute()
        client.config_set("maxmemory", limit_bytes)
        yield client
        client.delete(*client.keys("others:*"))


def test_a_result_for_which_there_is_no_room_waits_for_it_and_says_why(recorded: Recorded, server: BlobServer) -> None:
    with full(server, 256 * MIB) as client:
        claim_id = recorded.run(TWICE_96_MIB, "8", "9")
        waits = recorded.wait(Waits)
        assert waits.claim_id == claim_id and f"127.0.0.1:{server.port} is full" in waits.reason and "raise its maxmemory" in waits.reason
        time.sleep(AWAY_S)  # longer than the stall limit
        assert recorded.of(claim_id)[-1] == "Waits" and not client.keys("t:blob:*"), "it holds no part that others could need"
    captures = recorded.result(claim_id).result.captures
    assert recorded.blobs.exists([blob for capture in captures for blob in value_blobs(capture.value)]) == [True, True]
    assert [event.reason for event in recorded.events if isinstance(event, Waits)] == [waits.reason, ""]
    assert recorded.options.execution_log is not None and len(recorded.options.execution_log.read_text().splitlines()) == 1


def test_a_result_that_the_server_could_never_hold_fails_at_once(recorded: Recorded, server: BlobServer) -> None:
    """Each of its two tensors would fit."""
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", 128 * MIB)
        end = recorded.end(recorded.run(TWICE_96_MIB, "8", "9"))
        assert not client.keys("t:blob:*")
    assert isinstance(end, Failed) and isinstance(end.error, ResultTooLarge) and not end.error.retryable
    assert end.error.size_bytes > 2 * 96 * MIB > 128 * MIB > end.error.limit_bytes > 120 * MIB
    assert not any(isinstance(event, Waits) for event in recorded.events)


def test_an_engine_that_is_closed_waits_no_longer(recorded: Recorded, server: BlobServer) -> None:
    server.kill()
    claim_id = recorded.run(TWICE_96_MIB, "8", "9")
    until(lambda: WAITS in recorded.log())
    recorded.process.close()
    end = recorded.end(claim_id)
    assert isinstance(end, Failed) and not recorded.process.alive


def test_an_item_whose_result_finds_no_blob_server_is_executed_once(redis_url: str, server: BlobServer, tmp_path: Path) -> None:
    with open_rig("builtin", SimpleNamespace(state_url=redis_url, blob_url=server.url), tmp_path) as rig:
        undisturbed = rig.run(slow(0), items=1).batch("collect")
        job = rig.begin(slow(1000), items=1)
        until(lambda: rig.executions(job.queued()))
        server.kill()
        until(lambda: WAITS in rig.logs())
        time.sleep(AWAY_S)
        server.start()
        report = job.wait()
        assert numpy.array_equal(report.batch("collect"), undisturbed)
        assert len(rig.executions(report.job_id)) == 1
