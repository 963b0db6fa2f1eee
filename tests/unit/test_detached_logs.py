"""The logs of detached runs: those that nobody has written to for a month go with the next such run."""
from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from distributed_comfy.errors import RunInterrupted
from distributed_comfy.orchestrator.detach import start_detached
from distributed_comfy.settings import read_settings


def test_old_logs_go_and_others_stay(tmp_path: Path) -> None:
    folder = tmp_path / "detached"
    folder.mkdir()
    for name, days in (("old.log", 31), ("young.log", 29), ("old.txt", 99)):
        (folder / name).write_text(name)
        os.utime(folder / name, (time.time() - days * 86400,) * 2)
    stop = threading.Event()
    stop.set()
    with pytest.raises(RunInterrupted):
        start_detached(read_settings(runtime_dir=tmp_path), ["no.json"], stop)
    assert {path.name for path in folder.iterdir()} >= {"young.log", "old.txt"} and not (folder / "old.log").exists()
