"""Which prompts may leave the master, and why others stay."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distributed_comfy.comfyui.ordinary_rules import Suitable, judge
from distributed_comfy.messages import Prompt
from tests.prompts import capability, node, out, txt2img, without


class Plain:
    """A node class as ComfyUI has them."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}, "hidden": {"prompt": "PROMPT"}}


class Paid(Plain):
    API_NODE = True


class WithKey(Plain):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}, "hidden": {"key": "API_KEY_COMFY_ORG"}}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    made = {name: tmp_path / name for name in ("input", "output", "temp")}
    for folder in made.values():
        folder.mkdir()
    return made


def ordinary() -> Prompt:
    """Text to image with stock nodes alone."""
    prompt = without(txt2img(), "seed", "collect")
    prompt["sample"]["inputs"]["seed"] = 5
    prompt["save"]["inputs"]["images"] = out("decode")
    return prompt


def judged(prompt: Prompt, folders: dict[str, Path], *targets: str, **classes: type) -> Suitable | str:
    mappings = {one["class_type"]: Plain for one in prompt.values()} | classes
    return judge(prompt, targets or ("save",), mappings, folders, [capability()])


def test_a_prompt_of_stock_nodes_may_run_where_its_classes_and_models_are(folders: dict[str, Path]) -> None:
    found = judged(ordinary(), folders)
    assert isinstance(found, Suitable)
    assert found.requirement.engine == "comfyui"
    assert ("CheckpointLoaderSimple", "ckpt_name", "a.safetensors") in found.requirement.choices


@pytest.mark.parametrize(("name", "found"), [("KSampler", Paid), ("KSampler", WithKey)])
def test_what_pays_with_the_users_account_stays(folders: dict[str, Path], name: str, found: type) -> None:
    assert "account" in str(judged(ordinary(), folders, **{name: found}))


@pytest.mark.parametrize("class_type", ["SaveImageWebsocket", "CheckpointSave"])
def test_what_is_for_this_comfyui_alone_stays(folders: dict[str, Path], class_type: str) -> None:
    prompt = ordinary()
    prompt["more"] = node(class_type, images=out("decode"))
    assert class_type in str(judged(prompt, folders, "save", "more"))
    assert isinstance(judged(prompt, folders, "save"), Suitable), "only what is to run counts"


def test_a_prompt_with_nodes_of_ours_stays(folders: dict[str, Path]) -> None:
    prompt = without(txt2img(), "collect")
    prompt["save"]["inputs"]["images"] = out("decode")
    assert "DistributedSeed" in str(judged(prompt, folders))
    assert "DistributedSeed" in str(judged(txt2img(), folders))


def test_files_are_looked_for_in_the_folder_that_the_prompt_names(folders: dict[str, Path]) -> None:
    prompt = {"load": node("LoadImage", image="a.png [output]"), "save": node("SaveImage", images=out("load"), filename_prefix="x")}
    (folders["input"] / "a.png").touch()
    assert "a.png" in str(judged(prompt, folders))
    (folders["output"] / "a.png").touch()
    assert isinstance(judged(prompt, folders), Suitable)


def test_only_the_outputs_that_are_to_run_count(folders: dict[str, Path]) -> None:
    prompt = ordinary()
    prompt["load"] = node("LoadImage", image="gone.png")
    prompt["other"] = node("SaveImage", images=out("load"), filename_prefix="y")
    assert isinstance(judged(prompt, folders, "save"), Suitable)
    assert "gone.png" in str(judged(prompt, folders, "save", "other"))


@pytest.mark.parametrize(
    ("class_type", "named"),
    [("LoadImage", "image"), ("LoadImageMask", "image"), ("LoadLatent", "latent"), ("LoadAudio", "audio"), ("LoadVideo", "file")],
)
@pytest.mark.parametrize("value", ["../secret.txt", "../secret.txt [output]", "..\\secret.txt [temp]", "{base}/secret.txt"])
def test_what_loads_a_file_from_outside_of_comfyuis_folders_stays(
    folders: dict[str, Path], tmp_path: Path, class_type: str, named: str, value: str
) -> None:
    (tmp_path / "secret.txt").touch()
    prompt = {
        "load": node(class_type, **{named: value.format(base=tmp_path)}),
        "save": node("SaveImage", images=out("load"), filename_prefix="x"),
    }
    assert "outside of" in str(judged(prompt, folders))
