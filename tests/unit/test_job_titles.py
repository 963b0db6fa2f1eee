"""How jobs of a ComfyUI are called."""
from __future__ import annotations

import time
from typing import Any

import pytest

from distributed_comfy.comfyui.titles import title_of

AT_S = time.mktime((2026, 3, 4, 14, 5, 59, 0, 0, -1))


def node(class_type: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    """As the editor sends it."""
    return {"class_type": class_type, "inputs": inputs, **({"_meta": {"title": title}} if title else {})}


SAVE = {"9": node("SaveImage", "Save Image", images=["8", 0], filename_prefix="ComfyUI"), "8": node("VAEDecode", "VAE Decode")}


@pytest.mark.parametrize(
    "workflow", [{"name": "Lighthouse"}, {"extra": {"name": " Lighthouse\n"}}, {"extra": {"ds": {}, "info": {"name": "Lighthouse"}}}]
)
def test_a_job_is_called_like_its_workflow(workflow: dict[str, Any]) -> None:
    assert title_of(SAVE, ["9"], {"workflow": workflow}, AT_S) == "Lighthouse, 14:05"


@pytest.mark.parametrize(
    "extra",
    [None, [], {}, {"workflow": None}, {"workflow": 5}, {"workflow": {"extra": [], "name": 7}}, {"workflow": {"extra": {"info": "x"}}}],
)
def test_a_workflow_without_a_name_is_called_like_what_it_makes(extra: Any) -> None:
    assert title_of(SAVE, ["9"], extra, AT_S) == "Save Image, 14:05"


def test_the_name_that_a_user_gave_to_files_comes_before_titles() -> None:
    mine = {**SAVE, "10": node("SaveImage", "Save Image", filename_prefix="ada/portrait"), "11": node("PreviewImage")}
    assert title_of(mine, ["10"], {}, AT_S) == "ada/portrait, 14:05"
    assert title_of(mine, ["9", "10", "11"], {}, AT_S) == "Save Image, ada/portrait and 1 more, 14:05"
    linked = {"9": node("SaveImage", filename_prefix=["3", 0])}
    assert title_of(linked, ["9", "no such node"], {}, AT_S) == "SaveImage, 14:05"


def test_a_title_is_one_line_and_not_long() -> None:
    assert title_of({}, [], {}, AT_S) == "Prompt, 14:05"
    assert len(title_of(SAVE, ["9"], {"workflow": {"name": "x" * 5000}}, AT_S)) < 100
