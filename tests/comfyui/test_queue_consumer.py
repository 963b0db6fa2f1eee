"""Our consumer at ComfyUI's own queue, in ComfyUI's own interpreter."""
from __future__ import annotations

import json
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui.comfy_process import PROJECT, Comfy


@pytest.fixture(scope="module")
def happened(comfy: Comfy) -> dict[str, Any]:
    """Case -> what it gave, see queue_script.py."""
    script = str(Path(__file__).with_name("queue_script.py"))
    command = [comfy.python, script, str(comfy.root), str(PROJECT), sysconfig.get_path("purelib")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_an_idle_master_keeps_its_next_prompt(happened: dict[str, Any]) -> None:
    assert happened["an_idle_master_keeps_its_next"] == [[["b", "c"], None], "b", ["c"], "a", ["c"]]


def test_a_busy_master_leaves_all_in_comfyuis_order(happened: dict[str, Any]) -> None:
    assert happened["a_busy_master_leaves_all_in_order_of_priority"] == ["front", "b", "c"]


def test_what_was_deleted_meanwhile_is_not_taken(happened: dict[str, Any]) -> None:
    assert happened["what_was_deleted_is_not_taken"] == [None, None, []]


def test_counts_and_history_are_those_that_comfyui_makes(happened: dict[str, Any]) -> None:
    shown, entry, left, told, has_key = happened["counts_and_history_are_comfyuis"]
    assert (shown, left, told) == ([["mine", "p"], [], 2], 1, [1, 1, 2, 2, 1])
    messages = [["execution_start", {"prompt_id": "p", "timestamp": 1}]]
    assert entry["status"] == {"status_str": "success", "completed": True, "messages": messages}
    assert entry["prompt"][:2] == [1, "p"] and entry["prompt"][3] == {"client_id": "c"}, "no key in the history"
    assert has_key, "what ComfyUI queued is not changed"


def test_what_comes_back_has_its_old_place_and_the_master_hears_of_it(happened: dict[str, Any]) -> None:
    assert happened["what_comes_back_has_its_old_place_and_wakes_the_master"] == [["p", "q"], "q"]


def test_several_consumers_take_each_prompt_once(happened: dict[str, Any]) -> None:
    assert happened["many_consumers_take_each_prompt_once"] == [500, 500, 0, 500]


def test_a_queue_that_is_not_as_known_is_left_alone(happened: dict[str, Any]) -> None:
    before, replaced, lacking = happened["a_queue_of_a_pack_is_left_alone"]
    assert before == "" and "replaced the queue's get" in replaced and "currently_running" in lacking
