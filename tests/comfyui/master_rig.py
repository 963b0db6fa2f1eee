"""A master for tests: a real ComfyUI with the pack on the servers of a rig, whose workers run what its prompts ask for."""
from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy
from numpy.typing import NDArray

from tests.cluster_rig import Rig, seeds_of
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.server_rig import ComfyServer, Prompt
from tests.command_line import CommandLine
from tests.prompts import node, out


class Master:
    """A running server, and the workers beside it."""

    def __init__(self, server: ComfyServer, rig: Rig, environment: dict[str, str]) -> None:
        self.server = server
        self.rig = rig
        self._environment = environment

    def restart(self) -> None:
        """Start it again after its end."""
        self.server.start(**self._environment)
        self.server.wait_ready()

    def dumped(self, prompt: Prompt, collector: str = "9", slot: int = 0) -> tuple[Prompt, Path]:
        """The prompt with a node that writes what a collector gives as float32, and where."""
        name = f"dump-{uuid.uuid4().hex[:8]}"
        (self.server.base / "output").mkdir(exist_ok=True)
        dump = node("TinyDump", images=out(collector, slot), filename_prefix=name)
        return {**prompt, name: dump}, self.server.base / "output" / f"{name}.npy"

    def images(self, prompt: Prompt, collector: str = "9", **more: Any) -> NDArray[numpy.float32]:
        """What the collector of a prompt gives, [B, H, W, C], bit for bit."""
        whole, path = self.dumped(prompt, collector)
        self.server.execute(whole, **more)
        array: NDArray[numpy.float32] = numpy.load(path)
        return array

    def headless(self, prompt: Prompt, node_id: str) -> NDArray[numpy.float32]:
        """What the command line makes of the same prompt on the same workers, at this node."""
        whole = {**prompt, "array": node("ProbeArrayOut", images=out(node_id), name="array.npy")}
        report = self.rig.run(whole)
        array: NDArray[numpy.float32] = numpy.load(next(file.path for file in report.done.files if file.ref.name.endswith("array.npy")))
        return array

    def recorded(self, label: str) -> list[int]:
        """The seeds that the RuleRecord of this label was given, in order."""
        found = json.loads((self.server.base / "output" / f"{label}.json").read_text())
        return seeds_of(numpy.array(found["images"]))

    def ran_here(self) -> list[str]:
        """Rule nodes that ran in the master's own process so far."""
        path = self.server.line.folder / "rule_log"
        return [line.split(" ")[0] for line in path.read_text().splitlines()] if path.exists() else []

    def ticks(self) -> dict[int, list[float]]:
        """When each engine was at a step of a ProbeTicks, by its process; in seconds of this host's monotonic clock."""
        found: dict[int, list[float]] = {}
        for kind, process, at in (line.split(" ") for line in self.rig.rule_log.read_text().splitlines() if line.count(" ") == 2):
            if kind == "ProbeTicks":
                found.setdefault(int(process), []).append(float(at))
        return found

    def state(self, job_id: str) -> str:
        """Of a job."""
        return str(self.rig.cluster.jobs.job_state(job_id).state)

    def job_of(self, before: list[str]) -> str:
        """Id of the one job that was submitted since ``before`` was `jobs`."""
        found: list[str] = self.server.until(lambda: [job for job in self.jobs() if job not in before], 20.0)
        assert len(found) == 1, found
        return found[0]

    def jobs(self) -> dict[str, Any]:
        """All jobs that the table knows, oldest first."""
        return self.rig.cluster.jobs.jobs()

    def last_job(self) -> str:
        """Id of the job that was submitted last."""
        return list(self.jobs())[-1]

    def workers_of(self, job_id: str) -> list[str]:
        """Who made each item."""
        return [state.worker for state in self.rig.cluster.jobs.item_states(job_id).values()]

    def spools(self) -> list[Path]:
        """Spools that lie in the master's folder."""
        return [path for path in (self.server.line.folder / "cache" / "comfyui-jobs" / ".distributed-comfy").glob("*") if path.is_dir()]


@contextmanager
def open_master(
    comfy: Comfy, python: str, base_directory: Path, folder: Path, rig: Rig, *arguments: str, models: bool = True,
    options: dict[str, Any] | None = None, packs: Mapping[str, str] = MappingProxyType({}), **environment: str,
) -> Iterator[Master]:  # fmt: skip
    """Start one; without ``models`` it has none, ``options`` are those of the pack, and ``packs`` are further node packs by file name."""
    server = ComfyServer(comfy, python, base_directory, CommandLine(folder))
    if not models:
        for path in (server.base / "models").rglob("*.safetensors"):
            path.unlink()
    for name, text in packs.items():
        (server.base / "custom_nodes" / name).write_text(text)
    (folder / "comfyui.json").write_text(json.dumps(options or {}))
    ours = {
        "DC_REDIS_URL": rig.cluster.redis_url, "DC_BLOB_URL": rig.cluster.blob_url, "DC_KEY_PREFIX": rig.cluster.settings.key_prefix,
        "DC_WORKERS_FILE": str(folder / "workers.json"), "RULE_LOG": str(folder / "rule_log"), **environment,
    }  # fmt: skip
    try:
        server.start(*arguments, **ours)
        server.wait_ready()
        yield Master(server, rig, ours)
    finally:
        server.close()
