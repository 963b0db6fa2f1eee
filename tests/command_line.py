"""The command line as a user has it: a process of its own, its exit status, what it printed, and what it left running."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import psutil
from numpy.typing import NDArray
from PIL import Image

from distributed_comfy.messages import Prompt
from distributed_comfy.settings import Settings, variable
from tests import warm_python
from tests.prompts import node, out

PROJECT = Path(__file__).parents[1]
MARK = "COMMAND_LINE_TEST"
"""Variable that all processes of one test inherit."""


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    status: int
    """As a shell shows it: 128 + the signal's number where one ended it. Python ends itself by SIGINT at its exit, whatever status was
    asked for, if Ctrl-C came while it evaluated code from a string, as the making of a dataclass does."""
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one line of JSON and nothing else."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


class CommandLine:
    """Runs commands in a folder of their own, with no settings but those given."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self._mark = uuid.uuid4().hex
        kept = {name: value for name, value in os.environ.items() if name not in {variable(field) for field in Settings.model_fields}}
        ours = {
            "PYTHONPATH": str(PROJECT), "DC_RUNTIME_DIR": str(folder / "runtime"), "DC_CACHE_DIR": str(folder / "cache"),
            "TMPDIR": str(folder / "temporary"), "HOME": str(folder / "home"), "COLUMNS": "200", MARK: self._mark,
        }  # fmt: skip
        for name in ("temporary", "home"):
            (folder / name).mkdir(exist_ok=True)
        self.environment = {**kept, **ours, **environment}

    def run(self, *arguments: str | Path, timeout_s: float = 90.0, **environment: str) -> Finished:
        """Run a command to its end."""
        given = {**self.environment, **environment}
        if warm_python.AVAILABLE and given["PYTHONPATH"] == str(PROJECT):
            try:
                code, *texts = warm_python.warm_python().run([str(argument) for argument in arguments], self.folder, given, timeout_s)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"{arguments} does not end") from None
            return Finished(as_a_shell_shows_it(code), *texts)
        process = self.start(*arguments, **environment)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"{arguments} does not end: {process.communicate()}") from None
        return Finished(as_a_shell_shows_it(process.returncode), out, err)

    def start(self, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        """Start a command in a session of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "distributed_comfy", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env={**self.environment, **environment},
            start_new_session=True,
        )

    def finish(self, process: subprocess.Popen[str], timeout_s: float = 60.0) -> Finished:
        """Wait for the end of a started command."""
        out, err = process.communicate(timeout=timeout_s)
        return Finished(as_a_shell_shows_it(process.returncode), out, err)

    def interrupt(self, process: subprocess.Popen[str]) -> Finished:
        """Ctrl-C, as a terminal sends it: to the whole foreground group."""
        os.killpg(process.pid, signal.SIGINT)
        return self.finish(process)

    def write(self, name: str, content: Any) -> Path:
        """A file with a prompt, or with any text."""
        path = self.folder / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    def left_running(self) -> list[str]:
        """Command lines of processes that commands of this test have left."""
        return [" ".join(command) for process in psutil.process_iter() if (command := self._command_of(process))]

    def processes(self) -> list[psutil.Process]:
        """These processes themselves."""
        return [process for process in psutil.process_iter() if self._command_of(process)]

    def left_lying(self) -> list[str]:
        """What commands have left in the folder for temporary files."""
        return [path.name for path in (self.folder / "temporary").iterdir()]

    def _command_of(self, process: psutil.Process) -> list[str]:
        try:
            return process.cmdline() if process.environ().get(MARK) == self._mark else []
        except psutil.Error:  # it ended, or is somebody else's
            return []


def as_a_shell_shows_it(returncode: int) -> int:
    """The exit status that ``$?`` has."""
    return returncode if returncode >= 0 else 128 - returncode


def until(what: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Wait for something true; a look that is a whole command leaves the processor to what it waits for most of the time."""
    deadline = time.monotonic() + timeout_s
    began = time.monotonic()
    while not (found := what()):
        looked = time.monotonic()
        assert looked < deadline, f"not within {timeout_s} s"
        time.sleep(min(max(0.02, 2 * (looked - began)), 0.5))
        began = time.monotonic()
    return found


def pictures(seed: int = 100, **inputs: Any) -> Prompt:
    """seed -> generator -> collector."""
    sizes = {"steps": 3, "width": 48, "height": 32, "batch_size": 1, "style": "auto", **inputs}
    return {
        "seed": node("DistributedSeed", seed=seed),
        "make": node("SeededGenerator", seed=out("seed"), **sizes),
        "collect": node("DistributedCollector", images=out("make"), load_balance=False),
    }


def slow(milliseconds: int, seed: int = 100) -> Prompt:
    """The same, every item taking its time."""
    prompt = pictures(seed)
    prompt["wait"] = node("RuleSlow", images=out("make"), milliseconds=milliseconds)
    prompt["collect"]["inputs"]["images"] = out("wait")
    return prompt


def texts(path: Path) -> Mapping[str, Any]:
    """What a PNG says about itself."""
    with Image.open(path) as picture:
        return {key: json.loads(text) for key, text in picture.info.items() if isinstance(text, str)}


def pixels(path: Path) -> NDArray[Any]:
    """A PNG's bytes."""
    with Image.open(path) as picture:
        return numpy.array(picture)
