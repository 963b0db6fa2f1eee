"""The program that starts a worker container's workers: one for each GPU, started again when they end, ended together."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 30.0
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="runs in Linux containers")

# Stands where the container has worker_entry.py: tells what it was started with, ends with 0 at SIGTERM, and dies where it is told to.
PROBE = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(os.environ["PROBE_FOLDER"])
name = os.environ["DC_WORKER_NAME"]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with (folder / name).open("a") as file:
    file.write(f"{os.getpid()} {os.environ['DC_DEVICE']}\\n")
while not (folder / f"{name}.die").exists():
    time.sleep(0.02)
(folder / f"{name}.die").unlink()
os._exit(3)
"""


@dataclass
class Container:
    """`start_workers.py` as the container's first program, and what its workers wrote."""

    process: subprocess.Popen[str]
    folder: Path

    def starts(self, name: str) -> list[tuple[int, str]]:
        """Process id and device of each start of a worker."""
        file = self.folder / name
        lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        return [(int(pid), device) for pid, device in lines]

    def wait_starts(self, name: str, count: int) -> list[tuple[int, str]]:
        deadline = time.monotonic() + TIMEOUT_S
        while len(self.starts(name)) < count:
            assert time.monotonic() < deadline, f"{name} was started {len(self.starts(name))} times"
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)
        return self.starts(name)

    def end(self) -> int:
        """SIGTERM, as Docker sends it."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT_S)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Container]]:
    """``start(gpus, *arguments, **variables)``."""
    running: list[Container] = []
    programs, probe, folder = (tmp_path / name for name in ("bin", "probe", "starts"))
    for made in (programs, probe, folder):
        made.mkdir()
    (probe / "worker_entry.py").write_text(PROBE)

    def begin(gpus: int, *arguments: str, **variables: str) -> Container:
        tool = programs / "nvidia-smi"
        tool.write_text("#!/bin/sh\n" + "".join(f"echo 'GPU {number}: a GPU'\n" for number in range(gpus)))
        tool.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DC_", "CUDA_", "HIP_", "COMFYUI"))}
        ours = {
            "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": f"{probe}:{ROOT}", "PROBE_FOLDER": str(folder),
            "TMPDIR": str(tmp_path), "DC_HOST": "pc1", "DC_ENGINE": "comfyui",
        }  # fmt: skip
        command = [sys.executable, str(ROOT / "docker/start_workers.py"), *arguments]
        environment = {**kept, **ours, **variables}
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        # cwd: `python -m` looks there first, and the project's own folder has the real worker_entry.py.
        running.append(Container(subprocess.Popen(command, env=environment, cwd=tmp_path, **output), folder))
        return running[-1]

    yield begin
    for container in running:
        if container.process.poll() is None:
            container.end()
        container.process.communicate()


def test_each_gpu_gets_a_worker_of_its_own(start: Callable[..., Container], tmp_path: Path) -> None:
    container = start(2, "--require-gpu")
    assert [device for _, device in container.wait_starts("pc1-cuda0", 1)] == ["cuda:0"]
    assert [device for _, device in container.wait_starts("pc1-cuda1", 1)] == ["cuda:1"]
    assert (tmp_path / "dc-worker-names").read_text().split() == ["pc1-cuda0", "pc1-cuda1"], "what the health check asks for"
    assert container.end() == 0


def test_a_worker_that_ends_is_started_again_and_the_others_go_on(start: Callable[..., Container]) -> None:
    container = start(2)
    container.wait_starts("pc1-cuda0", 1)
    container.wait_starts("pc1-cuda1", 1)
    (container.folder / "pc1-cuda0.die").touch()
    (first, _), (second, _) = container.wait_starts("pc1-cuda0", 2)
    assert first != second
    assert len(container.starts("pc1-cuda1")) == 1
    assert container.end() == 0


def test_every_worker_is_ended_before_the_container_ends(start: Callable[..., Container]) -> None:
    container = start(2)
    pids = [container.wait_starts(name, 1)[0][0] for name in ("pc1-cuda0", "pc1-cuda1")]
    assert container.end() == 0
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_gpu_container_that_sees_no_gpu_says_so_and_ends(start: Callable[..., Container]) -> None:
    container = start(0, "--require-gpu")
    output, _ = container.process.communicate(timeout=TIMEOUT_S)
    assert container.process.returncode == 78
    assert "NVIDIA Container Toolkit" in output


def test_the_cpu_is_used_where_that_was_asked_for(start: Callable[..., Container]) -> None:
    container = start(0, "--require-gpu", DC_DEVICE="cpu", DC_WORKER_NAME="mine")
    assert [device for _, device in container.wait_starts("mine", 1)] == ["cpu"]
    assert container.end() == 0


def test_a_wrong_setting_ends_it_with_its_reason(start: Callable[..., Container]) -> None:
    container = start(1, DC_LEASE_TTL_S="soon")
    output, _ = container.process.communicate(timeout=TIMEOUT_S)
    assert container.process.returncode == 2
    assert "DC_LEASE_TTL_S" in output
