"""Users of hosts with networks of their own: each has a folder, settings, our commands, and a worker with the rule nodes."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from distributed_comfy.settings import Settings, variable
from tests.command_line import PROJECT, pixels, until
from tests.hosts import Host


@dataclass
class Machine:
    """A host, and the user on it, whose folder is made."""

    host: Host
    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir()

    def environment(self, **changes: str) -> dict[str, str]:
        """That of a user of this machine alone."""
        settings = {variable(field) for field in Settings.model_fields}
        kept = {name: value for name, value in os.environ.items() if name not in settings and not name.startswith("XDG_")}
        ours = {
            "HOME": str(self.folder), "DC_CONFIG": os.devnull, "DC_RUNTIME_DIR": str(self.folder / "run"),
            "DC_CACHE_DIR": str(self.folder / "cache"), "DC_HOST": self.host.name, "DC_ENGINE": "builtin", "DC_DEVICE": "cpu",
            "DC_THREADS": "1", "PYTHONPATH": str(PROJECT),
        }  # fmt: skip
        return {**kept, **ours, **changes}

    def command(self, *arguments: str) -> Any:
        """Run one of our commands here; what it says as JSON."""
        return json.loads(self.host.run(*ours(*arguments, "--json"), env=self.environment(), timeout_s=60))

    def start_worker(self, **changes: str) -> subprocess.Popen[str]:
        """A worker that has the rule nodes, too."""
        log = (self.folder / "worker.log").open("a")
        environment = self.environment(**changes)
        return self.host.start(sys.executable, "-m", "tests.worker_process", stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)

    def start_job(self, prompt: Any, out: str, items: int) -> subprocess.Popen[str]:
        """`distributed-comfy run`."""
        path = self.folder / "prompt.json"
        path.write_text(json.dumps(prompt))
        arguments = ours("run", str(path), "--items", str(items), "--out", str(self.folder / out))
        return self.host.start(*arguments, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def images(self, out: str) -> list[NDArray[Any]]:
        """What a job saved, in order."""
        return [pixels(path) for path in sorted((self.folder / out).glob("*.png"))]

    def workers(self) -> dict[str, list[str]]:
        """Name of each worker -> items it has."""
        return {worker["name"]: worker["items"] for worker in self.command("workers", "list") if worker["state"] != "lost"}


def ours(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "distributed_comfy", *arguments]


def join(master: Machine, guest: Machine, **changes: str) -> dict[str, Any]:
    """Invite a host and let its worker join; what the invitation said.  ``changes`` are to its worker's environment."""
    until(lambda: "master-cpu" in master.workers(), timeout_s=60)
    said: dict[str, Any] = master.command("invite", "--name", guest.host.name, "--lan")
    guest.start_worker(TEST_JOIN=said["token"], **changes)
    name = f"{guest.host.name}-cpu"
    try:
        until(lambda: name in master.workers(), timeout_s=60)
    except AssertionError:
        pytest.fail((guest.folder / "worker.log").read_text(), pytrace=False)
    return said
