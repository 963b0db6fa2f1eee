"""A real ComfyUI tree, folders for it, and an engine in a process of its own."""
from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import pytest

from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.file_lock import FileLock
from distributed_comfy.messages import Capability, RunRequest, from_plain, to_plain

PROJECT = Path(__file__).parents[2]
START_TIMEOUT_S = 120


@dataclass(frozen=True)
class Comfy:
    """A tree and the interpreter that runs it."""

    root: Path
    python: str


def make_base_directory(comfy: Comfy, folder: Path) -> Path:
    """Write the tiny model and the node packs into ``folder``."""
    shutil.copytree(_tiny_model(comfy), folder, dirs_exist_ok=True)
    for pack in ("probe_nodes.py", "tile_probes.py", "uneven_nodes.py"):
        shutil.copyfile(Path(__file__).with_name(pack), folder / "custom_nodes" / pack)
    shutil.copyfile(PROJECT / "tests" / "rule_nodes.py", folder / "custom_nodes" / "rule_nodes.py")
    (folder / "input").mkdir()
    return folder


def _tiny_model(comfy: Comfy) -> Path:
    """What examples/tiny_model.py writes; made once, in the project's ``.venv``, for it imports torch."""
    script = PROJECT / "examples" / "tiny_model.py"
    sources = [path.read_text(encoding="utf-8") for path in (script, script.with_name("tiny_nodes.py"))]
    mark = hashlib.sha256(json.dumps([comfy.python, *sources]).encode()).hexdigest()[:12]
    folder = PROJECT / ".venv" / f"tiny-model-{mark}"
    with FileLock(PROJECT / ".venv" / "comfyui.lock"):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            subprocess.run([comfy.python, str(script), str(partial)], check=True, timeout=START_TIMEOUT_S)
            partial.rename(folder)
    return folder


@dataclass
class EngineClient:
    """An engine in a process of its own, see engine_driver.py."""

    options: EngineOptions
    _claims: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        folder = self.options.folder.parent
        (folder / "arrays").mkdir()
        facts = {
            "options": to_plain(self.options),
            "arrays": str(folder / "arrays"),
            "project_paths": [str(PROJECT)],
            "library_paths": [sysconfig.get_path("purelib")],
        }
        (folder / "facts.json").write_text(json.dumps(facts))
        driver = str(Path(__file__).with_name("engine_driver.py"))
        self._log = self.options.log_file.open("wb")
        command = [self.options.python, driver, str(folder / "facts.json")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True)
        self.ready = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            pytest.fail(f"the engine ended; its last lines:\n{self.log()[-4000:]}", pytrace=False)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def log(self) -> str:
        """What ComfyUI and the engine wrote so far."""
        return self.options.log_file.read_text(errors="replace")

    def send(self, command: str, **arguments: Any) -> dict[str, Any]:
        """One command and its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def describe(self) -> Capability:
        """The engine's capability."""
        return from_plain(Capability, self.send("describe")["capability"])

    def run(self, prompt: dict[str, Any], *targets: str, interrupt_at: int = 0, **changes: Any) -> dict[str, Any]:
        """Run a prompt under a new claim; the answer holds ``claim_id`` and for each capture (node, slot, index) its array."""
        facts: dict[str, Any] = {
            "claim_id": f"claim{next(self._claims)}", "job_id": "0123456789ab", "index": 3, "kind": "generate", "prompt": prompt,
            "targets": targets, "original_prompt": prompt,
        }  # fmt: skip
        request = RunRequest(**{**facts, **changes})
        answer = self.send("run", request=to_plain(request), interrupt_at=interrupt_at)
        answer["claim_id"] = request.claim_id
        answer["arrays"] = {(node, slot, index): numpy.load(path) for node, slot, index, path in answer.get("captures", ())}
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()
        self._log.close()
