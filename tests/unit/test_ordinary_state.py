"""What the pack says of ordinary prompts as things change, without a ComfyUI."""
from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distributed_comfy.comfyui import ordinary as ordinary_module
from distributed_comfy.comfyui.options import Options
from distributed_comfy.comfyui.ordinary import OrdinaryPrompts
from tests.prompts import capability


class Queue:
    """ComfyUI's queue, empty, with a fault that passes."""

    faults = 0

    def why_unfit(self) -> str:
        if self.faults:
            self.faults -= 1
            raise AttributeError("no such thing")
        return ""

    def is_queued(self) -> bool:
        return False


class Around:
    """A pack with a cluster of some workers."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.live: dict[str, Any] = {}
        self.queue = Queue()
        cluster = SimpleNamespace(matching=SimpleNamespace(live=lambda: self.live))
        self.pack: Any = SimpleNamespace(options=Options(**options), session=SimpleNamespace(cluster=lambda _timeout_s: cluster))
        placer = SimpleNamespace(stop=threading.Event())
        surroundings: Any = SimpleNamespace(placer=placer, folders={"output": folder})
        queue: Any = self.queue
        self.ordinary = OrdinaryPrompts(self.pack, queue, surroundings)


def until(what: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 10
    while not what():
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.fixture
def around(tmp_path: Path) -> Iterator[Around]:
    """Ended after the test."""
    found = Around(tmp_path, ordinary=True)
    yield found
    found.ordinary.close()
    atexit.unregister(found.ordinary.close)


def test_after_a_fault_of_ours_it_is_tried_again_and_told_once(
    around: Around, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ordinary_module, "_AGAIN_S", 0.05)
    around.live["one"] = capability()
    around.queue.faults = 3
    around.ordinary.start()
    until(lambda: around.ordinary.status().state == "unfit")
    until(lambda: around.ordinary.status().state == "on")
    assert caplog.text.count("please report this") == 1
