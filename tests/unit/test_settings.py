"""Settings: a wrong value stops the start and names its variable, a right one arrives, and the page on them is up to date."""
from __future__ import annotations

import re
from pathlib import Path

import pytest
import write_reference

from distributed_comfy import setting_words
from distributed_comfy.errors import SettingInvalid
from distributed_comfy.settings import Settings, ignored_variables, read_settings, redact_url, slug

ROOT = Path(__file__).resolve().parents[2]
ACCEPTS_ANY_TEXT = {
    "comfyui_path", "comfyui_python", "comfyui_base_directory", "comfyui_args", "worker_name", "worker_tags", "host", "user",
    "runtime_dir", "cache_dir", "execution_log", "workers_file",
}  # fmt: skip
CHECKED = sorted(set(Settings.model_fields) - ACCEPTS_ANY_TEXT)
WRONG = {
    "redis_url": "http://somewhere", "blob_url": "localhost:6379", "key_prefix": "no colon at the end", "device": "gpu 0",
    "slots": "17", "lease_ttl_s": "0", "max_attempts": "0", "job_ttl_s": "59", "chunk_bytes": "1", "blob_limit_bytes": "-1",
    "bytes_in_flight": "-1", "drain_timeout_s": "-0.1", "log_level": "LOUD", "engine": "a1111",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in Settings.model_fields:
        monkeypatch.delenv(write_reference.variable(name), raising=False)


@pytest.mark.parametrize("name", CHECKED)
def test_nonsense_is_refused_and_the_variable_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = write_reference.variable(name)
    monkeypatch.setenv(variable, "!nonsense!")
    with pytest.raises(SettingInvalid) as caught:
        read_settings()
    assert caught.value.name == variable
    assert str(caught.value).startswith(f"{variable}: ")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("name", "value"), WRONG.items())
