"""Arguments of ComfyUI in one text: what the command line joins, the worker splits, on any system."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_comfy.orchestrator.arguments import join_arguments, split_arguments

PLATFORMS = ["linux", "darwin", "win32"]


@pytest.mark.parametrize("platform", PLATFORMS)
@given(words=st.lists(st.text()))
def test_joined_words_are_split_into_the_same(platform: str, words: list[str]) -> None:
    assert split_arguments(join_arguments(words, platform), platform) == tuple(words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (r"--base-directory C:\apps\comfy --lowvram", ("--base-directory", r"C:\apps\comfy", "--lowvram")),
        (r'--output-directory "D:\My Pictures\"', ("--output-directory", "D:\\My Pictures\\")),
        (r"\\host\share #1", (r"\\host\share", "#1")),
        ("", ()),
    ],
)
def test_windows_paths_stay_whole_on_windows(text: str, words: tuple[str, ...]) -> None:
    assert split_arguments(text, "win32") == words


def test_elsewhere_a_backslash_escapes_as_in_a_shell() -> None:
    assert split_arguments(r"a\ b 'c d'", "linux") == ("a b", "c d")


@pytest.mark.parametrize("platform", PLATFORMS)
def test_an_open_quote_is_refused(platform: str) -> None:
    with pytest.raises(ValueError, match="No closing quotation"):
        split_arguments("--one 'two", platform)
