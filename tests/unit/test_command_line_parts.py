"""Parts of the command line that need no cluster: help, logs, errors in words, signals, devices of own workers."""
from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from distributed_comfy import __version__
from distributed_comfy.cli.cluster import ago, out_or_default
from distributed_comfy.cli.commands import interruptibly
from distributed_comfy.cli.failures import cause, details, error_json
from distributed_comfy.cli.logs import set_up_logging
from distributed_comfy.cli.main import main
from distributed_comfy.cli.output import Output
from distributed_comfy.engine.locate import choose_devices
from distributed_comfy.errors import ItemsOutOfRange, JobFailed, NodeFailed
from distributed_comfy.log_lines import TextFormatter
from distributed_comfy.orchestrator.background import Background
from distributed_comfy.orchestrator.doctor.examination import check_settings
from distributed_comfy.orchestrator.submit import SubmitOptions, check_early, read_prompt
from distributed_comfy.settings import child_environment, read_settings
from tests.prompts import node, out, txt2img

COMMANDS = [["demo"], ["run"], ["worker"], ["workers"], ["jobs"], ["doctor"]]
COMMANDS += [["workers", name] for name in ("list", "show", "logs", "drain", "undrain", "look", "free")]
COMMANDS += [["models"], ["models", "list"], ["models", "missing"]]
COMMANDS += [["jobs", name] for name in ("list", "show", "cancel", "retry", "pause", "resume", "priority", "attach")]


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


# -- help ---------------------------------------------------------------------------------------------------------------
def test_the_overview_names_every_command() -> None:
    done = invoke("--help")
    assert done.exit_code == 0
    for command in ("demo", "run", "worker", "workers", "jobs"):
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE)
    assert "Exit status: 0 done, 1 failed, 2 bad input, 3 no worker or no Redis, 4 not invited any more, 130 cancelled" in done.stdout


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_and_option_explains_itself(command: list[str]) -> None:
    done = invoke(*command, "--help")
    assert done.exit_code == 0, done.output
    assert len(done.stdout.partition("Options:")[0].splitlines()) >= 3, "a sentence stands below the usage"
    assert "..." not in re.sub(r"COMMAND \[ARGS\]\.\.\.", "", done.stdout), "no short help is cut off"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_option_has_a_help_text(command: list[str]) -> None:
    found: Any = main
    for name in command:
        found = found.get_command(click.Context(found), name)
    assert [option.opts for option in found.params if isinstance(option, click.Option) and not option.hidden and not option.help] == []


@pytest.mark.parametrize("command", ["run", "worker"])
def test_the_two_main_commands_show_examples(command: str) -> None:
    assert f"  distributed-comfy {command} " in invoke(command, "--help").stdout


def test_the_version_is_that_of_the_package() -> None:
    assert invoke("--version").stdout == f"distributed-comfy, version {__version__}\n"


def test_an_unknown_command_is_refused() -> None:
    done = invoke("launch")
    assert done.exit_code == 2 and "No such command 'launch'" in done.stderr


# -- logs ---------------------------------------------------------------------------------------------------------------
def test_a_log_line_has_time_and_level_and_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(read_settings(), Output(), audience="supervisor")
    logging.getLogger("x").info("connected to %s", "redis://user:geheim@host:6379/0")
    line = capsys.readouterr().err
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO    connected to redis://user:\*\*\*@host:6379/0\n", line)


def test_passwords_in_tracebacks_are_taken_out_too() -> None:
    try:
        raise ValueError("redis://:geheim@host")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "oh", (), sys.exc_info())
    text = TextFormatter("%(message)s").format(record)
    assert "geheim" not in text and "redis://:***@host" in text


@pytest.mark.parametrize(
    ("audience", "level", "shown"),
    [("person", "INFO", ["warning"]), ("person", "DEBUG", ["debug", "info", "warning"]), ("person", "ERROR", []),
     ("supervisor", "INFO", ["info", "warning"]), ("supervisor", "WARNING", ["warning"])],
)  # fmt: skip
def test_a_person_sees_warnings_and_a_supervisor_what_was_asked_for(
    audience: Any, level: str, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging(read_settings(log_level=level), Output(), audience=audience)
    for name in ("debug", "info", "warning"):
        getattr(logging.getLogger("x"), name)("%s", name)
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == shown


def test_a_misspelt_variable_is_told_once_and_not_by_commands_that_this_one_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DC_REDIS_ULR", "redis://host")
    set_up_logging(read_settings(), Output(), audience="person")
    assert capsys.readouterr().err == "note: DC_REDIS_ULR is no setting and is ignored; did you mean DC_REDIS_URL?\n"
    set_up_logging(read_settings(), Output(), audience="supervisor", child=True)
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("DC_REDIS_ULR")
    set_up_logging(read_settings(), Output(), audience="person")
    assert capsys.readouterr().err == ""


def test_the_doctor_warns_of_a_misspelt_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.level for finding in check_settings(read_settings())] == ["ok"]
    monkeypatch.setenv("DC_SLOT", "2")
    (_, found) = check_settings(read_settings())
    assert found.level == "warn" and "did you mean DC_SLOTS?" in found.found and found.remedy


# -- errors -------------------------------------------------------------------------------------------------------------
def failed_job() -> JobFailed:
    facts = {"node_id": "7", "class_type": "KSampler", "exception_type": "ValueError", "exception_message": "no"}
    frames = [f'  File "nodes.py", line {number}, in f\n    g({number})\n' for number in range(9)]
    error = NodeFailed(**facts, traceback=frames)
    wire = {**error.to_wire(), "worker": "pc1-cuda0", "index": 3}
    return JobFailed(job_id="ab", index=3, worker="pc1-cuda0", last=str(error), error=wire)


