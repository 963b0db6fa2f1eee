"""A worker and the pack's routes for it, over HTTP on this host; the ComfyUI behind them is as small as they need it."""
from __future__ import annotations

import asyncio
import json
import threading
import time
import tracemalloc
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from aiohttp import web

from distributed_comfy.comfyui import visit_routes as routes_module
from distributed_comfy.comfyui import visits as visits_module
from distributed_comfy.comfyui.route_threads import RouteThreads
from distributed_comfy.comfyui.routes import Routes
from distributed_comfy.comfyui.visit_routes import VisitRoutes
from distributed_comfy.comfyui.visits import Visits
from distributed_comfy.engine.attach import pack as pack_module
from distributed_comfy.engine.attach.following import prompt_id_of
from distributed_comfy.engine.attach.pack import Feed, PackDoor, Visiting
from distributed_comfy.engine.attach.pack_words import VISITS_PATH, Visit
from distributed_comfy.engine.attach.server import ComfyServer
from distributed_comfy.engine.context import GraphContext
from distributed_comfy.errors import WorkerLacks
from distributed_comfy.messages import TensorRef
from distributed_comfy.nodes.context import NodeContext
from distributed_comfy.pack_token import KEY_HEADER, attach_key
from distributed_comfy.panel.token import read_token, token_path
from distributed_comfy.settings import Settings, read_settings
from distributed_comfy.transport.memory_blobs import MemoryBlobStore
from distributed_comfy.transport.values import store_value

CLAIM = "c1"
LEASE_S = 0.6
"""Of a visit here."""
LIMIT = 2**30


@dataclass
class Pack:
    """The pack of a ComfyUI, which listens at an address."""

    url: str
    token: str
    visits: Visits
    nodes: NodeContext
    """Of the one prompt that runs."""


class SlowStore(MemoryBlobStore):
    """A blob comes by a slow line."""

    def get(self, blob: str) -> memoryview:
        time.sleep(3 * LEASE_S)
        return super().get(blob)


def host(folder: Path) -> Any:
    """A ComfyUI in which the prompt of `CLAIM` runs."""
    folders = {kind: folder / kind for kind in ("input", "output", "temp")}
    queue = SimpleNamespace(
        mutex=threading.RLock(), delete_queue_item=lambda _: False, get_current_queue_volatile=lambda: ([], []),
        get_history=lambda prompt_id: {}, delete_history_item=lambda _: None,
    )  # fmt: skip
    return SimpleNamespace(
        folders=folders, executing=lambda: (prompt_id_of(CLAIM), ""),
        model_management=SimpleNamespace(throw_exception_if_processing_interrupted=lambda: None),
        server=SimpleNamespace(prompt_queue=queue, routes=web.RouteTableDef()),
    )  # fmt: skip


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pack]:
    monkeypatch.setattr(visits_module, "_SWEEP_S", 0.02)
    for module in (pack_module, routes_module):
        monkeypatch.setattr(module, "WANTED_S", LEASE_S / 6)
    settings: Settings = read_settings(workers_file=tmp_path / "workers.json", blob_limit_bytes=LIMIT)
    parts: Any = SimpleNamespace(host=host(tmp_path), settings=settings, context=SimpleNamespace(inner=None), jobs=None)
    parts.threads = RouteThreads()
    routes = VisitRoutes(Routes(parts))
    routes._visits._lease_s = LEASE_S
    routes.add()
    loop, app = asyncio.new_event_loop(), web.Application()
    app.add_routes(parts.host.server.routes)
    runner = web.AppRunner(app)

    async def start() -> int:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return int(runner.addresses[0][1])

    threading.Thread(target=loop.run_forever, daemon=True).start()
    try:
        port = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
        yield Pack(f"http://127.0.0.1:{port}", read_token(token_path(settings)), routes._visits, parts.context.inner)
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        parts.threads.end()
        loop.call_soon_threadsafe(loop.stop)


@pytest.fixture
def server(pack: Pack) -> Iterator[ComfyServer]:
    server = ComfyServer(pack.url, (), "w")
    yield server
    server.close()


def visiting(pack: Pack, server: ComfyServer, visit: Visit, store: MemoryBlobStore) -> Visiting:
    context = GraphContext(store, feed_timeout_s=5.0)  # type: ignore[arg-type]
    context.begin(visit.request(), check=lambda: None)
    return Visiting(PackDoor(server, pack.token, None), visit, Feed(context.hand_on, 5.0), lambda: None)


def test_a_worker_that_fetches_a_large_blob_for_longer_than_the_lease_keeps_its_visit(pack: Pack, server: ComfyServer) -> None:
    store, tensor = SlowStore(), torch.rand(1, 4, 4, 3)
    value = store_value(store, "f", tensor, job_id="", limit_bytes=LIMIT)
    visit = visiting(pack, server, Visit(CLAIM, "j", "w", "last", feed={"9": {"images": (value,)}}), store)
    visit.open()
    with visit:
        (got,) = pack.nodes.supply("9", "images")
        time.sleep(2 * LEASE_S)
        assert pack.visits.of_claim(CLAIM) is not None
    assert torch.equal(got, tensor) and visit.problem is None
    assert pack.visits.of_claim(CLAIM) is None


def test_a_visit_that_is_fed_with_more_than_this_comfyui_takes_is_for_another_worker(pack: Pack, server: ComfyServer) -> None:
    large = TensorRef("f#1", "uint8", (LIMIT + 1,), LIMIT + 1)
    visit = visiting(pack, server, Visit(CLAIM, "j", "w", "last", feed={"9": {"images": (large,)}}), MemoryBlobStore())
    with pytest.raises(WorkerLacks, match=f"over the limit of {LIMIT}"):
        visit.open()
    assert pack.visits.of_claim(CLAIM) is None


def test_a_frame_takes_the_memory_of_what_came_and_not_of_what_was_announced(pack: Pack, server: ComfyServer) -> None:
    ref = TensorRef("f#1", "uint8", (LIMIT,), LIMIT)
    visit = visiting(pack, server, Visit(CLAIM, "j", "w", "last", feed={"9": {"images": (ref,)}}), MemoryBlobStore())
    visit.open()
    opened = pack.visits.of_claim(CLAIM)
    assert opened is not None and opened.blobs.exists(["f#1"]) == [False], "it is wanted now"
    with visit:
        tracemalloc.start()
        try:
            assert put(pack, LIMIT, b"abc") == (400, "the frame is shorter than it was said to be")
            assert put(pack, 2, b"abc") == (400, "the frame is longer than it was said to be")
            assert put(pack, 2 * LIMIT, b"abc") == (400, "nothing waits for such a frame")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 2**26


def put(pack: Pack, size: int, content: bytes) -> tuple[int, str]:
    """What the pack says to a frame that is no right one."""
    path = f"{VISITS_PATH}/{CLAIM}/blob?id=f%231&size={size}"
    request = urllib.request.Request(pack.url + path, content, {KEY_HEADER: attach_key(pack.token)}, method="PUT")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    with caught.value as answer:
        return answer.code, str(json.loads(answer.read())["error"])
