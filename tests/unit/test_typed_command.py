"""Hints name the command as it can be typed."""
from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from distributed_comfy.cli.typed import typed_command


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an environment in it; nothing is on the search path."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("distributed-comfy", "python"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    return tmp_path


@pytest.mark.parametrize("started_as", [".venv/bin/distributed-comfy", "./.venv/bin/distributed-comfy", "{}/.venv/bin/distributed-comfy"])
def test_where_the_shell_does_not_find_it_the_path_from_here_is_given(project: Path, started_as: str) -> None:
    assert typed_command(started_as.format(project)) == os.path.join(".venv", "bin", "distributed-comfy")


def test_where_the_shell_finds_it_the_name_is_enough(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(project / ".venv" / "bin"))
    assert typed_command(".venv/bin/distributed-comfy") == "distributed-comfy"


def test_another_one_that_the_shell_finds_is_not_meant(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("other") / "distributed-comfy"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(other.parent))
    assert typed_command(".venv/bin/distributed-comfy") == os.path.join(".venv", "bin", "distributed-comfy")


def test_from_another_folder_the_whole_path_is_given_in_quotes_where_it_has_spaces(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = project / ".venv" / "bin" / "distributed-comfy"
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert typed_command(str(program)) == str(program)
    spaced = project / "my programs"
    spaced.mkdir()
    (spaced / "distributed-comfy").touch()
    assert typed_command(str(spaced / "distributed-comfy")) == f'"{spaced / "distributed-comfy"}"'


def test_a_module_that_was_run_names_the_program_beside_its_python(project: Path) -> None:
    module = str(project / "distributed_comfy" / "__main__.py")
    assert typed_command(module) == os.path.join(".venv", "bin", "distributed-comfy")
    (project / ".venv" / "bin" / "distributed-comfy").unlink()
    assert typed_command(module) == f"{os.path.join('.venv', 'bin', 'python')} -m distributed_comfy"
