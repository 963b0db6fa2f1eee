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
    PENDING = 2


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

    async def execute(server: Any, current_item: str, caches: Any = None) -> Any:
        try:
            outputs, _, _, pending = await execution.get_output_data("", current_item, Sampler())
        except MemoryError as failed:
            return (Result.FAILURE, {"node_id": "9"}, failed)
        assert not pending
        execution.kept[current_item] = outputs
        return (Result.SUCCESS, None, None)

    execution.get_output_data, execution.execute = get_output_data, execute
    forgotten: list[tuple[str, ...]] = []
    return SimpleNamespace(execution=execution, blocker=lambda: "blocked", forgotten=forgotten, forget_progress=forgotten.append)


class Items:
    """Those of one job: node ``x:7`` was made from node 7, and ends a turn whose nodes are ``left``."""

    def __init__(self, *, takes: bool, left: tuple[str, ...] | None = None) -> None:
        self.asked: list[tuple[str, Exception]] = []
        self._takes, self._left = takes, left

    def fails(self, node_id: str, error: Exception) -> bool:
        self.asked.append((node_id, error))
        return self._takes

    def users_node(self, node_id: str) -> str:
        return node_id.removeprefix("x:")

    def leftovers(self, node_id: str) -> tuple[str, ...] | None:
        return self._left


class Cache:
    """What a node's own nodes gave, by the id of that node."""

    def __init__(self) -> None:
        self.emptied: list[str] = []

    async def ensure_subcache_for(self, node_id: str, children: tuple[str, ...]) -> Any:
        assert children == ()
        return SimpleNamespace(clean_unused=lambda: self.emptied.append(node_id))


def run(host: Any, items: Items, caches: Any = None) -> Any:
    """What the executor is answered."""
    watch_execution(cast(ComfyHost, host), items)
    return asyncio.run(host.execution.execute(None, "x:7", caches=caches))


def test_a_failure_that_is_taken_becomes_outputs_that_stop_what_is_behind() -> None:
    host = host_with()
    before = host.execution.get_output_data
    items = Items(takes=True)
    assert run(host, items) == (Result.SUCCESS, None, None)
    assert host.execution.kept == {"x:7": [["blocked"], ["blocked"]]}
    assert items.asked == [("x:7", FULL)]
    assert host.execution.get_output_data is before


def test_every_other_failure_is_shown_at_the_users_node() -> None:
    host = host_with()
    assert run(host, Items(takes=False)) == (Result.FAILURE, {"node_id": "7"}, FULL) and host.execution.kept == {}


def test_nobody_is_asked_about_a_node_that_ran() -> None:
    host = host_with(error=None)
    items = Items(takes=True)
    assert run(host, items) == (Result.SUCCESS, None, None) and items.asked == []
    assert host.execution.kept == {"x:7": [["picture"], ["mask"]]} and host.forgotten == []


def test_a_turn_that_is_over_leaves_nothing() -> None:
    host, outputs, objects = host_with(error=None), Cache(), Cache()
    assert run(host, Items(takes=True, left=("a", "b")), SimpleNamespace(outputs=outputs, objects=objects))[0] == Result.SUCCESS
    assert outputs.emptied == objects.emptied == ["x:7"] and host.forgotten == [("x:7", "a", "b")]


def test_a_cache_that_holds_nothing_for_a_nodes_own_nodes_is_left_alone() -> None:
    host = host_with(error=None)
    assert run(host, Items(takes=True, left=()), SimpleNamespace(outputs=object()))[0] == Result.SUCCESS


def test_an_executor_of_another_kind_is_left_alone() -> None:
    async def other(everything: Any) -> Any:
        return (Result.FAILURE, {}, FULL)

    for name, replaced in (("execute", other), ("execute", None), ("get_output_data", other), ("get_output_data", None)):
        host = host_with()
        setattr(host.execution, name, replaced)
        before = host.execution.execute
        watch_execution(host, Items(takes=True))
        assert host.execution.execute is before
