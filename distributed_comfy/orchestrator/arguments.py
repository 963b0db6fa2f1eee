"""Command lines in one text: `split_arguments` and its inverse; on Windows a backslash separates folders and escapes nothing."""
from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence


def split_arguments(text: str, platform: str = sys.platform) -> tuple[str, ...]:
    """The words of ``text``; quotes hold a word with spaces together.

    Args:
        platform: as ``sys.platform``.
    Raises:
        ValueError: a quote is not closed.
    """
    if platform != "win32":
        return tuple(shlex.split(text))
    words = shlex.shlex(text, posix=True)
    words.whitespace_split = True
    words.escape = words.commenters = ""
    return tuple(words)


def join_arguments(words: Sequence[str], platform: str = sys.platform) -> str:
    """A text of which `split_arguments` makes these words again on the same platform."""
    return shlex.join(words) if platform != "win32" else " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    if word and not any(character.isspace() or character in "\"'" for character in word):
        return word
    return '"' + word.replace('"', """"'"'\"""") + '"'  # a double quote stands between single ones
