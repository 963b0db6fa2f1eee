"""Starting a tree: what it takes over, what it keeps apart, and how it refuses."""
from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from distributed_comfy.messages import to_plain
from tests.comfyui.comfy_process import Comfy, EngineClient
from tests.prompts import node, out

StartEngine = Callable[..., EngineClient]


def test_two_engines_on_one_base_directory_share_models_and_nothing_else(engine: EngineClient, start_engine: StartEngine) -> None:
    other = start_engine()
    prompt = {"noise": node("TinyNoise", size=8, batch_size=1, seed=1), "save": node("SaveImage", images=out("noise"), filename_prefix="x")}
    paths = [Path(one.run(prompt, "save")["files"][0][-1]) for one in (engine, other)]
    assert all(path.is_file() for path in paths)
    assert all(one.options.folder in path.parents for one, path in zip((engine, other), paths, strict=True))
    assert to_plain(engine.describe()) == to_plain(other.describe())
    other.close()


def test_nothing_is_written_into_the_tree_or_the_base_directory(comfy: Comfy, base_directory: Path, engine: EngineClient) -> None:
    engine.run({"noise": node("TinyNoise", size=8, batch_size=1, seed=1), "show": node("PreviewImage", images=out("noise"))}, "show")
    assert not (base_directory / "output").exists() and not (base_directory / "temp").exists()
    assert not [path for path in (base_directory / "input").rglob("*") if path.is_file()]
    assert not (comfy.root / "temp").exists()


def test_leftovers_of_an_earlier_engine_are_removed(start_engine: StartEngine, tmp_path: Path) -> None:
    for folder in ("output", "temp", "outgoing/claim0/0"):
        (tmp_path / "work" / folder).mkdir(parents=True)
        (tmp_path / "work" / folder / "old_00001_.png").write_bytes(b"old")
    own = start_engine(folder=tmp_path / "work", log_file=tmp_path / "log", cache_folder=tmp_path / "cache")
    assert not list((tmp_path / "work").rglob("old*"))
    own.close()


def test_api_nodes_and_custom_nodes_follow_the_arguments(engine: EngineClient, start_engine: StartEngine) -> None:
    paid = "KlingTextToVideoNode"
    assert {paid, "TinyNoise"} & set(engine.describe().node_classes) == {"TinyNoise"}
    own = start_engine("--disable-all-custom-nodes", "--enable-api-nodes")
    capability = own.describe()
    assert {paid, "TinyNoise"} & set(capability.node_classes) == {paid}
    assert capability.device_class.endswith(", --disable-all-custom-nodes")
    own.close()


def test_extra_model_paths_are_honoured(start_engine: StartEngine, tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "mine.safetensors").write_bytes(b"")
    (tmp_path / "paths.yaml").write_text(f"mine:\n  base_path: {tmp_path}\n  loras: loras\n")
    own = start_engine("--extra-model-paths-config", str(tmp_path / "paths.yaml"))
    capability = own.describe()
    assert capability.choice_lists[capability.choices["LoraLoader"]["lora_name"]] == ("mine.safetensors",)
    own.close()


def test_a_worker_registers_its_own_classes_over_those_of_a_pack(engine: EngineClient) -> None:
    assert "node packs of this ComfyUI also define DistributedSink" in engine.log()


def _start_error(comfy: Comfy, tmp_path: Path, **changes: str) -> str:
    """What starting an engine in a fresh process raises."""
    from tests.comfyui.comfy_process import PROJECT

    code = f"""
import sys; sys.path.insert(0, {str(PROJECT)!r})
from pathlib import Path
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.engine.comfyui.tree import open_tree
facts = dict(engine="comfyui", worker="w", python="", folder=Path({str(tmp_path / "work")!r}), log_file=Path(), blob_url="",
             comfyui_path=Path({changes.get("tree", str(comfy.root))!r}), comfyui_args={changes.get("arguments", ())!r},
             device={changes.get("device", "cpu")!r})
{changes.get("before", "")}
try:
    open_tree(EngineOptions(**facts))
except Exception as error:
    print("RAISED", type(error).__name__, error)
"""
    done = subprocess.run([comfy.python, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    return next((line for line in done.stdout.splitlines() if line.startswith("RAISED")), done.stdout[-500:] + done.stderr[-2000:])


def test_a_folder_without_comfyui_is_named_with_the_remedy(comfy: Comfy, tmp_path: Path) -> None:
    line = _start_error(comfy, tmp_path, tree=str(tmp_path))
    assert line.startswith("RAISED EngineStartFailed") and str(tmp_path) in line and "COMFYUI_PATH" in line


def test_arguments_that_comfyui_refuses_are_an_error_and_not_an_exit(comfy: Comfy, tmp_path: Path) -> None:
    line = _start_error(comfy, tmp_path, arguments=("--no-such-flag",))  # type: ignore[arg-type]
    assert line.startswith("RAISED EngineGaveUp") and "status 2" in line


def test_a_device_that_torch_was_not_built_for_is_one_line_with_the_remedy(comfy: Comfy, tmp_path: Path) -> None:
    asked = [comfy.python, "-c", "import torch; print(torch.version.cuda or getattr(torch.version, 'hip', None))"]
    if subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip() != "None":
        pytest.skip("this torch is built for GPUs")
    line = _start_error(comfy, tmp_path, device="cuda:0")
    assert line.startswith(f"RAISED EngineStartFailed the engine did not start: {comfy.python} has torch ")
    assert "which is built without CUDA, and so cannot use cuda:0; use --device cpu, or install for " in line


def test_a_package_that_the_interpreter_lacks_is_named_with_the_command(comfy: Comfy, tmp_path: Path) -> None:
    line = _start_error(comfy, tmp_path, before="sys.modules['einops'] = None")
    assert "ComfyUI needs einops, which " in line
    assert line.endswith(f"; run: {comfy.python} -m pip install -r {comfy.root}/requirements.txt")


def test_a_foreign_module_in_place_of_comfyuis_is_named(comfy: Comfy, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "server.py").write_text("PromptServer = None\n")
    line = _start_error(comfy, tmp_path, before=f"sys.path.insert(0, {str(tmp_path / 'foreign')!r}); import server")
    assert line.startswith("RAISED EngineStartFailed") and "'server'" in line and "foreign" in line
