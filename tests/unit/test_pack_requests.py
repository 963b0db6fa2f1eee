"""What comes over HTTP at the pack: bodies of any length, and requests for the relay side by side."""
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from distributed_comfy.comfyui import relay_port as relay_port_module
from distributed_comfy.comfyui.relay_port import RelayPort
from distributed_comfy.panel.bodies import BadRequest, body_of


async def chunks(count: int) -> AsyncIterator[bytes]:
    """A body whose length nobody tells."""
    yield b'{"a": "'
    for _ in range(count):
        yield b"x" * 10
    yield b'"}'


def answer(data: Any, *, read_before: bool = False) -> tuple[int, str]:
    """What comes of a body where 1000 bytes are taken."""

    async def handler(request: web.Request) -> web.Response:
        if read_before:
            await request.read()
        try:
            found = await body_of(request, 1000)
        except BadRequest as error:
            return web.Response(status=400, text=str(error))
        return web.json_response(sorted(found))

    async def run() -> tuple[int, str]:
        app = web.Application()
        app.router.add_post("/", handler)
        async with TestClient(TestServer(app)) as client:
            response = await client.post("/", data=data)
            return response.status, await response.text()

    return asyncio.run(run())


@pytest.mark.parametrize("read_before", [False, True])
def test_a_body_of_untold_length_is_read_up_to_the_limit(read_before: bool) -> None:
    assert answer(chunks(50), read_before=read_before) == (200, '["a"]')
    if not read_before:
        assert answer(chunks(5000)) == (400, "the body has more than 1000 bytes")


@pytest.mark.parametrize(
    ("data", "expected"),
    [(None, (200, "[]")), (b"", (200, "[]")), (b"x" * 2000, (400, "the body has more than 1000 bytes")),
     (b"{", (400, "the body is no JSON")), (b"\xff", (400, "the body is no JSON")), (b"[]", (400, "the body must be a JSON object"))],
)  # fmt: skip
def test_other_bodies_are_judged_as_before(data: Any, expected: tuple[int, str]) -> None:
    assert answer(data) == expected


class SlowRelay:
    """A relay that takes a moment to end."""

    def __init__(self) -> None:
        self.ended = False

    async def open(self, _request: Any) -> web.Response:
        return web.Response()

    async def end(self) -> None:
        await asyncio.sleep(0.02)
        self.ended = True


def test_requests_side_by_side_make_one_relay_and_none_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[SlowRelay] = []
    session = SimpleNamespace(servers=None, settings=SimpleNamespace(key_prefix="x:"), reason="", state="ready")

    def make(*_: Any) -> SlowRelay:
        made.append(SlowRelay())
        return made[-1]

    monkeypatch.setattr(relay_port_module, "make_relay", make)

    async def run() -> None:
        pack: Any = SimpleNamespace(session=session)
        port = RelayPort(pack)
        request: Any = None
        for number in range(3):
            session.servers = SimpleNamespace(invited_to="", number=number)
            await asyncio.gather(*(port.open(request) for _ in range(4)))
        assert [relay.ended for relay in made] == [True, True, False]
        await port.end()
        assert all(relay.ended for relay in made)

    asyncio.run(run())
