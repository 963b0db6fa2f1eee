"""A built-in engine in this process, for the unit tests beside it."""
from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed_comfy.engine.base import RunOutcome
from distributed_comfy.engine.builtin.engine import BuiltinEngine
from distributed_comfy.engine.context import GraphContext
from distributed_comfy.engine.folders import WorkFolders
from distributed_comfy.engine.inputs import place_inputs
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.messages import Prompt, RunRequest
from distributed_comfy.nodes.registry import node_classes
from distributed_comfy.transport.files import InputCache
from distributed_comfy.transport.memory_blobs import MemoryBlobStore


@dataclass
class RecordingSink:
    """Keeps what a run reports."""

    on_progress: Callable[[int], None] = lambda value: None
    steps: list[tuple[str, int, int]] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)

    def progress(self, node_id: str, value: int, maximum: int) -> None:
        self.steps.append((node_id, value, maximum))
        self.on_progress(value)

    def preview(self, node_id: str, image: bytes) -> None:
        self.previews.append(image)


class Counting:
    """Executions of each node class, counted by the classes themselves."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def wrap(self, classes: dict[str, Any]) -> dict[str, Any]:
        return {name: self._counted(name, cls) for name, cls in classes.items()}

    def _counted(self, name: str, cls: Any) -> Any:
        calls, function = self.calls, getattr(cls, cls.FUNCTION)

        def run(node: Any, **inputs: Any) -> Any:
            calls.append(name)
            return function(node, **inputs)

        return type(name, (cls,), {"FUNCTION": "counted", "counted": run})


class Bench:
    """An engine with folders of its own; each run gets a new claim."""

    def __init__(self, folder: Path, extra: dict[str, type] | None = None) -> None:
        self.blobs = MemoryBlobStore()
        self.folders = WorkFolders(folder / "w").create()
        files = {"folder": folder / "w", "log_file": folder / "log", "cache_folder": folder / "cache"}
        options = EngineOptions("builtin", "w1", sys.executable, blob_url="", tags=("t",), **files)
        context = GraphContext(self.blobs, feed_timeout_s=0.2)
        self.engine = BuiltinEngine(options, context, lambda ctx: {**node_classes(ctx), **(extra or {})})
        self.cache = InputCache(options.cache_folder)
        self.counting = Counting()
        self.engine._classes.update(self.counting.wrap(self.engine._classes))
        self._claims = 0

    def run(self, prompt: Prompt, *targets: str, sink: RecordingSink | None = None, **facts: Any) -> RunOutcome:
        self._claims += 1
        known = {"claim_id": f"c{self._claims}", "job_id": "j", "index": 0, "kind": "generate", "original_prompt": prompt}
        request = RunRequest(**{**known, "prompt": prompt, "targets": targets, **facts})
        self.counting.calls.clear()
        placed = place_inputs(request, self.cache, self.folders.input)
        return self.engine.run(RunRequest(**{**request.__dict__, "prompt": placed}), sink or RecordingSink())
