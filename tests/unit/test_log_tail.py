"""What an engine prints becomes lines that people can read: no colours, no thousand steps of a bar, nothing lost when the file changes."""
from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from distributed_comfy.engine.log_tail import BAR_INTERVAL_S, READ_LIMIT_BYTES, LineFolder, LogTail, clean


def texts(folder: LineFolder, *writes: str, now: float = 100.0) -> list[str]:
    return [text for write in writes for _, text in folder.feed(write.encode(), now)]


# -- lines --------------------------------------------------------------------------------------------------------------
def test_lines_come_when_they_are_complete() -> None:
    assert texts(LineFolder(), "one\ntw", "o\n\n   \nthr") == ["one", "two"]


def test_a_character_may_come_in_two_parts() -> None:
    folder = LineFolder()
    encoded = "grün\n".encode()
    assert folder.feed(encoded[:3], 0.0) == []
    assert folder.feed(encoded[3:], 0.0) == [("", "grün")]


def test_what_has_no_line_end_comes_at_the_end() -> None:
    folder = LineFolder()
    assert texts(folder, "last words") == []
    assert folder.end(0.0) == [("", "last words")] and folder.end(0.0) == []


def test_a_line_without_any_end_does_not_fill_the_memory() -> None:
    folder = LineFolder()
    assert len(texts(folder, *["x" * 1000] * 200)) == 3


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("\x1b[31mred\x1b[0m and \x1b[1;32mgreen\x1b[m", "red and green"),
        ("up \x1b[A\x1b[2Kagain", "up again"),
        ("\x1b]0;a title\x07text\x1b]8;;http://x\x1b\\link", "textlink"),
        ("bell\x07 and\x08 tab\tstays  ", "bell and tab\tstays"),
    ],
)
def test_colours_and_control_characters_go(raw: str, plain: str) -> None:
    assert clean(raw) == plain


def test_a_windows_line_end_is_one() -> None:
    assert texts(LineFolder(), "one\r\ntwo\r\n") == ["one", "two"]


def bar(step: int, of: int = 20) -> str:
    return f"\r{100 * step // of:3}%|{'█' * (step // 2):<10}| {step}/{of} [00:01<00:01, 10.0it/s]"


def test_a_bar_shows_how_far_it_is_now_and_then_and_its_end() -> None:
    folder, shown = LineFolder(), []
    for step in range(20):
        shown += [(step, text) for _, text in folder.feed(bar(step).encode(), now=100.0 + step)]
    shown += [(20, text) for _, text in folder.feed((bar(20) + "\n").encode(), now=120.0)]
    assert [step for step, _ in shown] == [0, 5, 10, 15, 20], f"every {BAR_INTERVAL_S} s, and the end"
    assert "5/20" in shown[1][1] and "20/20" in shown[-1][1] and "\r" not in shown[-1][1]


def test_bars_that_end_their_lines_are_no_better() -> None:
    folder = LineFolder()
    found = texts(folder, *(bar(step).strip("\r") + "\n" for step in range(21)))
    assert len(found) == 2 and "0/20" in found[0] and "20/20" in found[1]


def test_what_is_logged_while_a_bar_grows_is_a_line_of_its_own() -> None:
    folder = LineFolder()
    line = "2026-01-05 09:12:44,018 INFO distributed_comfy.engine.process: item begins\n"
    assert texts(folder, bar(3))[0].startswith(" 15%|")
    assert folder.feed(line.encode(), 100.0) == [("INFO", "item begins")]


def test_text_that_waits_for_its_end_comes_once_also_with_a_return() -> None:
    folder = LineFolder()
    assert texts(folder, "loading model\r") == []
    assert texts(folder, "\n") == ["loading model"]


def test_lines_of_json_are_read_to_people() -> None:
    entry = {"time": "2026-01-05T09:12:44.018+00:00", "level": "ERROR", "logger": "a", "message": "oh", "error": "Traceback: x"}
    printed = {**entry, "logger": "stdout", "level": "INFO", "message": bar(3).strip("\r"), "error": ""}
    folder = LineFolder()
    assert folder.feed(f"{json.dumps(entry)}\n".encode(), 1.0) == [("ERROR", "oh\nTraceback: x")]
    assert len(folder.feed(f"{json.dumps(printed)}\n".encode() * 9, 1.0)) == 1, "a bar here too"
    assert folder.feed(b'{"time": "a node prints that"}\n', 1.0) == [("", '{"time": "a node prints that"}')]


# -- file ---------------------------------------------------------------------------------------------------------------
def test_only_what_is_added_is_read(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_text("of a life before\n")
    tail = LogTail(path)
    assert tail.read() == b""
    with path.open("a") as file:
        file.write("new\n")
    assert tail.read() == b"new\n" and tail.read() == b""


def test_a_file_that_comes_later_is_read_from_its_beginning(tmp_path: Path) -> None:
    tail = LogTail(tmp_path / "engine.log")
    assert tail.read() == b""
    (tmp_path / "engine.log").write_text("first\n")
    assert tail.read() == b"first\n"


def test_a_file_that_is_put_aside_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_text("old\n")
    tail = LogTail(path)
    with path.open("a") as file:
        file.write("last words\n")
    os.replace(path, tmp_path / "engine.log.1")
    path.write_text("new life\n")
    assert tail.read() == b"last words\nnew life\n"
    assert tail.read() == b""


def test_a_file_that_is_emptied_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_text("long and old\n")
    tail = LogTail(path)
    path.write_text("new\n")
    assert tail.read() == b"new\n"


def test_too_much_at_once_is_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.touch()
    tail = LogTail(path)
    path.write_bytes(b"x" * (READ_LIMIT_BYTES + 1000) + b"end\n")
    assert tail.read().endswith(b"xend\n") and tail.skipped_bytes == 1004
    assert tail.read() == b"" and tail.skipped_bytes == 0


def test_a_message_that_begins_with_a_line_end_leaves_no_bare_name_of_its_logger() -> None:
    lines = LineFolder().feed(b"2026-11-29 09:25:33,130 INFO root: \nImport times for custom nodes:\n", 0.0)
    assert [text for _, text in lines] == ["Import times for custom nodes:"]
