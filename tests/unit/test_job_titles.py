"""How jobs of a ComfyUI are called."""
from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distributed_comfy.comfyui.host import ComfyHost
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


def test_a_saved_workflow_is_called_like_its_file(tmp_path: Path) -> None:
    ids = ["0b7e9a52-6f6f-4a53-8d1a-2f4b8b5f0c11", "0b7e9a52-6f6f-4a53-8d1a-2f4b8b5f0c22"]
    folder, others = tmp_path / "default" / "workflows" / "mine", tmp_path / "somebody" / "workflows"
    folder.mkdir(parents=True)
    others.mkdir(parents=True)
    (others / "Theirs.json").write_text(json.dumps({"id": ids[0]}))
    for age_s, (name, content) in enumerate((
        ("Lighthouse.json", {"id": ids[0], "revision": 0, "nodes": []}), ("Copy.json", {"id": ids[0]}), ("Other.json", {"id": ids[1]}),
        ("old.json", {"last_node_id": 1, "id": ids[1]}),
    )):  # fmt: skip
        (folder / name).write_text(json.dumps(content))
        os.utime(folder / name, (AT_S - age_s, AT_S - age_s))
    (folder / "broken.json").write_bytes(b"\xff{")
    (folder / "gone.json").symlink_to(folder / "nowhere")
    sent = {"workflow": {"id": ids[0], "name": "inside"}}
    assert title_of(SAVE, ["9"], sent, AT_S, user_folder=tmp_path / "default") == "Lighthouse, 14:05"
    assert title_of(SAVE, ["9"], {"workflow": {"id": ids[1]}}, AT_S, user_folder=tmp_path / "default") == "Other, 14:05"
    for unknown in ("", "0b7e9a52-6f6f-4a53-8d1a-2f4b8b5f0c33", 5, None):
        assert title_of(SAVE, ["9"], {"workflow": {"id": unknown}}, AT_S, user_folder=tmp_path / "default") == "Save Image, 14:05"
    assert title_of(SAVE, ["9"], sent, AT_S, user_folder=tmp_path / "none") == "inside, 14:05"


def test_only_where_a_comfyui_has_one_user_it_is_known_whose_folder_to_look_into(tmp_path: Path) -> None:
    def folder_of(**options: bool) -> Path | None:
        paths: Any = SimpleNamespace(get_user_directory=lambda: str(tmp_path))
        unused: Any = None
        return ComfyHost(unused, unused, unused, paths, unused, SimpleNamespace(**options), tmp_path, "0").user_folder

    assert folder_of() == folder_of(multi_user=False) == tmp_path / "default" and folder_of(multi_user=True) is None


def test_the_name_that_a_user_gave_to_files_comes_before_titles() -> None:
    mine = {**SAVE, "10": node("SaveImage", "Save Image", filename_prefix="ada/portrait"), "11": node("PreviewImage")}
    assert title_of(mine, ["10"], {}, AT_S) == "ada/portrait, 14:05"
    assert title_of(mine, ["9", "10", "11"], {}, AT_S) == "Save Image, ada/portrait and 1 more, 14:05"
    linked = {"9": node("SaveImage", filename_prefix=["3", 0])}
    assert title_of(linked, ["9", "no such node"], {}, AT_S) == "SaveImage, 14:05"


def test_a_title_is_one_line_and_not_long() -> None:
    assert title_of({}, [], {}, AT_S) == "Prompt, 14:05"
    assert len(title_of(SAVE, ["9"], {"workflow": {"name": "x" * 5000}}, AT_S)) < 100
