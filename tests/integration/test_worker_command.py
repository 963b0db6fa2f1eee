"""``distributed-comfy worker`` and ``worker_entry.py`` as processes: what they say, how they are found, how they end."""
from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.command_line import PROJECT, CommandLine, pictures, until

pytestmark = [pytest.mark.redis, pytest.mark.timeout(180)]


@pytest.fixture
def line(redis_url: str, blob_url: str, tmp_path: Path) -> Iterator[CommandLine]:
    line = CommandLine(tmp_path, DC_REDIS_URL=redis_url, DC_BLOB_URL=blob_url)
    yield line
    assert until(lambda: not line.left_running())


def ready(process: subprocess.Popen[str]) -> list[str]:
    """What a worker says until it is ready."""
    said: list[str] = []
    until(lambda: said.append(process.stderr.readline()) or " is ready" in said[-1] or process.poll() is not None, timeout_s=60)  # type: ignore[union-attr, func-returns-value]
    assert " is ready" in said[-1], said
    return said


def end(line: CommandLine, process: subprocess.Popen[str], number: int = signal.SIGTERM) -> str:
    """Ask a worker to end; what it said."""
    process.send_signal(number)
    done = line.finish(process)
    assert done.status == 0, done.err
    return done.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_says_in_one_line_what_it_is_and_ends_when_asked(line: CommandLine, number: int) -> None:
    process = line.start("worker", "--engine", "builtin", "--device", "cpu", "--name", "desk-1")
    said = ready(process)
    assert sum("worker desk-1 starts: engine builtin on cpu, Redis at redis://127.0.0.1:" in text for text in said) == 1
    assert line.run("workers", "list", "--json").json[0]["name"] == "desk-1"
    began = time.monotonic()
    rest = end(line, process, number)
    assert time.monotonic() - began < 10 and "worker desk-1 ends" in rest and "Traceback" not in rest


def test_workers_without_a_name_get_one_each_from_host_and_device(line: CommandLine) -> None:
    started = [line.start("worker", "--engine", "builtin", "--device", "cpu", DC_HOST="Box.local") for _ in range(2)]
    for process in started:
        ready(process)
    assert {worker["name"] for worker in line.run("workers", "list", "--json").json} == {"box-local-cpu", "box-local-cpu-1"}
    for process in started:
        end(line, process)


def test_a_name_that_is_taken_is_refused(line: CommandLine) -> None:
    first = line.start("worker", "--engine", "builtin", "--name", "only")
    ready(first)
    second = line.run("worker", "--engine", "builtin", "--name", "only")
    assert second.status == 3 and "a live worker is already called 'only'; stop it or choose another --name" in second.err
    assert "starts: engine" not in second.err, "no engine was started for it"
    end(line, first)


def test_worker_entry_does_the_same_by_environment_alone(line: CommandLine) -> None:
    environment = {**line.environment, "DC_ENGINE": "builtin", "DC_DEVICE": "cpu", "DC_WORKER_NAME": "boxed", "DC_WORKER_TAGS": "big, fast"}
    process = subprocess.Popen(
        [sys.executable, PROJECT / "worker_entry.py"],
        env=environment, cwd=line.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert any("worker boxed starts: engine builtin on cpu" in text for text in ready(process))
    assert line.run("workers", "list", "--json").json[0]["tags"] == ["big", "fast"]
    done = line.run("run", line.write("graph.json", pictures()), "--items", "2", "--json").json
    assert {item["worker"] for item in done["items"]} == {"boxed"}
    end(line, process)


def test_a_job_waits_for_its_first_worker_as_long_as_the_user_allows(line: CommandLine) -> None:
    waiting = line.start("run", line.write("graph.json", pictures()), "--items", "2", "--wait", "60", "--json")
    time.sleep(1.0)
    assert waiting.poll() is None
    process = line.start("worker", "--engine", "builtin", "--name", "late")
    done = line.finish(waiting)
    assert done.status == 0 and {item["worker"] for item in done.json["items"]} == {"late"}, done.err
    end(line, process)


def test_a_worker_that_starts_is_told_until_it_gives_up(line: CommandLine) -> None:
    tree = line.folder / "Comfy"
    (tree / "comfy").mkdir(parents=True)
    for name in ("main.py", "nodes.py", "comfy/__init__.py", "comfy/cli_args.py"):
        (tree / name).touch()
    (tree / "comfy" / "options.py").write_text("import time; time.sleep(600)")
    environment = {"COMFYUI_PATH": str(tree), "DC_COMFYUI_PYTHON": sys.executable}
    process = line.start("worker", "--engine", "comfyui", "--device", "cpu", "--name", "slow", **environment)
    assert until(lambda: line.run("workers", "list").out == "starting: slow\n")
    until(lambda: psutil.Process(process.pid).children())  # its engine: before that a signal ends it like any program
    end(line, process)
    assert line.run("workers", "list").out.startswith("no worker is running; ")


def test_two_terminals_of_one_user_meet_at_the_embedded_redis(tmp_path: Path) -> None:
    line = CommandLine(tmp_path)
    process = line.start("worker", "--engine", "builtin", "--name", "here")
    ready(process)
    done = line.run("run", line.write("graph.json", pictures()), "--items", "2", "--json")
    assert done.status == 0 and {item["worker"] for item in done.json["items"]} == {"here"}, done.err
    end(line, process)
    assert until(lambda: not line.left_running())
    listed = line.run("jobs", "list", "--json").json
    assert [(job["job"], job["state"]) for job in listed] == [(done.json["job"], "done")], "jobs outlive the servers, on disk"
    assert until(lambda: not line.left_running())


def test_a_worker_of_a_command_never_outlives_it(line: CommandLine) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "distributed_comfy", "worker", "--engine", "builtin", "--name", "bound", "--end-with-stdin"],
        env=line.environment, cwd=line.folder, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    ready(process)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(10) == 0
    assert process.stderr is not None
    process.stderr.close()
