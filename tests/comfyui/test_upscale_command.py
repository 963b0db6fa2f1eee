"""The shipped upscale as a command with workers of its own, one of which dies on the way."""
from __future__ import annotations

from pathlib import Path

import psutil

from distributed_comfy.collector.spool import SPOOL_FOLDER
from tests.cluster_fixtures import THREADS
from tests.comfyui.comfy_process import PROJECT, Comfy
from tests.command_line import CommandLine, until

FIRST_TILE = 2


def test_a_run_whose_worker_is_killed_saves_the_files_of_an_undisturbed_one(comfy: Comfy, base_directory: Path, tmp_path: Path) -> None:
    line = CommandLine(
        tmp_path, COMFYUI_PATH=str(comfy.root), DC_COMFYUI_PYTHON=comfy.python, DC_COMFYUI_BASE_DIRECTORY=str(base_directory),
        DC_THREADS=str(THREADS), DC_LEASE_TTL_S="3",
    )  # fmt: skip
    command = ("run", str(PROJECT / "examples" / "upscale_tiny.json"), "--workers", "2")
    disturbed = line.start(*command, "--out", "disturbed")
    spool = line.folder / "disturbed" / SPOOL_FOLDER
    until(lambda: disturbed.poll() is not None or any(int(path.stem) >= FIRST_TILE for path in spool.glob("*/items/*.json")), 120)
    workers = [child for child in psutil.Process(disturbed.pid).children() if "worker" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    ended = line.finish(disturbed, 150)
    assert ended.status == 0, ended.err
    undisturbed = line.run(*command, "--out", "undisturbed", timeout_s=150)
    assert undisturbed.status == 0, undisturbed.err
    assert files(line, "disturbed") == files(line, "undisturbed") and len(files(line, "disturbed")) == 2


def files(line: CommandLine, folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (line.folder / folder).glob("*.png")}
