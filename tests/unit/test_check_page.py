"""The types of the page's modules are not checked without node: one line says so, and in CI that is a failure."""
from __future__ import annotations

from pathlib import Path

import check_page
import pytest


@pytest.mark.parametrize(("ci", "status"), [("", 0), ("true", 1)])
def test_without_node_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], ci: str, status: int
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", ci)
    assert check_page.main() == status
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "NOT checked" in said and "apt-get install nodejs npm" in said


def test_an_npx_that_gets_nothing_is_told_with_its_own_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "npx"
    program.write_text("#!/bin/sh\necho 'npm error network unreachable' >&2\nexit 1\n")
    program.chmod(0o755)
    assert "network unreachable" in check_page.lacks(str(program))
