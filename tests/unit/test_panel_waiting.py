"""What the panel waits for: a server that is silent, threads that others hold, faults of its own."""
from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from distributed_comfy.errors import RedisUnreachable
from distributed_comfy.panel.answering import Threads, answered
from distributed_comfy.panel.contract import operations
from distributed_comfy.panel.pulse import Pulse
from distributed_comfy.panel.server_looks import BlobServer, Server
from distributed_comfy.state.job_rows import fatal_error
from tasks.cluster import Cluster

INFO = {"redis_version": "7.4.1", "used_memory": 5 * 2**20 + 7, "maxmemory": 0, "aof_enabled": 1}


def cluster_with(info: Callable[[], Any]) -> Cluster:
    """Its blob server says this of itself; its state server says nothing at all."""

    def away() -> Any:
        raise redis.ConnectionError("refused")

    client = SimpleNamespace(pipeline=lambda **_: away(), connection_pool=SimpleNamespace(connection_kwargs={}))
    settings = SimpleNamespace(key_prefix="dc:")
    found = SimpleNamespace(
        blob_client=SimpleNamespace(info=info), client=client, settings=settings, redis_url="redis://a", blob_url="redis://b", invites=None
    )
    return cast("Cluster", found)


def until(condition: Callable[[], Any]) -> bool:
    give_up = time.monotonic() + 10
    while not condition() and time.monotonic() < give_up:
        time.sleep(0.01)
    return bool(condition())


def test_a_blob_server_that_answers_is_told_as_it_says() -> None:
    server, cluster = BlobServer(), cluster_with(lambda: INFO)
    assert until(lambda: server.look(cluster).version)
    assert server.look(cluster) == Server(True, None, "7.4.1", 5 * 2**20, None, True)


def test_a_blob_server_that_drops_packets_holds_nobody_and_counts_as_away_until_it_answers() -> None:
    now, answers = [100.0], threading.Event()

    def info() -> Any:
        assert answers.wait(20)
        return INFO

    server, cluster = BlobServer(lambda: now[0]), cluster_with(info)
    began = time.monotonic()
    assert server.look(cluster).up
    now[0] += 4.5
    found = server.look(cluster)
    assert time.monotonic() - began < 1 and not found.up and found.error
    assert found.error["code"] == RedisUnreachable.code and "has not answered" in found.error["message"] and found.error["remedy"]
    answers.set()
    assert until(lambda: server.look(cluster).up) and server.look(cluster).error is None


def test_a_blob_server_is_asked_every_few_seconds_and_by_one_thread() -> None:
    now, asked = [0.0], []
    server, cluster = BlobServer(lambda: now[0]), cluster_with(lambda: asked.append(None) or INFO)
    for _ in range(50):
        server.look(cluster)
        time.sleep(0.002)
    assert len(asked) == 1
    now[0] = 5.1
    assert until(lambda: server.look(cluster) and len(asked) == 2)


@pytest.mark.parametrize("failure", [redis.ConnectionError("refused"), redis.TimeoutError(), OSError("closed"), ValueError("no Redis")])
def test_whatever_the_blob_server_fails_with_is_told(failure: Exception) -> None:
    def info() -> Any:
        raise failure

    server, cluster = BlobServer(), cluster_with(info)
    assert until(lambda: not server.look(cluster).up)
    error = server.look(cluster).error
    assert error and error["message"]


def test_the_blob_server_is_looked_at_while_the_state_server_is_away() -> None:
    pulse, ask = Pulse(), {"fails": False}

    def info() -> Any:
        if ask["fails"]:
            raise redis.ConnectionError("refused")
        return INFO

    cluster = cluster_with(info)

    def look() -> Server:
        with pytest.raises(redis.RedisError):
            pulse.look(cluster)
        return pulse.found.blobs

    assert until(lambda: look().version) and not pulse.found.state.up
    ask["fails"] = True
    pulse._blobs._began = -100.0  # the next look is due
    assert until(lambda: not look().up)


@pytest.mark.parametrize(
    ("fatal", "errors", "code"),
    [
        ("1", {"0": '{"code": "a"}', "1": '{"code": "b"}'}, "b"), (None, {"2": '{"code": "a"}', "10": '{"code": "b"}'}, "a"),
        ("7", {"0": '{"code": "a"}'}, "a"), (None, {}, None), ("0", {"0": "{"}, None), ("0", {"0": "5"}, None),
        ("0", {"0": "[" * 100_000}, None),
    ],
)  # fmt: skip
def test_a_failed_job_has_the_error_that_ended_it_where_that_can_be_read(fatal: str | None, errors: dict[str, str], code: Any) -> None:
    found = fatal_error(fatal, errors)
    assert (found and found["code"]) == code


def test_logs_that_are_followed_and_long_orders_keep_nobody_from_being_let_in() -> None:
    async def scene() -> None:
        threads, goes_on = Threads(), threading.Event()
        try:
            held = [asyncio.ensure_future(threads.follow(goes_on.wait, 20)) for _ in range(30)]
            held += [asyncio.ensure_future(threads.long(goes_on.wait, 20)) for _ in range(30)]
            held += [asyncio.ensure_future(threads.quick(goes_on.wait, 20)) for _ in range(30)]
            await asyncio.wait_for(threads.judge(lambda _request: None, cast("web.Request", None)), 5)
            held_by_logs = Threads()
            logs = [asyncio.ensure_future(held_by_logs.follow(goes_on.wait, 20)) for _ in range(30)]
            assert await asyncio.wait_for(held_by_logs.quick(lambda: 5), 5) == 5
            goes_on.set()
            assert all(await asyncio.gather(*held, *logs))
            held_by_logs.end()
        finally:
            goes_on.set()
            threads.end()

    asyncio.run(scene())


@pytest.mark.parametrize("failure", [FileNotFoundError("gone"), OverflowError("inf"), KeyError("x")])
def test_a_fault_of_ours_is_answered_in_the_form_of_every_failure(failure: Exception) -> None:
    async def handler(_request: web.Request) -> web.StreamResponse:
        raise failure

    async def ask(client: TestClient[Any, Any]) -> tuple[int, Any]:
        answer = await client.get("/x")
        return answer.status, json.loads(await answer.text())

    status, told = asyncio.run(_with_client(handler, ask))
    assert (status, told["error"]["code"]) == (500, "panel_fault") and type(failure).__name__ in told["error"]["message"]
    assert told["error"]["remedy"]


def test_a_fault_in_the_middle_of_an_answer_cuts_it_off() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"begun")
        raise OverflowError("inf")

    async def ask(client: TestClient[Any, Any]) -> bytes:
        answer = await client.get("/x")
        found = b""
        try:
            async for chunk in answer.content.iter_any():
                found += chunk
        except Exception:  # noqa: BLE001 - how it was cut off is aiohttp's matter
            pass
        return found

    assert asyncio.run(_with_client(handler, ask)) == b"begun"


async def _with_client(handler: Callable[[web.Request], Awaitable[web.StreamResponse]], ask: Callable[[Any], Awaitable[Any]]) -> Any:
    operation = next(each for each in operations() if each.name == "get_state")
    application, threads = web.Application(), Threads()
    application.router.add_get("/x", answered(operation, handler, lambda _request: None, threads))
    try:
        async with TestClient(TestServer(application)) as client:
            return await ask(client)
    finally:
        threads.end()
