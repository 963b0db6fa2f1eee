"""The first file of an engine process, run by an interpreter that lacks what the engine needs."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from distributed_comfy.engine import boot


def test_all_missing_packages_are_told_at_once_in_one_line_with_one_command(tmp_path: Path) -> None:
    there = [name for name in boot.NEEDED if name not in ("redis", "pydantic_settings")]
    for name in there:
        (tmp_path / f"{name}.py").touch()
    log = tmp_path / "engine.log"
    # -I -S: without site-packages, as an interpreter of another version sees it.
    command = [sys.executable, "-I", "-S", boot.__file__, str(log), str(tmp_path)]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, check=False, timeout=30).returncode == boot.EXIT_CANNOT_IMPORT
    (line,) = log.read_text().splitlines()
    assert line == (
        "the engine's interpreter cannot import redis (No module named 'redis'), pydantic_settings (No module named 'pydantic_settings'); "
        f"run: {sys.executable} -m pip install redis pydantic-settings"
    )
