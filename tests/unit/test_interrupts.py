"""An interrupt of a prompt that runs elsewhere does not reach ComfyUI, which would end its own instead."""
from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from distributed_comfy.comfyui.interrupts import interrupt_middleware


def ask(path: str, body: Any, method: str = "POST") -> tuple[list[str | None], list[Any]]:
    """What reached us (a prompt's id, None for all) and what reached ComfyUI; prompt ``there`` runs elsewhere."""
    ours: list[str | None] = []
    comfyuis: list[Any] = []

    def interrupt(prompt_id: str | None) -> bool:
        ours.append(prompt_id)
        return prompt_id in (None, "there")

    async def handler(request: web.Request) -> web.Response:
        comfyuis.append(await request.text())
        return web.Response()

    async def run() -> None:
        app = web.Application(middlewares=[interrupt_middleware(interrupt)])
        app.router.add_route("*", "/{anything:.*}", handler)
        async with TestClient(TestServer(app)) as client:
            data = {"json": body} if not isinstance(body, str) else {"data": body}
            response = await client.request(method, path, **data)
            assert response.status == 200

    asyncio.run(run())
    return ours, comfyuis


@pytest.mark.parametrize("path", ["/interrupt", "/api/interrupt"])
def test_a_prompt_that_runs_elsewhere_is_ended_there_alone(path: str) -> None:
    assert ask(path, {"prompt_id": "there"}) == (["there"], [])


def test_any_other_prompt_is_comfyuis() -> None:
    ours, comfyuis = ask("/interrupt", {"prompt_id": "here"})
    assert ours == ["here"] and comfyuis == ['{"prompt_id": "here"}'], "ComfyUI reads the same body"


@pytest.mark.parametrize("body", [{}, "", "no JSON", [1], {"prompt_id": ""}])
def test_an_interrupt_of_everything_reaches_both(body: Any) -> None:
    ours, comfyuis = ask("/interrupt", body)
    assert ours == [None] and len(comfyuis) == 1


def test_newer_pages_cancel_by_another_path() -> None:
    assert ask("/api/jobs/there/cancel", {}) == (["there"], [])
    ours, comfyuis = ask("/jobs/here/cancel", {})
    assert ours == ["here"] and len(comfyuis) == 1


@pytest.mark.parametrize(("path", "method"), [("/interrupt", "GET"), ("/queue", "POST"), ("/x/interrupt", "POST")])
def test_nothing_else_is_looked_at(path: str, method: str) -> None:
    ours, comfyuis = ask(path, {"prompt_id": "there"}, method)
    assert ours == [] and len(comfyuis) == 1
