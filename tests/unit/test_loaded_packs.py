"""What a ComfyUI has loaded, over stand-ins of its modules; tests/comfyui asks a real one."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from distributed_comfy.engine.comfyui.loaded import loaded_models, pack_versions
from distributed_comfy.engine.comfyui.model_folders import FolderListings
from distributed_comfy.state.status import LoadedModel

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_pack_has_its_commit_else_its_version_else_neither(tmp_path: Path) -> None:
    for name in ("with_commit", "with_version", "broken", "plain", "comfy_extras"):
        (tmp_path / name).mkdir()
    git = tmp_path / "with_commit" / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "refs" / "heads" / "main").write_text(f"{COMMIT}\n")
    declared = '[tool.x]\nversion = "9"\n[project]\nname = "p"\nversion = "1.4.2"\n[other]\n'
    (tmp_path / "with_version" / "pyproject.toml").write_text(declared)
    (tmp_path / "broken" / "pyproject.toml").write_bytes(b"[project]\nversion = \xff\n")
    loaded = {name: str(tmp_path / name) for name in ("with_commit", "with_version", "broken", "plain")}
    loaded[str(tmp_path / "single")] = str(tmp_path)  # of a pack that is one file ComfyUI notes the folder around it
    loaded[str(tmp_path / "comfy_extras" / "nodes_x")] = str(tmp_path / "comfy_extras")
    nodes = SimpleNamespace(LOADED_MODULE_DIRS=loaded)
    assert pack_versions(nodes) == {"broken": "", "plain": "", "single": "", "with_commit": COMMIT[:10], "with_version": "1.4.2"}
    assert pack_versions(SimpleNamespace()) == {}, "a ComfyUI that does not note it"


def entry(name: str, size: int, loaded: int) -> Any:
    patcher = SimpleNamespace(model=type(name, (), {})(), model_size=lambda: size, loaded_size=lambda: loaded)
    return SimpleNamespace(model=patcher)


def test_models_are_named_by_class_and_one_that_has_gone_is_left_out() -> None:
    management = SimpleNamespace(current_loaded_models=[entry("SDXL", 500, 300), SimpleNamespace(model=None), entry("VAE", 20, 20)])
    assert loaded_models(management) == (LoadedModel("SDXL", 500, 300), LoadedModel("VAE", 20, 20))
    assert loaded_models(SimpleNamespace()) == () == loaded_models(SimpleNamespace(current_loaded_models=[object()]))


class FolderPaths:
    """As much of ComfyUI's module as is used."""

    def __init__(self) -> None:
        self.files = {"checkpoints": ["a.ckpt", "b.ckpt"], "loras": ["l.safetensors"], "vae": [], "gone": [], "custom_nodes": ["x"]}
        self.folder_names_and_paths = dict.fromkeys(self.files)

    def get_filename_list(self, folder_name: str) -> list[str]:
        if folder_name == "gone":
            raise FileNotFoundError(folder_name)
        return list(self.files[self.map_legacy(folder_name)])

    def map_legacy(self, folder_name: str) -> str:
        return {"ckpt": "checkpoints"}.get(folder_name, folder_name)


def test_an_input_shows_the_folder_that_its_class_listed() -> None:
    paths = FolderPaths()
    original = paths.get_filename_list
    listings = FolderListings(paths)
    with listings.noted():
        assert listings.read() == {"checkpoints": ["a.ckpt", "b.ckpt"], "loras": ["l.safetensors"], "vae": [], "gone": []}
        assert listings.take() == []
        paths.get_filename_list("ckpt")
        paths.get_filename_list("loras")
        asked = listings.take()
    assert asked == ["checkpoints", "loras"] and paths.get_filename_list == original
    assert listings.shown_by(["None", "l.safetensors"], asked) == "loras"
    assert listings.shown_by(["a.ckpt", "b.ckpt"], asked) == "checkpoints"
    assert listings.shown_by(["default", "fp8"], asked) == ""


def test_a_class_that_got_the_function_before_us_is_told_by_its_values() -> None:
    listings = FolderListings(FolderPaths())
    listings.read()
    assert listings.shown_by(["a.ckpt", "b.ckpt", "more"], []) == "checkpoints"
    assert listings.shown_by(["euler", "ddim"], []) == ""


def test_an_empty_list_is_of_an_empty_folder_that_was_listed() -> None:
    listings = FolderListings(FolderPaths())
    listings.read()
    assert listings.shown_by([], ["vae"]) == "vae" and listings.shown_by([], []) == ""
    assert listings.shown_by(["pixel_space"], ["vae"]) == "", "its own values only: nobody knows"
