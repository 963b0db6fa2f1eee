"""An interrupt of a prompt that runs elsewhere does not reach ComfyUI, which would end its own instead."""
from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from distributed_comfy.comfyui.accepted import Place
from distributed_comfy.comfyui.interrupts import interrupt_middleware


class There:
    """Prompts ``there`` and ``also there`` run elsewhere; ``late`` is about to end."""

    def __init__(self) -> None:
        self.ended: list[str | None] = []
        self.stay: list[str] = []
        """Prompts that may not leave now."""

    def runs(self, prompt_id: str) -> bool:
        return prompt_id in ("there", "also there", "late")

    def interrupt(self, prompt_id: str | None) -> bool:
        self.ended.append(prompt_id)
        return prompt_id in (None, "there", "also there")

    @contextmanager
    def staying(self, prompt_ids: Collection[str]) -> Iterator[None]:
        self.stay = list(prompt_ids)
        yield
        self.stay = []


class Jobs:
    """Prompt ``here`` runs, and after it the next one."""

    def __init__(self) -> None:
        self.runs = "here"
        self.ended: list[str] = []

    def running(self, prompt_id: str | None) -> list[Place]:
        return [(1, self.runs)] if prompt_id in (None, self.runs) else []

    def interrupt(self, places: list[Place]) -> None:
        self.ended += [prompt_id for _, prompt_id in places]


class Asked:
    """What one request led to.

    Args:
        refusal: status with which ComfyUI answers what is passed on; 0: it cannot be reached.
    """

    def __init__(self, path: str, body: Any, method: str = "POST", refusal: int = 200) -> None:
        self.there = There()
        self.jobs = Jobs()
        self.comfyuis: list[str] = []
        """Bodies that reached ComfyUI, as they were sent."""
        self.passed_on: list[Any] = []
        """Bodies that were passed on to it, with fewer ids."""
        self.stayed: list[list[str]] = []
        self.status, self.answer = asyncio.run(self._ask(path, body, method, refusal))

    async def _ask(self, path: str, body: Any, method: str, refusal: int) -> tuple[int, Any]:
        async def handler(request: web.Request) -> web.Response:
            self.comfyuis.append(await request.text())
            self.stayed.append(self.there.stay)
            assert not self.jobs.ended, "or its prompt could end, and ComfyUI would interrupt the next"
            self.jobs.runs = "next"
            return web.json_response({"cancelled": True})

        async def pass_on(_request: web.Request, wanted: Any) -> tuple[int, Any]:
            if not refusal:
                raise aiohttp.ClientConnectionError
            self.passed_on.append(wanted)
            self.stayed.append(self.there.stay)
            return refusal, {"cancelled": True} if refusal == 200 else {"error": "no"}

        app = web.Application(middlewares=[interrupt_middleware(self.there, self.jobs, pass_on)])
        app.router.add_route("*", "/{anything:.*}", handler)
        async with TestClient(TestServer(app)) as client:
            data = {"json": body} if not isinstance(body, str) else {"data": body}
            response = await client.request(method, path, **data)
            text = await response.text()
            return response.status, json.loads(text) if text else None


@pytest.mark.parametrize("path", ["/interrupt", "/api/interrupt"])
def test_a_prompt_that_runs_elsewhere_is_ended_there_alone(path: str) -> None:
    asked = Asked(path, {"prompt_id": "there"})
    assert (asked.there.ended, asked.comfyuis) == (["there"], [])


def test_any_other_prompt_is_comfyuis_and_stays_where_it_is_meanwhile() -> None:
    asked = Asked("/interrupt", {"prompt_id": "here"})
    assert asked.there.ended == ["here"] and asked.comfyuis == ['{"prompt_id": "here"}'], "ComfyUI reads the same body"
    assert asked.stayed == [["here"]], "or ComfyUI would find it running, and take it for its own"


@pytest.mark.parametrize("body", [{}, "", "no JSON", [1], {"prompt_id": ""}])
def test_an_interrupt_of_everything_reaches_both(body: Any) -> None:
    asked = Asked("/interrupt", body)
    assert asked.there.ended == [None] and len(asked.comfyuis) == 1


