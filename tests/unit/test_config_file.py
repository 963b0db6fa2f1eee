"""The JSON file of settings: where it is looked for, who wins, and that whatever is wrong in it stops the start by name."""
from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import write_reference

from distributed_comfy.config_file import default_config_file
from distributed_comfy.errors import SettingInvalid
from distributed_comfy.settings import Settings, child_environment, read_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(write_reference.variable(name), raising=False)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "settings.json"
    monkeypatch.setenv("DC_CONFIG", str(path))
    return path


def write(file: Path, content: Any) -> None:
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    file.chmod(0o600)


def refused(file: Path, content: Any) -> SettingInvalid:
    write(file, content)
    with pytest.raises(SettingInvalid) as caught:
        read_settings()
    assert str(file) in str(caught.value) and caught.value.exit_code == 2
    return caught.value


def test_every_setting_can_stand_in_the_file(file: Path) -> None:
    url = "redis://:secret@host:1/0"
    write(file, {"DC_REDIS_URL": url, "DC_SLOTS": 3, "DC_LEASE_TTL_S": 9, "DC_ENGINE": "builtin", "COMFYUI_PATH": "/c"})
    settings = read_settings()
    assert (settings.redis_url, settings.slots, settings.lease_ttl_s) == (url, 3, 9.0)
    assert (settings.engine, settings.comfyui_path, settings.config) == ("builtin", Path("/c"), file)


def test_options_win_over_the_environment_and_that_over_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file, {"DC_SLOTS": 2, "DC_USER": "file", "DC_HOST": "file"})
    monkeypatch.setenv("DC_USER", "environment")
    monkeypatch.setenv("DC_HOST", "environment")
    settings = read_settings(host="option")
    assert (settings.slots, settings.user, settings.host) == (2, "environment", "option")


def test_an_empty_variable_and_an_empty_value_count_as_not_set(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file, {"DC_USER": "file", "DC_COMFYUI_PYTHON": "", "DC_ENGINE": ""})
    monkeypatch.setenv("DC_USER", "")
    settings = read_settings()
    assert (settings.user, settings.comfyui_python, settings.engine) == ("file", "", None)


def test_comfyuis_own_variable_wins_over_the_file_too(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file, {"COMFYUI_PATH": "/from/file"})
    monkeypatch.setenv("COMFYUI_PATH", "/from/environment")
    assert read_settings().comfyui_path == Path("/from/environment")


def test_paths_start_at_the_file_or_at_home(file: Path) -> None:
    write(file, {"DC_CACHE_DIR": "cache", "DC_RUNTIME_DIR": "~/run", "DC_COMFYUI_PYTHON": "python3"})
    settings = read_settings()
    assert (settings.cache_dir, settings.runtime_dir) == (file.parent / "cache", Path.home() / "run")
    assert settings.comfyui_python == "python3", "a program is looked for in PATH"


@pytest.mark.parametrize(
    ("given", "meant"), [("venv/bin/python", "{file}/venv/bin/python"), ("~/py/python", "{home}/py/python"), ("python3.12", "python3.12")]
)
def test_an_interpreter_starts_at_the_file_or_at_home_and_a_bare_name_is_looked_for_in_path(file: Path, given: str, meant: str) -> None:
    write(file, {"DC_COMFYUI_PYTHON": given})
    assert read_settings().comfyui_python == str(Path(meant.format(file=file.parent, home=Path.home())))


def test_without_the_variable_the_users_own_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CONFIG_HOME", "APPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    assert read_settings().config is None
    own = default_config_file(os.environ)
    assert own.is_relative_to(tmp_path) and own.name == "config.json"
    own.parent.mkdir(parents=True)
    write(own, {"DC_USER": "ann"})
    settings = read_settings()
    assert (settings.user, settings.config) == ("ann", own)
    assert refused(own, {"DC_SLOTS": 99}).name == "DC_SLOTS"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become a user without a home")
def test_a_user_without_a_home_or_who_may_not_look_into_it_has_no_file(tmp_path: Path) -> None:
    """As in a container whose user is a mere number, or a service that keeps another user's HOME."""
    (tmp_path / "closed").mkdir(mode=0o000)
    program = """
import os, sys
os.setuid(54321)
from distributed_comfy.settings import read_settings
print(read_settings().config)
os.environ["HOME"] = sys.argv[1]
print(read_settings().config)
"""
    clean = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CONFIG_HOME", "DC_CONFIG")}
    probe = "import distributed_comfy.settings\n" + program
    done = subprocess.run(
        [sys.executable, "-c", probe, str(tmp_path / "closed")], cwd=ROOT, env=clean, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "None\nNone\n"), done.stderr


