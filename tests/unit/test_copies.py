"""The door and clones of the repository side by side in custom_nodes: one line, with one thing to do."""
from __future__ import annotations

from pathlib import Path

import pytest

from distributed_comfy.comfyui.copies import advice


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """A door, two clones, and a folder in which the package is installed."""
    found = {name: tmp_path / name for name in ("door", "clone", "fork", "installed")}
    for name, folder in found.items():
        folder.mkdir()
        if name != "door":
            (folder / "distributed_comfy" / "comfyui").mkdir(parents=True)
            (folder / "distributed_comfy" / "comfyui" / "door.py").touch()
    return found


@pytest.mark.parametrize(
    ("loaded", "used", "surplus"),
    [
        ("door clone", "installed", "clone"), ("clone door", "installed", "clone"),
        ("door clone", "clone", "door"), ("clone door", "clone", "door"),
        ("clone fork", "clone", "fork"), ("fork clone", "clone", "fork"), ("clone fork", "installed", "fork"),
        ("door door", "installed", "door"),
    ],
)  # fmt: skip
def test_of_two_the_one_that_is_not_needed_is_to_be_removed(places: dict[str, Path], loaded: str, used: str, surplus: str) -> None:
    told = advice([places[name] for name in loaded.split()], places[used])
    assert f"one is enough: remove {places[surplus]} (" in told and "pip" not in told and "\n" not in told


def test_a_clone_that_is_not_the_imported_copy_gets_the_command_that_makes_it_so(places: dict[str, Path]) -> None:
    assert f'-m pip install -e "{places["clone"]}"' in advice([places["clone"]], places["installed"])


def test_one_that_is_used_is_no_news(places: dict[str, Path]) -> None:
    assert advice([places["door"]], places["installed"]) == advice([places["clone"]], places["clone"]) == advice([], places["clone"]) == ""
