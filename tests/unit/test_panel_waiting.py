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

from distributed_comfy.errors import OrderRefused, RedisUnreachable, TunnelEnded
from distributed_comfy.panel.answering import Threads, answered
from distributed_comfy.panel.contract import operations
from distributed_comfy.panel.place import Place
from distributed_comfy.panel.pulse import Pulse
from distributed_comfy.panel.routes import Panel
from distributed_comfy.panel.server_looks import BlobServer, Server
from distributed_comfy.panel.tunnels import Tunnels
from distributed_comfy.settings import Settings
from distributed_comfy.state.job_rows import fatal_error
from distributed_comfy.state.records import GoneHost, HostRecord
from tasks.cluster import Cluster

JOB = "0123456789ab"
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
    assert server.answered
    server.begin()
    assert not server.answered, "and it is not due yet"


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


def test_a_host_is_missed_only_a_lease_after_the_server_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now, record = [100.0], HostRecord("pc2", "they", 1, "i")
    known: list[Any] = [([record], [])]
    away: Any = redis.ConnectionError("refused")
    pulse = Pulse(lambda: now[0])
    cluster: Any = SimpleNamespace(
        hosts=SimpleNamespace(known=lambda: known[0]), workers=SimpleNamespace(workers=lambda _names: []), jobs=None, invites=None,
        settings=Settings(lease_ttl_s=15), redis_url="redis://a", blob_url="redis://a", client=Answers(),
    )  # fmt: skip
    monkeypatch.setattr(pulse, "_look_at_jobs", lambda *_: None)
    monkeypatch.setattr(pulse, "_look_at_servers", lambda *_: None)

    def look(after_s: float) -> tuple[set[str], set[str]]:
        now[0] += after_s
        pulse.look(cluster)
        return set(pulse.found.hosts), set(pulse.found.gone)

    assert look(0) == ({"pc2"}, set())
    pulse.fail(away)
    known[0] = ([], [GoneHost(record, 5)])
    assert look(60) == ({"pc2"}, set()), "its agent could not renew its lease"
    assert look(14) == ({"pc2"}, set())
    assert look(2) == (set(), {"pc2"}), "it did not come back"
    known[0] = ([record], [])
    assert look(2) == ({"pc2"}, set())
    known[0] = ([], [GoneHost(record, 5)])
    assert look(2) == (set(), {"pc2"}), "the server was there all the time"


class Answers:
    """A Redis without jobs and workers."""

    def pipeline(self, **_: Any) -> Any:
        return self

    def __getattr__(self, _name: str) -> Any:
        return lambda *_: None

    def execute(self) -> list[Any]:
        return [(1, 0), (None, None), {}, 0, set(), set()]


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


def test_orders_that_end_work_are_carried_out_while_doctors_and_agents_hold_all_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, entered = threading.Event(), []

    def hold(*_: Any, **__: Any) -> dict[str, Any]:
        entered.append(None)
        assert goes_on.wait(30)
        return {"healthy": True, "findings": []}

    async def scene() -> dict[str, Any]:
        jobs = SimpleNamespace(cancel=lambda _job, _reason: None, jobs=dict, pause=lambda _job: None)
        settings = SimpleNamespace(submitter="me", config="settings.json")
        place = SimpleNamespace(master=None, cluster=lambda: SimpleNamespace(jobs=jobs), settings=settings, own=settings)
        panel = Panel(cast("Place", place))
        monkeypatch.setattr(panel._doctor, "report", hold)
        monkeypatch.setattr(panel._details, "job", lambda job_id, _estimate: {"id": job_id})
        monkeypatch.setattr(panel.watch, "look_soon", lambda: None)
        application, told = web.Application(), {}
        application.add_routes(panel.routes(lambda _request: None))
        async with TestClient(TestServer(application)) as client:
            doctors = [asyncio.ensure_future(client.post("/distributed/v2/doctor", json={})) for _ in range(6)]
            while len(entered) < 6:
                await asyncio.sleep(0.01)
            orders = [("cancel", f"jobs/{JOB}/orders", {"order": "cancel"}), ("pause", f"jobs/{JOB}/orders", {"order": "pause"}),
                      ("interrupt", "master/interrupt", {"what": "all"}), ("tunnel", "tunnel", None)]  # fmt: skip
            for name, path, body in orders:
                call = client.delete(f"/distributed/v2/{path}") if body is None else client.post(f"/distributed/v2/{path}", json=body)
                answer = await asyncio.wait_for(call, 10)
                told[name] = answer.status
            goes_on.set()
            assert {answer.status for answer in await asyncio.gather(*doctors)} == {200}
            await panel.end()
        return told

    try:
        assert asyncio.run(scene()) == dict.fromkeys(("cancel", "pause", "interrupt", "tunnel"), 200)
    finally:
        goes_on.set()


# -- the tunnel ----------------------------------------------------------------------------------------------------------
def tunnels(lead: Callable[[Callable[[str], None], threading.Event], None]) -> Tunnels:
    return Tunnels(cast("Place", SimpleNamespace(lead_here=lead)), lambda: 5, lambda: None)


@pytest.mark.parametrize(
    ("failure", "state", "code"),
    [
        (TunnelEnded(program="cloudflared", reason="it was killed"), "ended", "tunnel_ended"),
        (ZeroDivisionError("x"), "failed", "panel_fault"),
        (redis.ConnectionError("refused"), "failed", "redis_unreachable"), (SystemExit(1), "failed", "panel_fault"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("opened", [True, False])
def test_a_tunnel_that_is_over_is_not_shown_as_open_whatever_ended_it(failure: BaseException, state: str, code: str, opened: bool) -> None:
    def lead(ready: Callable[[str], None], _stop: threading.Event) -> None:
        if opened:
            ready("wss://here")
        raise failure

    one = tunnels(lead)
    assert one.open()["state"] in ("opening", "open", state)
    assert until(lambda: one.shown()["state"] == state)
    error = one.shown()["error"]
    assert error["code"] == code and error["message"] and error["remedy"] and one.shown()["url"] == ""
    assert one.open()["since_ms"] == 5  # again
    assert until(lambda: one.shown()["state"] == state) and one.close() == {"state": "closed", "url": "", "since_ms": 5, "error": None}


def test_the_end_of_a_tunnel_from_the_start_is_told_unless_another_one_is_open() -> None:
    lost, ends = TunnelEnded(program="cloudflared", reason="it ended"), threading.Event()

    def lead(ready: Callable[[str], None], _stop: threading.Event) -> None:
        ready("wss://here")
        ends.wait(20)

    one = tunnels(lead)
    one.lose(lost)
    assert one.shown()["state"] == "ended" and one.shown()["error"]["code"] == "tunnel_ended"
    one.open()
    assert until(lambda: one.shown()["state"] == "open")
    one.lose(lost)
    assert one.shown()["state"] == "open"
    ends.set()


def test_a_tunnel_that_takes_long_to_close_is_not_called_closed_before_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = threading.Event()

    def lead(ready: Callable[[str], None], _stop: threading.Event) -> None:
        ready("wss://here")
        assert ends.wait(20)

    monkeypatch.setattr("distributed_comfy.panel.tunnels._END_S", 0.2)
    one = tunnels(lead)
    one.open()
    assert until(lambda: one.shown()["state"] == "open")
    assert one.close()["state"] == "closing"
    with pytest.raises(OrderRefused, match="it is closing"):
        one.open()
    ends.set()
    assert until(lambda: one.shown()["state"] == "closed")


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
