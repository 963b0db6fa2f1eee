"""The pack's routes wait in threads of their own: neither ComfyUI's are taken for that, nor are they waited for."""
from __future__ import annotations

import ast
import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from distributed_comfy.comfyui import routes as routes_module
from distributed_comfy.comfyui.route_threads import THREADS, RouteThreads
from distributed_comfy.comfyui.routes import Routes
from distributed_comfy.settings import read_settings


@asynccontextmanager
async def serving(folder: Path, threads: RouteThreads) -> AsyncIterator[TestClient[Any, Any]]:
    """A server with one route, which tells the thread that it waits in."""
    server, settings = SimpleNamespace(routes=web.RouteTableDef()), read_settings(workers_file=folder / "workers.json")
    pack: Any = SimpleNamespace(settings=settings, threads=threads, host=SimpleNamespace(server=server))
    routes = Routes(pack)

    async def where(_request: web.Request) -> web.Response:
        return await routes.told(lambda: threading.current_thread().name)

    routes.open_to_site("GET", "/where", where)
    app = web.Application()
    app.add_routes(server.routes)
    async with TestClient(TestServer(app)) as client:
        yield client


def test_a_route_answers_while_every_thread_of_comfyuis_loop_is_taken(tmp_path: Path) -> None:
    release, threads = threading.Event(), RouteThreads()

    async def run() -> str:
        asyncio.get_running_loop().set_default_executor(taken := ThreadPoolExecutor(1))
        taken.submit(release.wait, 30)
        async with serving(tmp_path, threads) as client:
            response = await asyncio.wait_for(client.get("/where"), 5)
            return str(await response.json())

    try:
        assert "distributed-comfy route" in asyncio.run(asyncio.wait_for(run_and_release(run, release), 20))
    finally:
        release.set()
        threads.end()


async def run_and_release(run: Any, release: threading.Event) -> str:
    """What ``run`` gives; the loop waits for its own threads when it ends."""
    try:
        return str(await run())
    finally:
        release.set()


def test_what_hangs_takes_no_more_than_the_packs_own_threads_and_ends_with_them() -> None:
    release, threads = threading.Event(), RouteThreads()

    async def run() -> int:
        waiting = [asyncio.ensure_future(threads.run(release.wait, 30)) for _ in range(THREADS + 3)]
        await asyncio.sleep(0.1)
        assert await asyncio.to_thread(lambda: "free") == "free"
        threads.end()
        release.set()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        return sum(isinstance(each, asyncio.CancelledError) for each in done)

    assert asyncio.run(run()) == 3
    with pytest.raises(RuntimeError):
        asyncio.run(threads.run(len, ""))
    left = [thread for thread in threading.enumerate() if thread.name.startswith("distributed-comfy route")]
    for thread in left:
        thread.join(5)
    assert not any(thread.is_alive() for thread in left)


def test_the_other_routes_know_the_packs_own_and_not_the_other_way_round() -> None:
    own = ast.parse(Path(routes_module.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(own) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in imported if name and name.endswith((".compat", ".visit_routes", ".all_routes", ".relay_port"))}
