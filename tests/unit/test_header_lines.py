"""Headers in a setting, which may hold a password."""
from __future__ import annotations

import pytest

from distributed_comfy.errors import SettingInvalid
from distributed_comfy.header_lines import parse_headers
from distributed_comfy.settings import read_settings, redact_url


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("Authorization: Bearer a:b", (("Authorization", "Bearer a:b"),)),
        ("A: 1\n\n  B-c:2  \n", (("A", "1"), ("B-c", "2"))),
        ('{"A": "1", "B": ""}', (("A", "1"), ("B", ""))),
    ],
)
def test_headers_are_a_json_object_or_lines(text: str, expected: tuple[tuple[str, str], ...]) -> None:
    assert parse_headers(text) == expected


@pytest.mark.parametrize("text", ["hidden", "{hidden", '{"A": 1}', "A b: hidden", '{"A": "hid\\nden"}', ": hidden", '{"": "hidden"}'])
def test_what_is_neither_is_refused_by_name_and_not_shown(text: str) -> None:
    with pytest.raises(SettingInvalid) as caught:
        read_settings(comfyui_headers=text)
    assert str(caught.value) == "DC_COMFYUI_HEADERS: must be a JSON object of texts, or lines like Name: value (it is not shown)"


@pytest.mark.parametrize("url", ["127.0.0.1:8188", "ftp://x", "http://", "http://a b", "https://x/?token=secret"])
def test_the_address_of_a_comfyui_is_a_web_address(url: str) -> None:
    with pytest.raises(SettingInvalid, match=r"DC_COMFYUI_URL: must be like http://127.0.0.1:8188 or https://host/path") as caught:
        read_settings(comfyui_url=url)
    assert "secret" not in str(caught.value)


def test_an_address_keeps_its_path_and_loses_the_slash_at_its_end() -> None:
    assert read_settings(comfyui_url="https://u:p@pod.example/proxy/8188/").comfyui_url == "https://u:p@pod.example/proxy/8188"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://token@pod/x", "https://***@pod/x"),
        ("http://u:p@h:1", "http://u:***@h:1"),
        ("redis://:p@h/0", "redis://:***@h/0"),
        ("http://h/a@b", "http://h/a@b"),
    ],
)
def test_an_address_is_shown_without_what_opens_it(url: str, shown: str) -> None:
    assert redact_url(url) == shown
