"""The few timeouts that a page may change: what each may be, what is kept, and what that means for the next start."""
from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from distributed_comfy.config_file import write_config_file
from distributed_comfy.errors import SettingInvalid, SettingsWrong
from distributed_comfy.panel.bodies import BadRequest
from distributed_comfy.panel.kept_settings import KeptSettings
from distributed_comfy.panel.words import told
from distributed_comfy.settings import Settings, read_settings, variable
from tests.panel_contract import check, document


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in Settings.model_fields:
        monkeypatch.delenv(variable(name), raising=False)
    path = tmp_path / "kept" / "config.json"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("distributed_comfy.settings.default_config_file", lambda _environment: path)
    return path


def shown(kept: KeptSettings) -> dict[str, dict[str, Any]]:
    """By name; as the contract has it."""
    found = kept.shown()
    check(document()["components"]["schemas"]["Settings"], found, "settings")
    return {each["name"]: each for each in found["settings"]}


def test_what_is_changed_counts_from_the_next_start(file: Path) -> None:
    kept = KeptSettings(read_settings())
    before = shown(kept)["DC_STALL_TIMEOUT_S"]
    assert (before["value"], before["next"], before["default"], before["changeable"], before["fixed"]) == (900, 900, 900, True, False)
    kept.change({"DC_STALL_TIMEOUT_S": 1800, "DC_MAX_ATTEMPTS": 5})
    after = shown(kept)["DC_STALL_TIMEOUT_S"]
    assert (after["value"], after["next"]) == (900, 1800)
    assert read_settings().stall_timeout_s == 1800 and read_settings().max_attempts == 5
    if os.name == "posix":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_null_takes_a_setting_out_and_leaves_the_others(file: Path) -> None:
    file.parent.mkdir()
    file.write_text(json.dumps({"DC_REDIS_URL": "redis://:secret@h:1/0", "DC_MAX_ATTEMPTS": 5, "DC_JOB_TTL_S": "600"}))
    file.chmod(0o640)
    kept = KeptSettings(read_settings())
    assert shown(kept)["DC_JOB_TTL_S"]["next"] == 600
    kept.change({"DC_MAX_ATTEMPTS": None})
    assert json.loads(file.read_text()) == {"DC_REDIS_URL": "redis://:secret@h:1/0", "DC_JOB_TTL_S": "600"}
    assert (shown(kept)["DC_MAX_ATTEMPTS"]["value"], shown(kept)["DC_MAX_ATTEMPTS"]["next"]) == (5, 3)
    assert os.name != "posix" or stat.S_IMODE(file.stat().st_mode) == 0o640
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("DC_STALL_TIMEOUT_S", 1, "from 30 to 86400"),
        ("DC_STALL_TIMEOUT_S", "900", "a number"),
        ("DC_STALL_TIMEOUT_S", True, "a number"),
        ("DC_STALL_TIMEOUT_S", float("nan"), "a number"),
        ("DC_STALL_TIMEOUT_S", float("inf"), "a number"),
        ("DC_MAX_ATTEMPTS", 2.5, "a whole number"),
        ("DC_LEASE_TTL_S", 4, "from 4.5 to 600"),
        ("DC_REDIS_URL", 5, "cannot be changed here"),
        ("COMFYUI_PATH", None, "cannot be changed here"),
    ],
)
def test_what_cannot_be_is_said_of_its_field_and_nothing_is_written(file: Path, name: str, value: Any, words: str) -> None:
    kept = KeptSettings(read_settings())
    with pytest.raises(SettingsWrong) as refused:
        kept.change({"DC_JOB_TTL_S": 600, name: value})
    assert told(refused.value)["fields"].keys() == {name} and words in told(refused.value)["fields"][name]
    assert not file.exists()


@pytest.mark.parametrize("changes", [None, [], {}, "DC_JOB_TTL_S"])
def test_changes_that_change_nothing_are_no_changes(file: Path, changes: Any) -> None:
    with pytest.raises(BadRequest):
        KeptSettings(read_settings()).change(changes)


def test_a_variable_of_the_environment_comes_before_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.parent.mkdir()
    file.write_text('{"DC_MAX_ATTEMPTS": 7}')
    monkeypatch.setenv("DC_MAX_ATTEMPTS", "4")
    kept = KeptSettings(read_settings())
    assert (shown(kept)["DC_MAX_ATTEMPTS"]["next"], shown(kept)["DC_MAX_ATTEMPTS"]["fixed"]) == (4, True)
    with pytest.raises(SettingsWrong, match="environment variable"):
        kept.change({"DC_MAX_ATTEMPTS": 5})


def test_a_file_that_cannot_be_used_is_said_and_stays_as_it_is(file: Path) -> None:
    kept = KeptSettings(read_settings())
    file.parent.mkdir()
    file.write_text('{"DC_MAX_ATEMPTS": 7}')
    assert "DC_MAX_ATTEMPTS" in kept.shown()["trouble"]
    with pytest.raises(SettingInvalid, match="did you mean"):
        kept.change({"DC_MAX_ATTEMPTS": 5})
    assert file.read_text() == '{"DC_MAX_ATEMPTS": 7}'


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such thing")
def test_what_is_no_file_does_not_become_one(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SettingInvalid, match="is no file"):
        write_config_file(tmp_path / "pipe", {"DC_MAX_ATTEMPTS": 5})
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    monkeypatch.setenv("DC_CONFIG", os.devnull)
    with pytest.raises(SettingInvalid, match="is no file"):
        KeptSettings(read_settings()).change({"DC_MAX_ATTEMPTS": 5})


def test_every_setting_that_a_page_may_change_has_words_there() -> None:
    page = (Path(__file__).parents[2] / "distributed_comfy" / "panel" / "web" / "texts.js").read_text("utf-8")
    found = [each["name"] for each in KeptSettings(Settings()).shown()["settings"] if each["changeable"]]
    assert len(found) == 6 and [name for name in found if f"{name}: {{" not in page] == []
