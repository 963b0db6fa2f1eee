"""The node classes in a real ComfyUI: its validation accepts them anywhere, its executor runs them as planned."""
from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def report(require_service: Callable[[str, str], Any]) -> dict[str, Any]:
    """What `run_cut_nodes.py` found."""
    found = subprocess.run(["sh", str(ROOT / "scripts" / "find_comfyui.sh")], capture_output=True, text=True)
    if found.returncode:
        require_service("a ComfyUI tree", found.stderr.strip())
    folder, python, _ = found.stdout.strip().split("\t")
    command = [python, str(ROOT / "tests" / "comfyui" / "run_cut_nodes.py")]
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_a_sink_takes_a_link_of_any_type(report: dict[str, Any]) -> None:
    assert len(report["sinks"]) == 11
    assert all(report["sinks"].values()), report["sinks"]


def test_a_source_feeds_an_input_of_any_type(report: dict[str, Any]) -> None:
    assert len(report["sources"]) == 7
    assert all(report["sources"].values()), report["sources"]


def test_declarations_are_plain_json(report: dict[str, Any]) -> None:
    assert report["shown"]["DistributedSink"]["optional"]["value"] == ["*"]


def test_a_sink_takes_the_list_that_the_graph_delivers(report: dict[str, Any]) -> None:
    assert report["item"]
    assert report["list"] == [[[2, 4, 4, 3], 0.0], [[2, 4, 4, 3], 1.0], [[2, 4, 4, 3], 2.0]]


def test_a_new_claim_runs_the_sink_again_and_nothing_upstream(report: dict[str, Any]) -> None:
    assert report["again"]
    assert report["upstream_runs"] == 1


def test_a_blocked_value_leaves_the_sink_out_although_comfyui_reports_success(report: dict[str, Any]) -> None:
    assert report["blocked"] == [True, False]


def test_a_source_hands_on_one_batch_and_silence(report: dict[str, Any]) -> None:
    assert report["last"]
    assert report["batch"] == [[[5, 4, 4, 3], 0.75]]
    assert report["silence"] == [[[1, 2, 1], 44100]] * 2


def test_an_edge_hands_on_the_list_it_captured(report: dict[str, Any]) -> None:
    assert report["edge_list"] == [[6, 4, 4, 3]] * 2


def test_a_collector_that_got_nothing_stops_what_is_behind_it(report: dict[str, Any]) -> None:
    assert report["nothing"] == [True, []]
