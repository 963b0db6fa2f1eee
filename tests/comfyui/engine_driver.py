"""Holds one engine in its interpreter and obeys JSON lines; what an engine process does, without the process code.

    python engine_driver.py FACTS.json      FACTS: options of the engine, folders to add to sys.path
"""
from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

FACTS = json.loads(Path(sys.argv[1]).read_text())
sys.path[:0] = FACTS["project_paths"]
sys.path += FACTS["library_paths"]

from distributed_comfy.engine.context import GraphContext  # noqa: E402
from distributed_comfy.engine.folders import WorkFolders  # noqa: E402
from distributed_comfy.engine.inputs import place_inputs  # noqa: E402
from distributed_comfy.engine.options import EngineOptions  # noqa: E402
from distributed_comfy.engine.process import ENGINES  # noqa: E402
from distributed_comfy.errors import DistributedComfyError  # noqa: E402
from distributed_comfy.messages import RunRequest, from_plain, to_plain  # noqa: E402
from distributed_comfy.nodes.registry import node_classes  # noqa: E402
from distributed_comfy.transport.files import InputCache  # noqa: E402
from distributed_comfy.transport.memory_blobs import MemoryBlobStore  # noqa: E402


class RecordingSink:
    """Keeps what an engine reports, and interrupts it at a step if asked."""

    def __init__(self, interrupt_at: int, interrupt: Any) -> None:
        self.progressed: list[tuple[str, int, int]] = []
        self.previews: list[tuple[str, int, str]] = []
        self._interrupt_at = interrupt_at
        self._interrupt = interrupt

    def progress(self, node_id: str, value: int, maximum: int) -> None:
        self.progressed.append((node_id, value, maximum))
        if self._interrupt_at and maximum > 1 and value >= self._interrupt_at:
            self._interrupt()

    def preview(self, node_id: str, image: bytes) -> None:
        self.previews.append((node_id, len(image), image[:2].hex()))


class Driver:
    """The commands."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self._options = from_plain(EngineOptions, facts["options"])
        WorkFolders(self._options.folder).create()
        self._arrays = Path(facts["arrays"])
        self._blobs = MemoryBlobStore()
        self._context = GraphContext(self._blobs, feed_timeout_s=5)
        package = importlib.import_module(ENGINES[self._options.engine])
        self.engine = package.create_engine(self._options, self._context, node_classes)
        self._loads = 0
        if self._options.engine == "comfyui":
            self._count_loads()

    def _count_loads(self) -> None:
        comfy_utils = sys.modules["comfy.utils"]
        load = comfy_utils.load_torch_file

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._loads += 1
            return load(*args, **kwargs)

        comfy_utils.load_torch_file = counted

    def describe(self) -> dict[str, Any]:
        return {"capability": to_plain(self.engine.describe())}

    def free(self) -> dict[str, Any]:
        self.engine.free()
        ours = sys.modules.get("comfy.model_management")
        return {"loaded": len(ours.current_loaded_models)} if ours else {}

    def interrupt(self, claim_id: str) -> dict[str, Any]:
        self.engine.interrupt(claim_id)
        return {}

    def run(self, request: dict[str, Any], interrupt_at: int = 0) -> dict[str, Any]:
        wanted = from_plain(RunRequest, request)
        sink = RecordingSink(interrupt_at, lambda: self.engine.interrupt(wanted.claim_id))
        self._loads = 0
        prompt = place_inputs(wanted, InputCache(self._options.cache_folder), self._options.folder / "input")
        wanted = from_plain(RunRequest, {**to_plain(wanted), "prompt": prompt})
        try:
            answer = self._outcome(self.engine.run(wanted, sink), wanted.claim_id)
        except DistributedComfyError as error:
            answer = {"error": error.to_wire()}
        started = sorted(self.engine._listener.started)
        return {**answer, "progress": sink.progressed, "previews": sink.previews, "started": started, "loads": self._loads}

    def _outcome(self, outcome: Any, claim_id: str) -> dict[str, Any]:
        import numpy

        captures = []
        for number, capture in enumerate(outcome.captures):
            path = self._arrays / f"{claim_id}-{number}.npy"
            value = capture.value["samples"] if isinstance(capture.value, dict) else capture.value
            numpy.save(path, value.cpu().numpy() if hasattr(value, "cpu") else value)
            captures.append([capture.node_id, capture.slot, capture.list_index, str(path)])
        files = [[file.node_id, file.folder, file.name, str(file.path)] for file in outcome.files]
        return {"captures": captures, "files": files, "outputs": outcome.outputs, "blocked": list(outcome.blocked)}


def main() -> None:
    """Answer each line with a line, until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    driver = Driver(FACTS)
    answers.write(json.dumps({"ready": threading.active_count()}) + "\n")
    for line in sys.stdin:
        command = json.loads(line)
        answers.write(json.dumps(getattr(driver, command.pop("command"))(**command)) + "\n")
    driver.engine.close()


if __name__ == "__main__":
    main()
