"""How a running ComfyUI is spoken to: queued once whatever is lost, found again, others left alone; against a small HTTP server."""
from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from distributed_comfy.engine.attach.following import Prompts, Waiter, prompt_id_of
from distributed_comfy.engine.attach.listener import REFUSED_GONE_S, SILENT_GONE_S, EventListener, Outage
from distributed_comfy.engine.attach.server import REFUSED, SILENT, ComfyServer
from distributed_comfy.engine.attach.translation import Translation
from distributed_comfy.errors import ComfyUIDropped, ComfyUIUnreachable, ValidationRefused, WorkerLacks
from tests.prompts import node

MINE = "distributed-comfy-w1"
ONE = Translation({"p": node("PreviewAny", source=1)}, targets=("p",))


@dataclass
class Queue:
    """A ComfyUI's queue and history behind its routes, at ``/base``."""

    running: list[list[Any]] = field(default_factory=list)
    pending: list[list[Any]] = field(default_factory=list)
    history: dict[str, Any] = field(default_factory=dict)
    orders: list[tuple[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    drop_answers: int = 0
    """How many POSTs to /prompt are taken and not answered."""
    refuse_with: tuple[int, Any] | None = None
    sockets: list[web.WebSocketResponse] = field(default_factory=list)
    url: str = ""
    leads_to: str = ""
    """All requests are sent on to below this address."""

    def app(self) -> web.Application:
        @web.middleware
        async def lead_on(request: web.Request, handler: Any) -> web.StreamResponse:
            if self.leads_to and not request.path.startswith("/base/moved"):
                raise web.HTTPTemporaryRedirect(self.leads_to + request.path)
            found: web.StreamResponse = await handler(request)
            return found

        app = web.Application(middlewares=[lead_on])
        app.add_routes([
            web.get("/base/queue", self._show), web.get("/base/history/{id}", self._one), web.post("/base/prompt", self._prompt),
            web.post("/base/{order:queue|interrupt|history}", self._order), web.get("/base/ws", self._ws),
            web.post("/base/upload/image", self._upload), web.get("/base/view", self._view),
            web.get("/base/moved/base/queue", self._show),
        ])  # fmt: skip
        return app

    async def _show(self, request: web.Request) -> web.Response:
        self.headers.append(dict(request.headers))
        return web.json_response({"queue_running": self.running, "queue_pending": self.pending})

    async def _one(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        return web.json_response({name: self.history[name]} if name in self.history else {})

    async def _prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.orders.append(("prompt", body))
        if self.refuse_with and self.refuse_with[0] != 200:
            return web.json_response(self.refuse_with[1], status=self.refuse_with[0])
        self.pending.append([len(self.orders), body["prompt_id"], body["prompt"], body["extra_data"], []])
        if self.drop_answers:
            self.drop_answers -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"prompt_id": body["prompt_id"], **(self.refuse_with[1] if self.refuse_with else {"node_errors": {}})})

    async def _order(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.orders.append((request.match_info["order"], body))
        if "delete" in body:
            self.pending = [entry for entry in self.pending if entry[1] not in body["delete"]]
        return web.Response()

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        self.orders.append(("upload", (form["image"].filename, form["image"].file.read(), form["subfolder"], form["overwrite"])))  # type: ignore[union-attr]
        return web.json_response({"name": form["image"].filename, "subfolder": "a\\b", "type": "input"})  # type: ignore[union-attr]

    async def _view(self, request: web.Request) -> web.Response:
        if request.query["filename"] == "gone":
            return web.Response(status=404)
        return web.Response(body=json.dumps(dict(request.query)).encode())

    async def _ws(self, request: web.Request) -> web.WebSocketResponse:
        socket_ = web.WebSocketResponse()
        await socket_.prepare(request)
        self.sockets.append(socket_)
        async for message in socket_:
            if message.type == WSMsgType.TEXT:
                self.orders.append(("ws", json.loads(message.data)))
        return socket_


@pytest.fixture
def queue() -> Iterator[Queue]:
    with running_queue() as found:
        yield found


@contextmanager
def running_queue() -> Iterator[Queue]:
    """A server of its own."""
    found = Queue()
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(found.app(), shutdown_timeout=0.1)
    loop.run_until_complete(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(site.start())
    found.url = f"http://me:secret@127.0.0.1:{runner.addresses[0][1]}/base"
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    found.loop = loop  # type: ignore[attr-defined]
    yield found
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def server(queue: Queue) -> Iterator[ComfyServer]:
    found = ComfyServer(queue.url, (("X-Key", "hidden"),), MINE)
    yield found
    found.close()


@pytest.fixture
def prompts(server: ComfyServer) -> Prompts:
    return Prompts(server, "w1")


def waiter(stop: Callable[[], bool] = lambda: False, places: list[int] | None = None) -> Waiter:
    seen = places if places is not None else []
    return Waiter(stop, lambda seconds: time.sleep(0.01), seen.append)


def until(what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_headers_and_password_go_with_each_request_and_into_no_message(queue: Queue, server: ComfyServer) -> None:
    server.ask("/queue")
    assert queue.headers[0]["X-Key"] == "hidden" and queue.headers[0]["Authorization"].startswith("Basic ")
    with pytest.raises(ComfyUIUnreachable) as caught:
        server.ask("/nothing-there")
    assert caught.value.lost == "" and "secret" not in str(caught.value) and "hidden" not in str(caught.value)
    assert "/nothing-there gives status 404" in str(caught.value)


def test_an_address_at_which_nobody_listens_is_refused_and_told_from_a_silent_one() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = ComfyServer(f"http://127.0.0.1:{probe.getsockname()[1]}", (), MINE)
        with pytest.raises(ComfyUIUnreachable, match="does not answer: ConnectionRefusedError") as caught:
            nobody.ask("/queue")
    assert caught.value.lost == REFUSED
    nobody.close()


def test_a_redirect_to_another_origin_is_not_followed_with_the_key_and_says_where_it_leads(
    queue: Queue, server: ComfyServer, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    with running_queue() as other:
        queue.leads_to = other.url.replace("/base", "").replace("me:secret", "you:hushed")
        asks: list[Callable[[], Any]] = [
            lambda: server.ask("/queue"), lambda: server.order("/prompt", {}), lambda: server.fetch("/view", 9, headers={"X-Key": "key"}),
            lambda: server.put("/blob", b"abc", headers={"X-Key": "key"}), lambda: server.upload(tmp_path / "x", "n.png", "w1"),
            lambda: server.download({"filename": "x"}, tmp_path / "f"), lambda: server.listen(lambda _: None, lambda: None),
        ]  # fmt: skip
        for ask in asks:
            with pytest.raises(ComfyUIUnreachable) as caught:
                ask()
            shown = other.url.partition("@")[2].replace("/base", "")
            assert "sends /" in str(caught.value) and f" on to http://you:***@{shown}/base/" in str(caught.value), caught.value
            assert "set DC_COMFYUI_URL" in str(caught.value) and "hushed" not in str(caught.value)
        assert other.headers == other.orders == other.sockets == []


def test_a_redirect_within_its_origin_is_followed(queue: Queue, server: ComfyServer) -> None:
    queue.leads_to = "/base/moved"
    assert server.ask("/queue")["queue_running"] == [] and queue.headers[0]["X-Key"] == "hidden"


def test_a_file_is_uploaded_over_one_of_its_name_and_called_as_loaders_call_it(queue: Queue, server: ComfyServer, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert server.upload(tmp_path / "x", "n.png", "distributed-comfy/w1") == "a/b/n.png"
    assert queue.orders == [("upload", ("n.png", b"abc", "distributed-comfy/w1", "true"))]


def test_a_file_is_fetched_by_what_the_history_says_and_one_that_is_gone_is_told(server: ComfyServer, tmp_path: Path) -> None:
    assert server.download({"filename": "ä b.png", "subfolder": "x/y", "type": "temp"}, tmp_path / "f")
    assert json.loads((tmp_path / "f").read_bytes()) == {"filename": "ä b.png", "subfolder": "x/y", "type": "temp"}
    assert not server.download({"filename": "gone", "type": "output"}, tmp_path / "g") and not (tmp_path / "g").exists()


def test_a_prompt_is_queued_with_our_ids_and_the_users_metadata(queue: Queue, prompts: Prompts) -> None:
    prompts.queue(ONE, prompt_id_of("claim"), {"workflow": {"a": 1}})
    (_, body) = queue.orders[0]
    assert body["prompt_id"] == prompt_id_of("claim") == str(uuid.UUID(body["prompt_id"]))
    assert body["client_id"] == MINE and body["extra_data"]["extra_pnginfo"] == {"workflow": {"a": 1}}


def test_a_prompt_whose_answer_was_lost_is_queued_once(queue: Queue, prompts: Prompts) -> None:
    queue.drop_answers = 1
    prompts.queue(ONE, "id", {})
    assert [entry[1] for entry in queue.pending] == ["id"]


def test_a_refusal_is_what_the_worker_lacks_or_the_prompts_own_fault_under_the_items_node_ids(queue: Queue, prompts: Prompts) -> None:
    def errors(kind: str) -> dict[str, Any]:
        entry = {"type": kind, "message": "m", "details": "d", "extra_info": {"input_name": "vae_name", "received_value": "x"}}
        return {"9~images~files": {"errors": [entry], "dependent_outputs": ["9~images~files", "9~images~shown"], "class_type": "VAELoader"}}

    ours = Translation(ONE.prompt, origin={"9~images~files": "9", "9~images~shown": "9"}, targets=("9~images~files",))
    queue.refuse_with = (400, {"error": {"message": "bad", "details": ""}, "node_errors": errors("value_not_in_list")})
    with pytest.raises(WorkerLacks, match=r"VAELoader.vae_name 'x' \(node 9\)"):
        prompts.queue(ours, "id", {})
    queue.refuse_with = (400, {"error": {"message": "bad", "details": ""}, "node_errors": errors("return_type_mismatch")})
    with pytest.raises(ValidationRefused, match=r"node 9 \(VAELoader\): m: d") as caught:
        prompts.queue(ours, "id", {})
    assert caught.value.node_errors["9"]["dependent_outputs"] == ["9"]


def test_a_prompt_that_is_taken_in_part_is_taken_back(queue: Queue, prompts: Prompts) -> None:
    entry = {"type": "required_input_missing", "message": "m", "details": "d"}
    queue.refuse_with = (200, {"node_errors": {"p": {"errors": [entry], "dependent_outputs": ["p"], "class_type": "X"}}})
    with pytest.raises(ValidationRefused):
        prompts.queue(ONE, "id", {})
    assert queue.orders[-1] == ("queue", {"delete": ["id"]}) and not queue.pending


def test_a_waiting_prompt_tells_how_many_are_before_it_and_its_history_ends_the_wait(queue: Queue, prompts: Prompts) -> None:
    queue.running = [[1, "other", {}, {}]]
    queue.pending = [[5, "id", {}, {}], [3, "first", {}, {}], [9, "last", {}, {}]]
    places: list[int] = []
    threading.Timer(0.3, lambda: queue.history.update(id={"outputs": {}})).start()
    assert prompts.follow("id", waiter(places=places)) == {"outputs": {}}
    assert set(places) == {2}


def test_a_prompt_that_nobody_knows_any_more_is_lost_and_one_that_ends_meanwhile_is_not(queue: Queue, prompts: Prompts) -> None:
    with pytest.raises(ComfyUIDropped, match="neither in the queue nor in the history"):
        prompts.follow("id", waiter())
    queue.history["id"] = {"outputs": {}}
    assert prompts.follow("id", waiter()) == {"outputs": {}}


@pytest.mark.parametrize(("mine", "order"), [("pending", ("queue", {"delete": ["id"]})), ("running", ("interrupt", {"prompt_id": "id"}))])
def test_a_stop_reaches_our_prompt_wherever_it_is_and_no_other(queue: Queue, prompts: Prompts, mine: str, order: Any) -> None:
    queue.running, queue.pending = [[1, "other", {}, {}]], [[2, "others", {}, {}]]
    getattr(queue, mine)[:] = [[1, "id", {}, {}]]
    prompts.stop("id")
    assert queue.orders == [order]
    queue.orders.clear()
    prompts.stop("unknown")
    assert queue.orders == []


def test_a_prompt_that_is_stopped_while_it_waits_ends_without_a_history(queue: Queue, prompts: Prompts) -> None:
    queue.pending = [[5, "id", {}, {}]]
    assert prompts.follow("id", waiter(stop=lambda: True)) is None


def test_only_what_an_earlier_process_of_this_worker_left_is_cleared_away(queue: Queue, prompts: Prompts) -> None:
    queue.running = [[1, "mine", {}, {"client_id": MINE}, []]]
    queue.pending = [[2, "other", {}, {"client_id": "browser"}, []], [3, "mine too", {}, {"client_id": MINE}, []], [4, "script", {}, {}]]
    prompts.clear_leftovers()
    assert queue.orders == [("interrupt", {"prompt_id": "mine"}), ("queue", {"delete": ["mine too"]})]


class Steps:
    """What a sink is told."""

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.pictures: list[Any] = []

    def progress(self, node_id: str, value: int, maximum: int) -> None:
        self.steps.append((node_id, value, maximum))

    def preview(self, node_id: str, image: bytes) -> None:
        self.pictures.append((node_id, image))


def test_events_of_our_prompt_alone_reach_the_sink_under_the_items_ids_also_after_a_reconnect(queue: Queue, server: ComfyServer) -> None:
    listener, sink = EventListener(server, lambda error: None), Steps()
    until(lambda: queue.sockets)
    listener.begin(sink, "id")
    listener.rename({"9~images~files": "9"})

    def say(*messages: Any) -> None:
        for message in messages:
            send = queue.sockets[-1].send_bytes(message) if isinstance(message, bytes) else queue.sockets[-1].send_str(json.dumps(message))
            asyncio.run_coroutine_threadsafe(send, queue.loop).result()  # type: ignore[attr-defined]

    def state(prompt_id: str, node_id: str, value: int) -> Any:
        return {"type": "progress_state", "data": {"prompt_id": prompt_id, "nodes": {node_id: {"value": value, "max": 4}}}}

    about = json.dumps({"node_id": "7", "prompt_id": "id"}).encode()
    say(state("other", "7", 1), {"type": "executing", "data": {"prompt_id": "id", "node": "7"}}, state("id", "7", 2), state("id", "7", 2))
    say(b"\0\0\0\1\0\0\0\1jpeg", b"\0\0\0\4" + len(about).to_bytes(4, "big") + about + b"more")
    say(b"\0\0\0\1", b"\0\0\0\4\0\0\0\4oops", {"type": "status", "data": None}, {"type": "pack", "data": [1]}, [2])
    say({"type": "progress", "data": {"prompt_id": "id", "value": None, "max": 3}})
    asyncio.run_coroutine_threadsafe(queue.sockets[-1].close(), queue.loop).result()  # type: ignore[attr-defined]
    until(lambda: len(queue.sockets) == 2)
    listener.news.clear()
    say(state("id", "9~images~files", 1), {"type": "execution_success", "data": {"prompt_id": "id"}})
    assert listener.news.wait(5)
    assert sink.steps == [("7", 2, 4), ("9", 1, 4)] and sink.pictures == [("7", b"jpeg"), ("7", b"more")]
    assert listener.started == {"7"}
    listener.close()


def test_who_is_gone_is_told_sooner_where_nobody_listens_than_where_nothing_answers() -> None:
    outage = Outage()
    assert outage.is_new and not outage.lasts_too_long(REFUSED, 0.0)
    assert not outage.lasts_too_long(SILENT, REFUSED_GONE_S + 1), "a proxy answers again"
    assert not outage.lasts_too_long(REFUSED, REFUSED_GONE_S + 2) and outage.lasts_too_long(REFUSED, 2 * REFUSED_GONE_S + 3)
    assert outage.lasts_too_long(SILENT, SILENT_GONE_S + 1)
