"""A failed node of a local item: the prompt goes on where that is wanted, in versions of ComfyUI whose executor is known."""
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


FULL = MemoryError("full")


async def fails(server: Any, dynprompt: Any, caches: Any, current_item: str, extra: Any) -> Any:
    return (Result.FAILURE, {"node_id": current_item}, FULL)


async def succeeds(server: Any, dynprompt: Any, caches: Any, current_item: str, extra: Any) -> Any:
    return (Result.SUCCESS, None, None)


async def of_another_version(server: Any, everything: Any) -> Any:
    return (Result.FAILURE, {}, FULL)


def host_with(execute: Any, **more: Any) -> Any:
    node_class = SimpleNamespace(RETURN_TYPES=("IMAGE", "MASK"))
    return SimpleNamespace(
        execution=SimpleNamespace(ExecutionResult=Result, execute=execute, **more),
        nodes=SimpleNamespace(NODE_CLASS_MAPPINGS={"Sampler": node_class}),
        blocker=lambda: "blocked",
    )


def run(host: Any, *, takes: bool) -> tuple[Any, dict[str, Any], list[tuple[str, Exception]]]:
    """What the executor is answered, what lies in its cache then, and what was asked."""
    asked: list[tuple[str, Exception]] = []
    outputs: dict[str, Any] = {}

    def judge(node_id: str, error: Exception) -> bool:
        asked.append((node_id, error))
        return takes

    watch_execution(cast(ComfyHost, host), judge)
    caches = SimpleNamespace(outputs=SimpleNamespace(set=outputs.__setitem__))
    dynprompt = SimpleNamespace(get_node=lambda node_id: {"class_type": "Sampler"})
    return asyncio.run(host.execution.execute(None, dynprompt, caches, "x:7", None)), outputs, asked


def test_a_failure_that_is_taken_becomes_outputs_that_stop_what_is_behind() -> None:
    answer, outputs, asked = run(host_with(fails), takes=True)
    assert answer == (Result.SUCCESS, None, None)
    assert outputs == {"x:7": [["blocked"], ["blocked"]]}
    assert asked == [("x:7", FULL)]


def test_every_other_failure_stays_comfyuis() -> None:
    answer, outputs, _ = run(host_with(fails), takes=False)
    assert answer == (Result.FAILURE, {"node_id": "x:7"}, FULL) and outputs == {}


def test_nobody_is_asked_about_a_node_that_ran() -> None:
    answer, outputs, asked = run(host_with(succeeds), takes=True)
    assert answer == (Result.SUCCESS, None, None) and outputs == {} and asked == []


def test_an_executor_of_another_kind_is_left_alone() -> None:
    for host in (host_with(of_another_version), host_with(fails, CacheEntry=object), host_with(None)):
        before = host.execution.execute
        watch_execution(host, lambda node_id, error: True)
        assert host.execution.execute is before
