"""A failed node of a local item: the prompt goes on where that is wanted, whatever the executor keeps of what nodes gave."""
from __future__ import annotations

import asyncio
from enum import Enum
from types import SimpleNamespace
from typing import Any, cast

from distributed_comfy.comfyui.host import ComfyHost
from distributed_comfy.comfyui.local_failures import watch_execution


class Result(Enum):
    SUCCESS = 0
    FAILURE = 1


class Sampler:
    """A node that has no memory, and gives two things."""

    RETURN_TYPES = ("IMAGE", "MASK")


FULL = MemoryError("full")


def host_with(error: Exception | None = FULL) -> Any:
    """An executor that keeps what nodes give in a form of its own; ``error`` is what its one node raises."""
    execution = SimpleNamespace(ExecutionResult=Result, kept={})

    async def get_output_data(prompt_id: str, unique_id: str, obj: Any) -> Any:
        if error is not None:
            raise error
        return [["picture"], ["mask"]], {}, False, False

    async def execute(server: Any, current_item: str) -> Any:
        try:
            outputs, _, _, pending = await execution.get_output_data("", current_item, Sampler())
        except MemoryError as failed:
            return (Result.FAILURE, {"node_id": "9"}, failed)
        assert not pending
        execution.kept[current_item] = outputs
        return (Result.SUCCESS, None, None)

    execution.get_output_data, execution.execute = get_output_data, execute
    return SimpleNamespace(execution=execution, blocker=lambda: "blocked")


def run(host: Any, *, takes: bool) -> tuple[Any, list[tuple[str, Exception]]]:
    """What the executor is answered, and what was asked."""
    asked: list[tuple[str, Exception]] = []

    def judge(node_id: str, error: Exception) -> bool:
        asked.append((node_id, error))
        return takes

    watch_execution(cast(ComfyHost, host), judge, lambda node_id: node_id.removeprefix("x:"))
    return asyncio.run(host.execution.execute(None, "x:7")), asked


def test_a_failure_that_is_taken_becomes_outputs_that_stop_what_is_behind() -> None:
    host = host_with()
    before = host.execution.get_output_data
    answer, asked = run(host, takes=True)
    assert answer == (Result.SUCCESS, None, None)
    assert host.execution.kept == {"x:7": [["blocked"], ["blocked"]]}
    assert asked == [("x:7", FULL)]
    assert host.execution.get_output_data is before


def test_every_other_failure_is_shown_at_the_users_node() -> None:
    host = host_with()
    answer, _ = run(host, takes=False)
    assert answer == (Result.FAILURE, {"node_id": "7"}, FULL) and host.execution.kept == {}


def test_nobody_is_asked_about_a_node_that_ran() -> None:
    host = host_with(error=None)
    answer, asked = run(host, takes=True)
    assert answer == (Result.SUCCESS, None, None) and asked == []
    assert host.execution.kept == {"x:7": [["picture"], ["mask"]]}


def test_an_executor_of_another_kind_is_left_alone() -> None:
    async def other(everything: Any) -> Any:
        return (Result.FAILURE, {}, FULL)

    for name, replaced in (("execute", other), ("execute", None), ("get_output_data", other), ("get_output_data", None)):
        host = host_with()
        setattr(host.execution, name, replaced)
        before = host.execution.execute
        watch_execution(host, lambda node_id, error: True, lambda node_id: node_id)
        assert host.execution.execute is before
