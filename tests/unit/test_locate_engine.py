"""Where a worker finds ComfyUI, an interpreter and a device."""
from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from distributed_comfy.engine.locate import (
    choose_device,
    choose_engine,
    default_threads,
    device_environment,
    find_comfyui,
    find_interpreter,
)
from distributed_comfy.errors import SettingInvalid
from distributed_comfy.settings import Settings


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "ComfyUI"
    root.mkdir()
    for name in ("main.py", "nodes.py"):
        (root / name).touch()
    return root


@pytest.fixture(autouse=True)
def an_empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("COMFYUI_PATH", "DC_COMFYUI_PYTHON", "DC_ENGINE", "DC_DEVICE"):
        monkeypatch.delenv(name, raising=False)


def program(path: Path, text: str = "#!/bin/sh\nexit 0\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_setting_wins_over_the_home_folder(tree: Path, tmp_path: Path) -> None:
    assert find_comfyui(Settings()) is None
    (tmp_path / "home" / "comfy").mkdir(parents=True)
    (tmp_path / "home" / "comfy" / "ComfyUI").symlink_to(tree)
    assert find_comfyui(Settings()) == tmp_path / "home" / "comfy" / "ComfyUI"
    assert find_comfyui(Settings(comfyui_path=tree)) == tree


def test_a_setting_that_names_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingInvalid, match="COMFYUI_PATH"):
        find_comfyui(Settings(comfyui_path=tmp_path))


def test_the_engine_is_comfyui_where_a_tree_is(tree: Path) -> None:
    assert choose_engine(Settings()) == "builtin"
    assert choose_engine(Settings(comfyui_path=tree)) == "comfyui"
    assert choose_engine(Settings(comfyui_path=tree, engine="builtin")) == "builtin"


def test_the_interpreter_is_the_setting_then_the_trees_own_then_this_one(tree: Path, tmp_path: Path) -> None:
    assert find_interpreter(Settings(), None) == sys.executable
    assert find_interpreter(Settings(), tree) == sys.executable
    embedded = program(tree.parent / "python_embeded" / "python.exe")
    assert find_interpreter(Settings(), tree) == str(embedded)
    own = program(tree / "venv" / "bin" / "python")
    assert find_interpreter(Settings(), tree) == str(own)
    chosen = program(tmp_path / "my" / "python")
    assert find_interpreter(Settings(comfyui_python=str(chosen)), tree) == str(chosen)
    with pytest.raises(SettingInvalid, match="DC_COMFYUI_PYTHON"):
        find_interpreter(Settings(comfyui_python="/nowhere/python"), tree)


def test_a_venv_is_not_resolved_to_the_interpreter_behind_it(tree: Path) -> None:
    link = tree / ".venv" / "bin" / "python"
    link.parent.mkdir(parents=True)
    link.symlink_to(sys.executable)
    assert find_interpreter(Settings(), tree) == str(link)


@pytest.mark.parametrize(
    ("answer", "status", "device"),
    [("GPU 0: NVIDIA H100", 0, "cuda:0"), ("", 0, "cpu"), ("GPU lost", 9, "cpu")],
    ids=["gpu", "none", "fails"],
)
def test_the_drivers_tool_decides_whether_there_is_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, status: int, device: str
) -> None:
    tool = program(tmp_path / "bin" / "nvidia-smi", f"#!/bin/sh\necho '{answer}'\nexit {status}\n")
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}/bin")
    monkeypatch.setattr(sys, "platform", "linux")
    assert choose_device(Settings(), "comfyui") == device
    assert choose_device(Settings(), "builtin") == "cpu"
    assert choose_device(Settings(device="cuda:3"), "builtin") == "cuda:3"


def test_a_device_becomes_the_only_one_that_is_seen() -> None:
    assert device_environment("cuda:1") == {"CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "1"}
    assert device_environment("cuda:0,1")["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert device_environment("cpu") == {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}
    assert device_environment("xpu:2") == {"ONEAPI_DEVICE_SELECTOR": "level_zero:2"}
    assert device_environment("mps") == {}


def test_numbers_count_the_devices_that_are_left_to_this_process() -> None:
    inherited = {"CUDA_VISIBLE_DEVICES": "4,GPU-8a1c"}
    assert device_environment("cuda:1", inherited)["CUDA_VISIBLE_DEVICES"] == "GPU-8a1c"
    with pytest.raises(SettingInvalid, match="cuda:2 is not among the 2 devices"):
        device_environment("cuda:2", inherited)


def test_threads_are_shared_among_the_workers_of_a_host() -> None:
    assert default_threads(1) == os.cpu_count()
    assert default_threads(10_000) == 1
