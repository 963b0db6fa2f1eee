"""What `make` says on a system that lacks something, and that its own scripts find what is there."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shell scripts")
TOOLS = ("sh", "sed", "cut", "head", "expand")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder that is the whole PATH: a shell and text tools, no Python."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in TOOLS:
        (programs / name).symlink_to(shutil.which(name) or pytest.fail(f"no {name}"))
    return programs


def fake_python(folder: Path, name: str, version: str, *, has_venv: bool = True) -> Path:
    """A program that answers the questions of find_python.sh as a Python of this version would."""
    major, minor = version.split(".")[:2]
    fits = (3, 10) <= (int(major), int(minor)) <= (3, 13)
    path = folder / name
    path.write_text(
        f"""#!/bin/sh
case "$2" in
    *ensurepip*) exit {0 if has_venv else 1} ;;
    *python_version*) echo {version} ;;
    *venv*) echo python{major}.{minor}-venv ;;
    *version_info*) exit {0 if fits else 1} ;;
esac
"""
    )
    path.chmod(0o755)
    return path


def find_python(programs: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(programs), **variables}
    command = [str(programs / "sh"), str(ROOT / "scripts/find_python.sh")]
    return subprocess.run(command, cwd=programs.parent, env=environment, capture_output=True, text=True, check=False)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal."""
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def test_a_system_without_python_is_told_to_install_one(bare: Path) -> None:
    assert "apt-get install python3 python3-venv" in refusal(find_python(bare))


def test_a_system_with_an_old_python_only_is_told_its_version(bare: Path) -> None:
    fake_python(bare, "python3", "3.9.2")
    assert "3.10 to 3.13 is needed, this system has 3.9.2" in refusal(find_python(bare))


def test_a_python_without_venv_is_told_the_package(bare: Path) -> None:
    fake_python(bare, "python3", "3.11.2", has_venv=False)
    assert "apt-get install python3.11-venv" in refusal(find_python(bare))


def test_where_python3_is_too_new_another_one_is_found(bare: Path) -> None:
    fake_python(bare, "python3", "3.14.0")
    fitting = fake_python(bare, "python3.12", "3.12.1")
    assert find_python(bare).stdout.strip() == str(fitting)


def test_a_python_without_venv_is_passed_over_for_one_with_it(bare: Path) -> None:
    fake_python(bare, "python3", "3.11.2", has_venv=False)
    fitting = fake_python(bare, "python3.10", "3.10.1")
    assert find_python(bare).stdout.strip() == str(fitting)


def test_the_python_that_the_user_names_is_taken_or_refused_by_name(bare: Path) -> None:
    fake_python(bare, "python3", "3.11.2")
    named = fake_python(bare, "mypython", "3.12.0")
    assert find_python(bare, PYTHON="mypython").stdout.strip() == str(named)
    fake_python(bare, "mypython", "3.14.0")
    assert "PYTHON=mypython is Python 3.14.0" in refusal(find_python(bare, PYTHON="mypython"))
    assert "PYTHON=nothing does not run" in refusal(find_python(bare, PYTHON="nothing"))


def test_the_real_python_of_this_system_is_accepted(bare: Path) -> None:
    assert find_python(bare, PYTHON=sys.executable).stdout.strip() == sys.executable


def find_comfyui(home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **variables}
    return subprocess.run(["sh", ROOT / "scripts/find_comfyui.sh"], env=environment, capture_output=True, text=True, check=False)


def test_no_comfyui_tree_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    assert "set COMFYUI_PATH" in refusal(find_comfyui(tmp_path))
    assert f"{tmp_path}/none is not a ComfyUI tree" in refusal(find_comfyui(tmp_path, COMFYUI_PATH=f"{tmp_path}/none"))


def test_a_comfyui_tree_without_an_interpreter_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "comfyui_version.py").write_text('__version__ = "9.9.9"\n')
    assert "set DC_COMFYUI_PYTHON" in refusal(find_comfyui(tmp_path, COMFYUI_PATH=str(tmp_path)))
    assert "has no torch" in refusal(find_comfyui(tmp_path, COMFYUI_PATH=str(tmp_path), DC_COMFYUI_PYTHON="false"))


def test_a_comfyui_tree_is_found_with_its_version(tmp_path: Path) -> None:
    (tmp_path / "comfyui_version.py").write_text('__version__ = "9.9.9"\n')
    done = find_comfyui(tmp_path, COMFYUI_PATH=str(tmp_path), DC_COMFYUI_PYTHON=sys.executable)
    assert done.stdout == f"{tmp_path}\t{sys.executable}\t9.9.9\n"


def test_make_alone_prints_a_line_for_each_target() -> None:
    if shutil.which("make") is None:
        pytest.skip("no make here")
    shown = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "test-all", "test-comfyui", "lint", "types", "contracts", "bench", "clean", "help"):
        assert f"make {target} " in shown
