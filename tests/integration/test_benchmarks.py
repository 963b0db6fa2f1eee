"""``python -m benchmarks --quick`` works and leaves nothing behind; how fast anything is, no test says."""
from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.__main__ import BENCHMARKS

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.redis, pytest.mark.timeout(600)]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, with everything temporary in ``folder``, in a shell that is set up for a cluster that does not answer."""
    environment = {**os.environ, "TMPDIR": str(folder), "DC_REDIS_URL": "redis://127.0.0.1:1/0"}
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580, check=False)


def processes_of(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            if process.environ().get("TMPDIR") == str(folder):
                found.append(" ".join(process.info["cmdline"] or []))
        except psutil.Error:  # it has ended, or belongs to somebody else
            continue
    return found


def test_a_quick_run_measures_everything_and_leaves_nothing(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    numbers, report = tmp_path / "out" / "numbers.json", tmp_path / "out" / "report.md"
    done = run(temporary, "--quick", "--json", str(numbers), "--md", str(report))
    assert done.returncode == 0, done.stderr
    assert processes_of(temporary) == []
    assert list(temporary.iterdir()) == []

    found = json.loads(numbers.read_text())
    assert [section["name"] for section in found["sections"]] == list(BENCHMARKS)
    rows = [row for section in found["sections"] for row in section["rows"]]
    assert all(math.isfinite(row["value"]) and row["value"] > 0 for row in rows), rows
    assert all(row["met"] == (row["value"] <= row["target"]) for row in rows if row["target"] is not None)
    assert sum(row["target"] is not None for row in rows) >= 15
    text = report.read_text()
    assert "A quick run" in text
    assert [row["name"] for row in rows if row["name"] not in text] == []


def test_a_benchmark_that_there_is_not_is_refused_with_those_there_are(tmp_path: Path) -> None:
    done = run(tmp_path, "dispatch", "luck")
    assert done.returncode == 2
    assert "luck" in done.stderr
    assert all(name in done.stderr for name in BENCHMARKS)