def test_a_value_outside_its_range_is_refused_and_the_variable_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(write_reference.variable(name), value)
    with pytest.raises(SettingInvalid) as caught:
        read_settings()
    assert caught.value.name == write_reference.variable(name)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("slots", "two", "must be a whole number from 1 to 16, not 'two'"),
        ("max_attempts", "0", "must be a whole number, 1 or more, not '0'"),
        ("lease_ttl_s", "soon", "must be a number above 0, not 'soon'"),
        ("drain_timeout_s", "-1", "must be a number, 0 or more, not '-1'"),
        ("device", "gpu0", "must be cpu, mps or like cuda:0 or cuda:0,1, not 'gpu0'"),
        ("engine", "a1111", "must be comfyui, builtin or attach, not 'a1111'"),
        ("log_level", "LOUD", "must be DEBUG, INFO, WARNING or ERROR, not 'LOUD'"),
        ("key_prefix", "x", "must be letters, digits, _ . or - with a colon at the end, not 'x'"),
        ("redis_accept", "x", "must be a version, like 7.0.15, not 'x'"),
        ("redis_url", "http://me:geheim@host", "must start with redis://, rediss:// or unix://, not http:..."),
        ("flower_basic_auth", "geheim", "must be like USER:PASS (it is not shown)"),
    ],
)
def test_what_a_setting_must_be_is_said_in_plain_words(name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(write_reference.variable(name), value)
    with pytest.raises(SettingInvalid) as caught:
        read_settings()
    assert str(caught.value) == f"{write_reference.variable(name)}: {says}"


def test_every_pattern_of_a_setting_has_words() -> None:
    limits = [limit for field in Settings.model_fields.values() for limit in field.metadata]
    assert {limit.pattern for limit in limits if getattr(limit, "pattern", None)} <= set(setting_words._PATTERNS)


def test_a_wrong_option_of_the_command_line_names_the_same_variable() -> None:
    with pytest.raises(SettingInvalid, match=r"^DC_SLOTS: .*99"):
        read_settings(slots=99)


def test_a_wrong_url_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DC_REDIS_URL", "http://user:geheim@somewhere")
    with pytest.raises(SettingInvalid) as caught:
        read_settings()
    assert "geheim" not in str(caught.value)


def test_the_environment_is_read_and_an_option_wins_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DC_SLOTS", "3")
    monkeypatch.setenv("DC_DEVICE", "cuda:1")
    monkeypatch.setenv("COMFYUI_PATH", "somewhere/ComfyUI")
    settings = read_settings(device="cpu", slots=None)
    assert (settings.slots, settings.device, settings.comfyui_path) == (3, "cpu", Path("somewhere/ComfyUI"))


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(write_reference.variable(name), "")
    assert read_settings() == Settings()


def test_a_variable_that_is_called_like_a_setting_and_is_none_is_told_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DC_SLOTS", "3")
    monkeypatch.setenv("dc_user", "ann")
    monkeypatch.setenv("DCC_SLOTS", "3")
    assert ignored_variables() == ""
    monkeypatch.setenv("DC_REDIS_ULR", "redis://:geheim@host")
    monkeypatch.setenv("DC_ZZZ", "")
    near, far = "; did you mean DC_REDIS_URL?", "; docs/settings.md shows all"
    assert ignored_variables() == f"DC_REDIS_ULR is no setting and is ignored{near} DC_ZZZ is no setting and is ignored{far}"


def test_every_variable_that_containers_and_pages_name_is_a_setting() -> None:
    places = [ROOT / "README.md", ROOT / "docker-compose.yml", ROOT / "Makefile"]
    places += [path for folder in ("docker", "docs", "scripts", "examples") for path in (ROOT / folder).rglob("*") if path.is_file()]
    named = {name for path in places for name in re.findall(rb"\bDC_[A-Z][A-Z0-9_]*[A-Z0-9]\b", path.read_bytes())}
    assert len(named) > 30 and {name.decode() for name in named} <= {write_reference.variable(field) for field in Settings.model_fields}


def test_settings_cannot_be_changed_after_the_start() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read_settings().slots = 2  # type: ignore[misc]


def test_the_renewal_comes_several_times_within_a_lease() -> None:
    settings = Settings()
    assert settings.renew_interval_s * 3 <= settings.lease_ttl_s


@pytest.mark.parametrize(
    ("text", "expected"),
    [("PC 1.local", "pc-1-local"), ("__ok__", "__ok__"), ("Büro", "buro"), ("Straße", "strasse"), ("Łódź", "odz"), ("...", "")],
)
def test_a_slug_has_only_characters_of_queue_names(text: str, expected: str) -> None:
    assert slug(text) == expected


def test_the_host_in_worker_names_is_never_empty() -> None:
    assert read_settings(host="...").host_name == "host"


def test_tags_are_split_at_commas_and_spaces_and_sorted() -> None:
    assert read_settings(worker_tags=" fast, big  fast2,").tags == ("big", "fast", "fast2")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@host:6379/0", "redis://:***@host:6379/0"),
        ("rediss://me:secret@host", "rediss://me:***@host"),
        ("redis://host:6379", "redis://host:6379"),
        ("rediss://me:secret@host/0?ssl_cert_reqs=required&ssl_ca_certs=/long/path.pem", "rediss://me:***@host/0"),
        ("at rediss://host/0?ssl_ca_certs=/path.pem: no; is it 'unix:///s?db=1'?", "at rediss://host/0: no; is it 'unix:///s'?"),
        ("http://me:secret@host/x?page=2", "http://me:***@host/x?page=2"),
    ],
)
def test_a_url_is_shown_without_its_password_and_one_of_a_server_without_its_options(url: str, shown: str) -> None:
    assert redact_url(url) == shown


def test_the_page_on_settings_is_what_the_code_says() -> None:
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == write_reference.settings_page(), "run `make docs`"


def test_each_setting_says_what_it_means() -> None:
    rows = [line for line in write_reference.settings_page().splitlines() if line.startswith("| `")]
    assert len(rows) == len(Settings.model_fields)
    assert [row for row in rows if len(row.split(" | ")[3]) < 20] == []