@pytest.mark.parametrize(
    ("system", "environment", "expected"),
    [
        ("linux", {"XDG_CONFIG_HOME": "/x"}, "/x/distributed-comfy/config.json"),
        ("linux", {}, "~/.config/distributed-comfy/config.json"),
        ("darwin", {"XDG_CONFIG_HOME": "/x"}, "~/Library/Application Support/distributed-comfy/config.json"),
        ("win32", {"APPDATA": "/roaming"}, "/roaming/distributed-comfy/config.json"),
        ("win32", {}, "~/AppData/Roaming/distributed-comfy/config.json"),
    ],
)
def test_each_system_has_its_place(monkeypatch: pytest.MonkeyPatch, system: str, environment: dict[str, str], expected: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert default_config_file(environment) == Path(expected).expanduser()


def test_an_empty_file_has_no_settings(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file, "\n")
    assert read_settings().user == ""
    monkeypatch.setenv("DC_CONFIG", os.devnull)
    assert read_settings().user == ""


def test_a_file_with_a_byte_order_mark_is_read(file: Path) -> None:
    write(file, "\ufeff{\"DC_USER\": \"ann\"}")
    assert read_settings().user == "ann"


def test_a_file_that_was_named_must_be_there(file: Path) -> None:
    with pytest.raises(SettingInvalid, match=r"^DC_CONFIG: cannot read .*settings.json: .*; set it to a JSON file, or unset it"):
        read_settings()


def test_a_file_that_is_no_text_is_refused(file: Path) -> None:
    file.write_bytes(b"\xff\xfe{}")
    with pytest.raises(SettingInvalid, match=r"^DC_CONFIG: cannot read "):
        read_settings()


def test_an_unknown_name_stops_the_start_with_the_nearest_one(file: Path) -> None:
    error = refused(file, {"DC_REDIS_URI": "redis://host"})
    assert error.name == "DC_REDIS_URI" and str(error).endswith("did you mean DC_REDIS_URL?")
    assert str(refused(file, {"dc_slots": 2})).endswith("did you mean DC_SLOTS?")
    assert str(refused(file, {"colour": "red"})).endswith("docs/settings.md shows all; remove it")


def test_the_file_cannot_name_another_one(file: Path) -> None:
    assert "cannot stand in" in str(refused(file, {"DC_CONFIG": "other.json"}))


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"DC_SLOTS": "two"}, "DC_SLOTS"),
        ({"DC_SLOTS": 99}, "DC_SLOTS"),
        ({"DC_SLOTS": 1.5}, "DC_SLOTS"),
        ({"DC_SLOTS": True}, "DC_SLOTS"),
        ({"DC_SLOTS": None}, "DC_SLOTS"),
        ({"DC_WORKER_TAGS": ["a", "b"]}, "DC_WORKER_TAGS"),
        ({"DC_USER": 7}, "DC_USER"),
        ({"DC_REDIS_URL": "http://host"}, "DC_REDIS_URL"),
        ({"DC_CACHE_DIR": 5}, "DC_CACHE_DIR"),
        ({"COMFYUI_PATH": 5}, "COMFYUI_PATH"),
        ('{"DC_SLOTS": 2, "DC_SLOTS": 3}', "DC_SLOTS"),
    ],
)
def test_a_wrong_value_names_the_setting_and_the_file(file: Path, content: Any, name: str) -> None:
    assert refused(file, content).name == name


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"DC_SLOTS": 2,}', "line 1, column"),
        ('{\n "DC_SLOTS": 2\n "DC_USER": "a"}', "line 3, column 2"),
        ('{"COMFYUI_PATH": "C:\\Comfy"}', "where a path has a backslash"),
        ('["DC_SLOTS"]', "not list"),
        ("2", "not int"),
        ('{"DC_LEASE_TTL_S": NaN}', "NaN is not a number of JSON"),
    ],
)
def test_a_mistake_in_the_json_names_the_place(file: Path, content: str, says: str) -> None:
    error = refused(file, content)
    assert error.name == "DC_CONFIG" and says in str(error)


def test_a_password_in_the_file_is_not_shown(file: Path) -> None:
    assert "secret" not in str(refused(file, {"DC_FLOWER_BASIC_AUTH": "secret"}))
    assert "secret" not in str(refused(file, {"DC_REDIS_URL": "http://:secret@host"}))


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such permissions")
def test_a_file_with_secrets_that_others_can_read_is_warned_of(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(file, {"DC_REDIS_URL": "redis://:geheim@host", "DC_SLOTS": 2})
    file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        read_settings()
    assert f"{file} holds DC_REDIS_URL and other users can read it; run: chmod 600 {file}" in caplog.text
    assert "geheim" not in caplog.text
    caplog.clear()
    file.chmod(0o600)
    read_settings()
    write(file, {"DC_SLOTS": 2})
    file.chmod(0o644)
    read_settings()
    assert caplog.text == "", "closed, or without a secret"


def test_a_program_that_this_one_starts_has_the_same_settings(file: Path) -> None:
    write(file, {"DC_SLOTS": 3, "DC_CACHE_DIR": "cache"})
    child = child_environment(read_settings())
    assert (child["DC_SLOTS"], child["DC_CACHE_DIR"], child["DC_CONFIG"]) == ("3", str(file.parent / "cache"), str(file))


def test_the_example_on_the_page_is_a_file_that_works(file: Path) -> None:
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    lines = [line[4:] for line in page.splitlines() if line.startswith("    ")]
    write(file, "\n".join(lines))
    assert (read_settings().slots, read_settings().comfyui_path) == (2, Path.home() / "comfy" / "ComfyUI")
