"""Lines of the log as JSON: one object each, with the job and the item it is about, and no password."""
from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from distributed_comfy.cli.logs import set_up_logging
from distributed_comfy.cli.output import Output
from distributed_comfy.engine.logfile import EngineLog
from distributed_comfy.log_lines import JsonFormatter, PrintedLines, name_worker, now_about, plain, subject
from distributed_comfy.settings import read_settings

JOB = "3f9a12bc77d0"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root, hook = logging.getLogger(), sys.excepthook
    before = (root.handlers[:], root.level)
    now_about()
    yield
    now_about()
    root.handlers[:], root.level = before
    sys.excepthook = hook
    logging.captureWarnings(False)


def entry(message: str, *args: object, formatter: logging.Formatter | None = None, error: Any = None) -> dict[str, Any]:
    """A line as whoever collects logs reads it."""
    record = logging.LogRecord("tasks.run_item", logging.INFO, "", 0, message, args, error)
    line = (formatter or JsonFormatter("pc1-cuda0")).format(record)
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_line_has_time_level_logger_message_and_worker() -> None:
    found = entry("ready: %s", "cüda")
    time = datetime.fromisoformat(found.pop("time"))
    assert abs((datetime.now(timezone.utc) - time).total_seconds()) < 5
    assert found == {"level": "INFO", "logger": "tasks.run_item", "message": "ready: cüda", "worker": "pc1-cuda0"}


@pytest.mark.parametrize(
    ("message", "job", "item"),
    [
        (f"item {JOB}-4 starts (attempt 1, seed 7)", JOB, f"{JOB}-4"),
        (f"worker w: item {JOB}-12 (claim ab) was cancelled", JOB, f"{JOB}-12"),
        (f"job {JOB} item 4: collected from w", JOB, f"{JOB}-4"),
        (f"job {JOB}: all 8 items are here", JOB, None),
        ("worker w is ready", None, None),
        ("item 7 of a list, job interview", None, None),
    ],
)
def test_job_and_item_come_from_the_words_of_the_line(message: str, job: str | None, item: str | None) -> None:
    found = entry(message)
    assert (found.get("job"), found.get("item")) == (job, item)


def test_otherwise_they_come_from_what_the_thread_does() -> None:
    now_about(JOB, 3)
    assert entry("loading a model")["item"] == f"{JOB}-3"
    with subject("0123456789ab", 0):
        assert entry("loading a model")["item"] == "0123456789ab-0"
    assert entry(f"job {JOB}: cancelled")["item"] == f"{JOB}-3", "the same job: the thread knows more"
    assert entry("job 0123456789ab: cancelled").get("item") is None
    other: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: other.append(entry("idle")))
    thread.start()
    thread.join()
    assert "item" not in other[0]
    now_about()
    assert "job" not in entry("asking for an item")


def test_a_traceback_stays_in_its_line_and_no_password_is_in_either() -> None:
    try:
        raise ValueError("redis://:geheim@host\nand more")
    except ValueError:
        found = entry("connected to %s; mail x@y", "rediss://me:geheim@host:1/0", error=sys.exc_info())
    assert found["message"] == "connected to rediss://me:***@host:1/0; mail x@y"
    assert "geheim" not in found["error"] and "ValueError: redis://:***@host\nand more" in found["error"]


def test_the_command_line_writes_nothing_but_json_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    set_up_logging(read_settings(log_format="json"), output, audience="supervisor")
    name_worker("pc1-cpu")
    logging.getLogger("celery.worker").warning("%s and a long line %s", "[red]not markup[/red]", "x" * 500)
    output.warn("a note")
    output.complain("it failed")
    output.remark("")
    sys.excepthook(ValueError, ValueError("oh"), None)
    entries = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [found["level"] for found in entries] == ["WARNING", "WARNING", "ERROR", "CRITICAL"]
    assert entries[0]["message"] == "[red]not markup[/red] and a long line " + "x" * 500
    assert {found["worker"] for found in entries} == {"pc1-cpu"}
    assert entries[3]["error"] == "ValueError: oh"


def test_a_person_sees_text_unless_json_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    set_up_logging(read_settings(), output, audience="person")
    output.complain("it failed")
    assert capsys.readouterr().err == "error: it failed\n"


# -- what is printed ----------------------------------------------------------------------------------------------------
def printed(*writes: bytes) -> list[dict[str, Any]]:
    target = io.StringIO()
    raw = PrintedLines(target, JsonFormatter("w"), "stdout")
    for data in writes:
        assert raw.write(data) == len(data)
    return [json.loads(line) for line in target.getvalue().splitlines()]


def test_what_nodes_print_becomes_lines_with_their_item() -> None:
    with subject(JOB, 2):
        found = printed(b"got prompt\nredis://:geh", b"eim@host\n", b"no end yet")
    assert [line["message"] for line in found] == ["got prompt", "redis://:***@host"]
    assert all(line["item"] == f"{JOB}-2" and line["logger"] == "stdout" for line in found)


def test_each_step_of_a_progress_bar_is_a_line() -> None:
    assert [line["message"] for line in printed(b"\r 10%|#\r", " 20%|█\r\n".encode(), b"\n\n")] == [" 10%|#", " 20%|█"]


def test_bytes_that_are_no_text_do_no_harm() -> None:
    assert [line["message"] for line in printed(b"\xff\xfe\n")] == ["\ufffd\ufffd"]


def test_the_last_words_of_an_engine_are_for_people(tmp_path: Path) -> None:
    log = EngineLog(tmp_path / "engine.log")
    try:
        raise RuntimeError("no device")
    except RuntimeError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "cannot start", (), sys.exc_info())
    lines = [JsonFormatter("w").format(record), "Fatal Python error: Aborted", '{"time": "of a node"}']
    log.path.write_text("\n".join(lines))
    first, *_, last, fatal, other = log.tail().splitlines()
    assert (first, last, fatal, other) == ("cannot start", "RuntimeError: no device", lines[1], lines[2])
    assert plain("text") == "text"
