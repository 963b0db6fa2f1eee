"""Which errors make a worker leave a job to the others."""
from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from distributed_comfy.errors import CacheUnwritable, EngineDied, ItemInterrupted, MessageVersionUnknown, NodeFailed, OutOfMemory
from tasks.run_item import _how
from tasks.runtime import WorkerRuntime

OUT_OF_MEMORY = OutOfMemory(device="cuda:0", node_id="3", exception_message="")
NODE_FAILED = NodeFailed(node_id="3", class_type="X", exception_type="ValueError", exception_message="", traceback=[])


@pytest.fixture
def runtime() -> Any:
    known = SimpleNamespace(_ran_out=deque(maxlen=2))
    known.ran_out_before = lambda item: WorkerRuntime.ran_out_before(known, item)  # type: ignore[arg-type]
    return known


def test_an_item_that_runs_out_of_memory_twice_on_a_worker_goes_elsewhere(runtime: Any) -> None:
    assert [_how(runtime, OUT_OF_MEMORY, item) for item in ("a-1", "a-2", "a-1", "a-1")] == ["retry", "retry", "elsewhere", "elsewhere"]


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (CacheUnwritable(path="/cache", reason="the disk is full"), "elsewhere"),
        (MessageVersionUnknown(kind="JobRecord", version=9, known=[2]), "lacks"),
        (EngineDied(status="signal 9", log_tail=""), "retry"),
        (ItemInterrupted(item_id="a-1"), "release"),
        (NODE_FAILED, "final"),
    ],
    ids=lambda value: getattr(value, "code", value),
)
def test_what_a_worker_cannot_do_another_may(runtime: Any, error: Any, how: str) -> None:
    assert _how(runtime, error, "a-1") == how
