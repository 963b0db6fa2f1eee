"""The door in custom_nodes: found, written, looked at, removed; whatever is not ours stays as it was."""
from __future__ import annotations

import configparser
import json
import os
import runpy
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from distributed_comfy import __version__
from distributed_comfy.comfyui import interpreter
from distributed_comfy.comfyui.installing import (
    DOOR_NAME,
    Place,
    door_state,
    find_place,
    install_door,
    nearby_folder,
    other_packs,
    remove_door,
    repositories,
)
from distributed_comfy.comfyui.interpreter import ask, comfyui_python, package_source
from distributed_comfy.errors import ComfyUINotFound, InstallRefused, PackNotImportable, SettingInvalid
from distributed_comfy.settings import Settings
from tests.command_line import CommandLine

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "distributed-comfy==1"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder that looks like ComfyUI's."""
    tree = tmp_path / "portable" / "ComfyUI"
    (tree / "custom_nodes").mkdir(parents=True)
    for name in ("main.py", "nodes.py"):
        (tree / name).touch()
    return tree


def everything(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- where ---------------------------------------------------------------------------------------------------------------
def test_comfyui_is_meant_by_its_folder_that_of_a_portable_one_its_base_and_its_custom_nodes(tree: Path, tmp_path: Path) -> None:
    for folder in (tree, tree.parent, tree / "custom_nodes"):
        assert find_place(folder, None) == find_place(tree, None)
    base = tmp_path / "base"
    (base / "custom_nodes").mkdir(parents=True)
    assert find_place(base, tree) == find_place(base / "custom_nodes", tree)
    assert (find_place(base, tree).custom_nodes, find_place(base, tree).tree) == (base / "custom_nodes", tree)
    assert find_place(base, None).tree is None


def test_a_folder_that_is_no_comfyui_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent", tmp_path / "absent" / "custom_nodes"):
        with pytest.raises(ComfyUINotFound, match=r"main\.py, its base directory, or its custom_nodes"):
            find_place(folder, None)


def test_who_names_no_comfyui_means_that_of_the_interpreter_else_that_of_the_current_directory(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "app" / "inner").mkdir(parents=True)
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    monkeypatch.setattr(sys, "prefix", "/usr")
    monkeypatch.chdir(tmp_path)
    assert nearby_folder() is None
    for here in (tree, tree.parent, tree / "custom_nodes", tree / "app" / "inner"):
        monkeypatch.chdir(here)
        assert nearby_folder() == tree
    base = tmp_path / "desktop"
    (base / "custom_nodes").mkdir(parents=True)
    for home, folder in ((tree / ".venv", tree), (tree.parent / "python_embeded", tree.parent), (base / ".venv", base)):
        monkeypatch.setattr(sys, "prefix", str(home))
        assert nearby_folder() == folder
    monkeypatch.setattr(sys, "base_prefix", str(tree.parent / "python_embeded"))
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert nearby_folder() == tree.parent, "the portable build has no virtual environment"


# -- the door ------------------------------------------------------------------------------------------------------------
def test_the_door_comes_and_goes_and_nothing_else_changes(tree: Path) -> None:
    place = find_place(tree, None)
    (place.custom_nodes / "example.py").write_text("theirs")
    before = everything(tree)
    assert [install_door(place, SOURCE) for _ in range(2)] == ["installed", "unchanged"]
    assert everything(tree).keys() - before.keys() == {f"custom_nodes/{DOOR_NAME}/__init__.py"}
    (place.door / "__pycache__").mkdir()
    (place.door / "__pycache__" / "x.pyc").touch()
    assert door_state(place, SOURCE) == "current"
    assert [remove_door(place) for _ in range(2)] == ["removed", "absent"]
    assert everything(tree) == before


def test_a_door_of_another_version_is_written_anew(tree: Path) -> None:
    place = find_place(tree, None)
    install_door(place, "distributed-comfy==0")
    assert door_state(place, SOURCE) == "outdated"
    assert install_door(place, SOURCE) == "updated" and door_state(place, SOURCE) == "current"


def test_an_install_that_was_broken_off_can_be_repeated(tree: Path) -> None:
    place = find_place(tree, None)
    place.door.mkdir()
    assert door_state(place, SOURCE) == "absent" and install_door(place, SOURCE) == "installed"


def _file_of_another(door: Path) -> None:
    door.mkdir()
    (door / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}")


def _more_than_the_door(door: Path) -> None:
    door.mkdir()
    (door / "__init__.py").write_text('"""The door of distributed-comfy')
    (door / "notes.txt").write_text("mine")


def _plain_file(door: Path) -> None:
    door.write_text("mine")


def _link(door: Path) -> None:
    target = door.parent.parent / "elsewhere"
    target.mkdir()
    os.symlink(target, door)


@pytest.mark.parametrize("theirs", [_file_of_another, _more_than_the_door, _plain_file, _link])
def test_what_is_not_ours_is_neither_overwritten_nor_removed(tree: Path, theirs: Any) -> None:
    place = find_place(tree, None)
    theirs(place.door)
    before = everything(tree.parent)
    with pytest.raises(InstallRefused, match="not ours"):
        install_door(place, SOURCE)
    with pytest.raises(InstallRefused, match="not ours"):
        remove_door(place)
    assert everything(tree.parent) == before and door_state(place, SOURCE) == "foreign"


def test_the_repository_in_custom_nodes_is_a_pack_already(tree: Path) -> None:
    place = find_place(tree, None)
    for name in (DOOR_NAME, "other-name", "off.disabled"):
        (place.custom_nodes / name / "distributed_comfy" / "comfyui").mkdir(parents=True)
        (place.custom_nodes / name / "distributed_comfy" / "comfyui" / "door.py").touch()
    assert install_door(place, SOURCE) == "unchanged"
    assert [path.name for path in repositories(place)] == [DOOR_NAME, "other-name"]
    with pytest.raises(InstallRefused, match="repository itself"):
        remove_door(place)


def test_the_other_pack_with_our_classes_is_seen(tree: Path) -> None:
    place = find_place(tree, None)
    (place.custom_nodes / "ComfyUI-Distributed").mkdir()
    assert [path.name for path in other_packs(place)] == ["ComfyUI-Distributed"]


@pytest.mark.skipif(sys.platform != "linux", reason="a folder in which nobody may write, root neither")
def test_a_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(InstallRefused, match=r"/proc/custom_nodes/distributed-comfy: cannot be written"):
        install_door(Place(Path("/proc/custom_nodes"), None), SOURCE)


def test_a_door_without_the_package_says_what_to_run(tree: Path) -> None:
    place = find_place(tree, None)
    install_door(place, SOURCE)
    command = [sys.executable, "-I", "-S", str(place.door / "__init__.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1 and f'run: "{sys.executable}" -m pip install "{SOURCE}"\n' in done.stderr


# -- the interpreter -----------------------------------------------------------------------------------------------------
def test_an_interpreter_that_has_this_version_is_fine(tmp_path: Path) -> None:
    found = ask(sys.executable, ROOT)
    assert (found.version, found.reason, Path(found.path).parent) == (__version__, "", ROOT / "distributed_comfy")
    found.require()


def test_one_without_the_package_gets_the_command_that_installs_it(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    found = ask(str(bare), tmp_path)
    with pytest.raises(PackNotImportable, match="No module named 'distributed_comfy'") as caught:
        found.require()
    assert caught.value.remedy == f"{bare} -m pip install {ROOT}"


def test_one_with_another_version_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "__version__", "99")
    assert f"has distributed-comfy {__version__} in" in ask(sys.executable, ROOT).reason


def test_a_foreign_package_in_comfyuis_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "tiler.py").touch()
    assert f"package 'tiler' comes from {tmp_path / 'tiler.py'}" in ask(sys.executable, tmp_path).reason


def test_a_program_that_is_no_python_is_told(tmp_path: Path) -> None:
    assert "cannot be asked" in ask(str(tmp_path / "absent"), tmp_path).reason
    assert "ended with status 1" in ask("/bin/false", tmp_path).reason


def test_the_interpreter_is_the_named_one_else_comfyuis_own_else_this(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DC_COMFYUI_PYTHON", raising=False)  # of the tests with a real ComfyUI, which may run beside this one
    place = find_place(tree, None)
    assert comfyui_python(Settings(), place) == sys.executable
    portable = tree.parent / "python_embeded" / "python.exe"  # the build for Windows
    desktop = tmp_path / "base" / ".venv" / "bin" / "python"
    for python in (portable, desktop):
        python.parent.mkdir(parents=True)
        python.touch()
    (tmp_path / "base" / "custom_nodes").mkdir()
    assert comfyui_python(Settings(), place) == str(portable)
    assert comfyui_python(Settings(), find_place(tmp_path / "base", tree)) == str(desktop)
    assert comfyui_python(Settings(), place, sys.executable) == sys.executable
    with pytest.raises(SettingInvalid, match=r"^--python: .*/no/such/python is not a program"):
        comfyui_python(Settings(), place, "/no/such/python")
    with pytest.raises(SettingInvalid, match=r"^DC_COMFYUI_PYTHON: .*/no/such/python is not a program"):
        comfyui_python(Settings(comfyui_python="/no/such/python"), place)


@pytest.mark.skipif(sys.platform == "win32", reason="programs of POSIX")
@pytest.mark.parametrize("program", ["/bin/ls", "/bin/sh", "/bin/cat", "/bin/false", "/bin/echo"])
def test_a_program_that_is_no_python_is_called_that_and_is_shown_nothing_of_ours(tree: Path, tmp_path: Path, program: str) -> None:
    refused = CommandLine(tmp_path).run("comfyui", "install", tree, "--python", program)
    assert refused.status == 2 and f"--python: {program} is no Python" in refused.err, refused.err
    assert "import" not in refused.err and "DC_COMFYUI_PYTHON" not in refused.err and refused.err.count("\n") == 1


def test_the_interpreter_of_this_command_is_taken_where_it_can_be_comfyuis(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DC_COMFYUI_PYTHON", raising=False)
    base = tmp_path / "base"
    (base / "custom_nodes").mkdir(parents=True)
    elsewhere = find_place(base, tree)
    own = tree / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch()
    packages: set[str] = set()
    monkeypatch.setattr(interpreter, "_has", lambda *names: set(names) <= packages)
    assert comfyui_python(Settings(), elsewhere) == str(own), "it has nothing of ComfyUI's"
    packages |= {"torch"}
    assert comfyui_python(Settings(), elsewhere) == str(own), "our own workers need torch, too"
    packages |= {"torchsde"}
    assert comfyui_python(Settings(), elsewhere) == sys.executable
    assert comfyui_python(Settings(), find_place(tree, None)) == str(own), "the folder that was given has one of its own"
    for home in (tree / "conda", tree.parent / "venv"):
        monkeypatch.setattr(interpreter.sys, "prefix", str(home))
        assert comfyui_python(Settings(), find_place(tree, None)) == sys.executable
    packages.clear()
    assert comfyui_python(Settings(), find_place(tree, None)) == str(own), "beside it, and without torch"


def test_a_package_from_an_index_is_installed_from_there_and_one_from_git_from_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert package_source() == str(ROOT)
    monkeypatch.setattr(interpreter, "_ROOT", Path("/no/such/folder"))
    told: dict[str, str | None] = {"direct_url.json": None}
    monkeypatch.setattr(interpreter.importlib.metadata, "distribution", lambda name: types.SimpleNamespace(read_text=told.get))
    assert package_source() == f"distributed-comfy=={__version__}"
    told["direct_url.json"] = json.dumps({"url": "https://host/r.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}})
    assert package_source() == "git+https://host/r.git@abc"


# -- commands ------------------------------------------------------------------------------------------------------------
def test_the_commands_install_show_and_remove(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = CommandLine(tmp_path)
    python = ("--python", sys.executable)
    absent = line.run("comfyui", "status", tree, *python, "--json")
    assert absent.status == 1 and absent.json["door"] == "absent" and absent.json["loadable"]
    installed = line.run("comfyui", "install", tree, *python)
    assert installed.status == 0 and f"installed in {tree / 'custom_nodes' / DOOR_NAME}" in installed.out
    (tree / "custom_nodes" / "comfyui-distributed").mkdir()
    shown = line.run("comfyui", "status", *python, COMFYUI_PATH=str(tree))
    assert shown.status == 0 and "the door in" in shown.out and "has the same node classes" in shown.err
    removed = line.run("comfyui", "uninstall", tree, "--json")
    assert removed.json == {"change": "removed", "door": str(tree / "custom_nodes" / DOOR_NAME)}
    monkeypatch.setattr(line, "folder", tree)
    assert line.run("comfyui", "status", *python, "--json").json["custom_nodes"] == str(tree / "custom_nodes"), "of the current directory"
    monkeypatch.undo()
    unnamed = line.run("comfyui", "install")
    assert unnamed.status == 2 and "main.py" in unnamed.err and f"no ComfyUI in {tmp_path}, " in unnamed.err
    nowhere = line.run("comfyui", "install", tmp_path / "nowhere")
    assert nowhere.status == 2 and nowhere.err.startswith("error: no ComfyUI in ")


# -- the repository as a pack --------------------------------------------------------------------------------------------
def test_the_root_file_does_nothing_outside_comfyui() -> None:
    found = runpy.run_path(str(ROOT / "__init__.py"))
    assert found["NODE_CLASS_MAPPINGS"] == {} and "load" not in found


def stated(text: str) -> list[str]:
    """The lines of a list of requirements."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def test_the_manager_installs_what_the_package_needs() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    needed = stated(setup["options"]["install_requires"])
    assert sorted(stated((ROOT / "requirements.txt").read_text())) == sorted(needed) and len(set(needed)) == len(needed)
