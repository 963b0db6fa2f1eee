"""The style check itself: each finding has a file that provokes it, and a good file provokes none."""
from __future__ import annotations

from pathlib import Path

import check_style
import pytest


def long_function(lines: int, docstring_lines: int = 1) -> str:
    docstring = '    """' + "text\n" * docstring_lines + '    """\n'
    return "def f():\n" + docstring + "    x = 1\n" * (lines - 1)


@pytest.mark.parametrize(
    ("path", "source", "finding"),
    [
        ("state/keys.py", "x = 1\n" * 451, "451 lines"),
        ("state/utils.py", "x = 1\n", "says nothing"),
        ("state/keys.py", long_function(51), "f has 51 lines"),
        ("state/keys.py", "class LeaseManager:\n    pass\n", "LeaseManager says nothing"),
        ("state/keys.py", "class A:\n    async def f(self):\n" + "        x = 1\n" * 50, "f has 51 lines"),
    ],
)
def test_a_breach_is_found_and_named(path: str, source: str, finding: str) -> None:
    (found,) = check_style.findings(Path(path), source)
    assert found.startswith(path)
    assert finding in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("state/keys.py", "x = 1\n" * 450),
        ("state/keys.py", long_function(50)),
        ("state/keys.py", long_function(40, docstring_lines=30)),
        ("distributed_comfy/errors.py", "x = 1\n" * 600),
    ],
)
def test_a_file_within_the_limits_passes(path: str, source: str) -> None:
    assert list(check_style.findings(Path(path), source)) == []


def test_the_whole_project_is_looked_at() -> None:
    looked_at = {path.name for path in check_style.python_files(check_style.ROOT)}
    assert {"errors.py", "messages.py", "settings.py", "check_style.py"} <= looked_at