def test_a_failed_node_is_shown_with_item_worker_and_the_end_of_its_traceback() -> None:
    lines = details(failed_job())
    assert lines[:2] == ["node 7 (KSampler), item 3, worker pc1-cuda0: ValueError: no", "on the worker, innermost last:"]
    assert lines[-1].strip() == "g(8)" and len(lines) <= 12
    assert isinstance(cause(failed_job()), NodeFailed)


def test_the_frames_of_comfyui_are_shown_with_file_line_and_code_and_without_underlines() -> None:
    """It sends the traceback as one text."""
    frame = '  File "/comfy/nodes.py", line {0}, in f{0}\n    raise_{0}(model)\n    ^^^^^^^~~^^^^^^^\n'
    error = NodeFailed(
        node_id="7", class_type="KSampler", exception_type="ValueError", exception_message="no",
        traceback="".join(frame.format(number) for number in range(9)),
    )  # fmt: skip
    assert details(error)[1:] == [
        "on the worker, innermost last:",
        '  File "/comfy/nodes.py", line 6, in f6', "    raise_6(model)",
        '  File "/comfy/nodes.py", line 7, in f7', "    raise_7(model)",
        '  File "/comfy/nodes.py", line 8, in f8', "    raise_8(model)",
    ]  # fmt: skip


def test_an_error_without_a_node_needs_no_more_words() -> None:
    assert details(ItemsOutOfRange(items=0, limit=9)) == []


def test_an_error_as_json_holds_its_facts() -> None:
    found = error_json(ItemsOutOfRange(items=0, limit=9))
    facts = {"items": 0, "limit": 9}
    assert found == {"code": "items_out_of_range", "message": "items must be from 1 to 9, not 0", "exit_code": 2, "fields": facts}
    assert error_json(None) is None


# -- the way a run ends -------------------------------------------------------------------------------------------------
def send(number: int, after_s: float) -> None:
    timer = threading.Timer(after_s, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sets_the_event_and_breaks_into_nothing(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    send(number, 0.2)
    steps = []

    def work(stop: threading.Event) -> str:
        steps.append(stop.wait(10))
        time.sleep(0.3)
        steps.append("cleaned up")
        return "result"

    assert interruptibly(Output(), work) == "result"
    assert steps == [True, "cleaned up"] and "ending, please wait" in capsys.readouterr().err
    assert signal.getsignal(number) is before


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        send(signal.SIGHUP, 0.05)
        assert interruptibly(Output(), lambda stop: stop.wait(0.3)) is False
    finally:
        signal.signal(signal.SIGHUP, before)


def test_errors_of_a_run_come_out_as_they_are() -> None:
    def work(stop: threading.Event) -> None:
        raise ItemsOutOfRange(items=0, limit=1)

    with pytest.raises(ItemsOutOfRange):
        interruptibly(Output(), work)


def test_background_work_can_be_waited_for_and_asked_more_than_once() -> None:
    background = Background(lambda stop: stop.wait(5), "test")
    assert background.wait(0.01) is False and not background.stopping
    background.stop()
    assert background.wait(5) and background.result() is True and background.result() is True


# -- small things -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("ms", "words"), [(0, "0 s"), (-5, "0 s"), (119_999, "119 s"), (120_000, "2 min"), (7_200_000, "2 h"), (172_800_000, "2 d")]
)
def test_ages_are_told_in_one_unit(ms: int, words: str) -> None:
    assert ago(10**12 + ms, 10**12) == words


def test_a_folder_is_found_for_everybody() -> None:
    assert out_or_default(None, "cats.api.json") == Path("output/cats.api")
    assert out_or_default(None, "") == Path("output/prompt") and out_or_default(Path("x"), "y") == Path("x")


def test_own_workers_take_the_gpus_in_turn_that_this_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: H200 (UUID: GPU-1)'\necho '  MIG 1g (UUID: MIG-1)'\necho 'GPU 1: H200 (UUID: GPU-2)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    settings = read_settings()
    assert choose_devices(settings, "comfyui", {}) == ["cuda:0", "cuda:1"]
    assert choose_devices(settings, "comfyui", {"CUDA_VISIBLE_DEVICES": "5,6,7"}) == ["cuda:0", "cuda:1", "cuda:2"]
    assert choose_devices(settings, "builtin", {}) == ["cpu"]
    assert choose_devices(read_settings(device="cuda:1"), "comfyui", {}) == ["cuda:1"]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert choose_devices(settings, "comfyui", {}) == ["cpu"]


def test_a_child_inherits_settings_however_they_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DC_LEASE_TTL_S", "9")
    monkeypatch.setenv("SOMETHING_ELSE", "kept")
    settings = read_settings(slots=3, comfyui_path=Path("/c"))
    child = child_environment(settings, engine="builtin", device=None)
    assert (child["DC_LEASE_TTL_S"], child["DC_SLOTS"], child["COMFYUI_PATH"], child["DC_ENGINE"]) == ("9.0", "3", "/c", "builtin")
    assert child["SOMETHING_ELSE"] == "kept" and "DC_DEVICE" not in child


def test_what_only_workers_can_know_is_not_refused_early() -> None:
    custom = {"make": node("MyLoader"), "save": node("MySaver", thing=out("make"))}
    check_early(read_prompt(custom, SubmitOptions()), SubmitOptions(items=4))
    with pytest.raises(ItemsOutOfRange):
        check_early(read_prompt(custom, SubmitOptions()), SubmitOptions(items=10_001))
    with pytest.raises(ItemsOutOfRange):
        check_early(read_prompt(txt2img(), SubmitOptions()), SubmitOptions(items=0))