@pytest.mark.parametrize("path", ["/interrupt", "/api/interrupt"])
@pytest.mark.parametrize(
    "body, ended", [({}, ["here"]), ({"prompt_id": "here"}, ["here"]), ({"prompt_id": "next"}, []), ({"prompt_id": "there"}, [])]
)
def test_the_job_of_the_prompt_that_was_meant_ends_and_not_that_of_the_next(path: str, body: Any, ended: list[str]) -> None:
    assert Asked(path, body).jobs.ended == ended


def test_what_only_looks_ends_no_job() -> None:
    assert Asked("/interrupt", "", "GET").jobs.ended == []


@pytest.mark.parametrize("prefix", ["/jobs", "/api/jobs", "/api/api/jobs"])
def test_newer_pages_cancel_by_another_path(prefix: str) -> None:
    asked = Asked(f"{prefix}/there/cancel", {})
    assert (asked.there.ended, asked.comfyuis, asked.answer) == (["there"], [], {"cancelled": True})
    asked = Asked(f"{prefix}/here/cancel", {})
    assert asked.there.ended == ["here"] and len(asked.comfyuis) == 1 and asked.stayed == [["here"]]


@pytest.mark.parametrize("path", ["/api/jobs/cancel", "/api/api/jobs/cancel"])
def test_of_many_each_is_ended_where_it_runs(path: str) -> None:
    asked = Asked(path, {"job_ids": ["here", "there", "waits"]})
    assert (asked.passed_on, asked.there.ended, asked.comfyuis) == ([{"job_ids": ["here", "waits"]}], ["there"], [])
    assert asked.stayed == [["here", "there", "waits"]] and (asked.status, asked.answer) == (200, {"cancelled": True})


def test_many_that_all_run_elsewhere_are_ended_there_and_comfyui_hears_nothing() -> None:
    asked = Asked("/api/jobs/cancel", {"job_ids": ["there", "also there"]})
    assert (asked.passed_on, asked.there.ended, asked.comfyuis, asked.answer) == ([], ["there", "also there"], [], {"cancelled": True})


def test_many_that_are_all_comfyuis_reach_it_as_they_were_sent() -> None:
    asked = Asked("/api/jobs/cancel", {"job_ids": ["here"], "more": 1})
    assert (asked.there.ended, asked.comfyuis) == ([], ['{"job_ids": ["here"], "more": 1}'])


@pytest.mark.parametrize("refusal", [400, 404])
def test_where_comfyui_refuses_the_others_none_is_ended(refusal: int) -> None:
    asked = Asked("/api/jobs/cancel", {"job_ids": ["there", {"id": 1}]}, refusal=refusal)
    assert asked.passed_on == [{"job_ids": [{"id": 1}]}]
    assert (asked.there.ended, asked.status, asked.answer) == ([], refusal, {"error": "no"})


def test_where_comfyui_does_not_answer_none_is_ended_and_the_caller_is_told() -> None:
    asked = Asked("/api/jobs/cancel", {"job_ids": ["there", "here"]}, refusal=0)
    assert (asked.there.ended, asked.status) == ([], 500) and "does not take the cancellation" in asked.answer["error"]


def test_one_that_has_just_come_back_is_comfyuis_again() -> None:
    asked = Asked("/api/jobs/cancel", {"job_ids": ["late", "here"]})
    assert asked.passed_on == [{"job_ids": ["here"]}, {"job_ids": ["late"]}]


@pytest.mark.parametrize("body", ["", "no JSON", [1], {}, {"job_ids": None}, {"job_ids": "there"}, {"job_ids": [["there"], 1]}])
def test_a_list_that_is_none_is_left_to_comfyui(body: Any) -> None:
    asked = Asked("/api/jobs/cancel", body)
    assert asked.there.ended == [] and asked.passed_on == [] and len(asked.comfyuis) == 1


@pytest.mark.parametrize(
    ("path", "method"),
    [("/interrupt", "GET"), ("/queue", "POST"), ("/x/interrupt", "POST"), ("/api/jobs/cancel", "GET"), ("/api/jobs/there", "POST")],
)
def test_nothing_else_is_looked_at(path: str, method: str) -> None:
    asked = Asked(path, {"prompt_id": "there", "job_ids": ["there"]}, method)
    assert asked.there.ended == [] and len(asked.comfyuis) == 1
