"""``distributed-comfy run`` with real workers: what it saves, what it says, and how it fails."""
from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from tests.cluster_rig import Rig
from tests.command_line import CommandLine, pictures, pixels, slow, texts, until
from tests.conftest import RedisServer
from tests.prompts import node, out

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = pytest.mark.redis


@pytest.fixture
def line(builtin_rig: Rig, tmp_path: Path) -> CommandLine:
    return on_rig(builtin_rig, tmp_path)


def on_rig(rig: Rig, folder: Path) -> CommandLine:
    """A command line on the rig's servers and workers."""
    cluster = rig.cluster
    return CommandLine(folder, DC_REDIS_URL=cluster.redis_url, DC_BLOB_URL=cluster.blob_url, DC_KEY_PREFIX=cluster.settings.key_prefix)


def saved(folder: Path) -> list[Path]:
    """The files of a job, by name; hidden ones too."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def pngs(folder: Path) -> list[Path]:
    """The images of a job, by name."""
    return sorted(folder.glob("*.png"))


def test_n_images_come_in_order_each_with_the_prompt_and_its_seed(line: CommandLine) -> None:
    prompt = pictures(seed=500)
    done = line.run("run", line.write("graph.json", prompt), "--items", "6", "--out", "made")
    assert done.status == 0, done.err
    files = saved(line.folder / "made")
    assert [path.name for path in files] == [f"ComfyUI_{number:05}_.png" for number in range(1, 7)]
    assert [texts(path)["seed"] for path in files] == list(range(500, 506))
    assert all(texts(path)["prompt"] == prompt for path in files)
    assert len({pixels(path).tobytes() for path in files}) == 6
    assert done.out.splitlines() == [f"made/{path.name}" for path in files]
    assert "6 files" in done.err and "from 2 workers" in done.err


def test_an_upscale_fills_in_a_file_that_one_can_watch(line: CommandLine) -> None:
    done = line.run("run", str(EXAMPLES / "upscale_seeded.json"), "--out", "made", "--preview", "watch/canvas.jpg")
    assert done.status == 0, done.err
    upscaled = max(map(pixels, pngs(line.folder / "made")), key=lambda one: one.size)
    with Image.open(line.folder / "watch" / "canvas.jpg") as shown:
        small = numpy.asarray(shown, float)
    every = -(-max(upscaled.shape[:2]) // 512)
    assert small.shape == upscaled[::every, ::every].shape, "the last one is that of the whole canvas"
    assert abs(small - upscaled[::every, ::every]).mean() < 8


@pytest.mark.parametrize("more", [[], ["--detach"]])
def test_a_preview_that_is_no_picture_is_refused_before_anything_runs(line: CommandLine, more: list[str]) -> None:
    refused = line.run("run", str(EXAMPLES / "upscale_seeded.json"), "--preview", "canvas.txt", *more)
    assert refused.status == 2 and "canvas.txt must end with one of" in refused.err


def test_only_workers_with_every_tag_get_items(line: CommandLine, builtin_rig: Rig) -> None:
    builtin_rig.start("tagged", worker_tags="garage, big")
    found = line.run("run", line.write("graph.json", pictures()), "--items", "4", "--tag", "big", "--tag", "garage", "--json").json
    refused = line.run("run", line.write("graph.json", pictures()), "--tag", "big", "--tag", "attic")
    builtin_rig.stop("tagged")
    assert {item["worker"] for item in found["items"]} == {"tagged"}
    assert refused.status == 3 and "tag attic" in refused.err


def test_the_result_as_json_names_job_files_and_who_made_what(line: CommandLine) -> None:
    found = line.run("run", line.write("graph.json", pictures(seed=7)), "--items", "3", "--json").json
    assert found["error"] is None and len(found["job"]) == 12 and found["seconds"] > 0
    assert [item["seed"] for item in found["items"]] == ["7", "8", "9"]
    assert {item["worker"] for item in found["items"]} <= {"one", "two"}
    assert all(item["seconds"] > 0 and item["engine"] == "builtin" for item in found["items"])
    assert [item["files"] for item in found["items"]] == [[path] for path in found["files"]]
    assert found["out"] == "output/graph" and all((line.folder / path).is_file() for path in found["files"])


def test_items_that_fail_can_be_left_out_and_are_named(line: CommandLine) -> None:
    prompt = pictures(seed=500)
    prompt["bad"] = node("RuleFail", images=out("make"), seed=out("seed"), bad_seed=501)
    prompt["collect"]["inputs"]["images"] = out("bad")
    path = line.write("graph.json", prompt)
    done = line.run("run", path, "--items", "3", "--on-missing", "drop", "--out", "made")
    assert done.status == 0, done.err
    assert len(saved(line.folder / "made")) == 2
    assert "item 1 is missing" in done.err and "seed 501 brings no luck" in done.err
    found = line.run("run", path, "--items", "3", "--on-missing", "repeat", "--json").json
    assert [(entry["index"], entry["error"]["code"]) for entry in found["missing"]] == [(1, "node_failed")] and len(found["files"]) == 3
    kept = line.run("run", path, "--items", "3", "--on-missing", "drop", "--results", "celery")
    assert kept.status == 0 and len(kept.out.splitlines()) == 2 and "item 1 is missing" in kept.err
    assert line.run("run", path, "--items", "3").status == 1
    empty = node("EmptyImage", width=8, height=8, batch_size=1, color=0)
    whole = line.write("whole.json", {"empty": empty, "save": node("SaveImage", images=out("empty"), filename_prefix="x")})
    refused = line.run("run", whole, "--on-missing", "drop")
    assert refused.status == 2 and "DistributedCollector" in refused.err


def test_a_seed_and_inputs_can_be_changed_from_the_command_line(line: CommandLine) -> None:
    path = line.write("graph.json", pictures())
    changes = ("--set", "make.width=64", "--set", "SeededGenerator.style=agate")
    done = line.run("run", path, "--items", "2", "--seed", "18446744073709551610", *changes, "--out", "made")
    assert done.status == 0, done.err
    files = saved(line.folder / "made")
    assert [texts(path)["seed"] for path in files] == [2**64 - 6, 2**64 - 5]
    assert [Image.open(path).size for path in files] == [(64, 32)] * 2
    used = texts(files[0])["prompt"]
    assert (used["make"]["inputs"]["style"], used["seed"]["inputs"]["seed"]) == ("agate", 2**64 - 6)


def test_a_second_run_overwrites_nothing(line: CommandLine) -> None:
    path = line.write("graph.json", pictures())
    for _ in range(2):
        assert line.run("run", path, "--items", "2").status == 0
    first, second, third, fourth = (pixels(path) for path in saved(line.folder / "output" / "graph"))
    assert numpy.array_equal(first, third) and numpy.array_equal(second, fourth)


def test_a_prompt_without_distributed_nodes_runs_once_and_all_its_files_are_saved(line: CommandLine) -> None:
    prompt = {
        "make": node("EmptyImage", width=16, height=8, batch_size=2, color=0x00FF00),
        "save": node("SaveImage", images=out("make"), filename_prefix="sub/green"),
        "show": node("PreviewImage", images=out("make")),
    }
    found = line.run("run", line.write("plain.json", prompt), "--out", "made", "--json").json
    assert len(found["items"]) == 1
    names = [path.relative_to(line.folder / "made").as_posix() for path in saved(line.folder / "made")]
    assert {"sub/green_00001_.png", "sub/green_00002_.png"} < set(names) and len(names) == 4


def test_output_nodes_on_both_sides_of_the_collector_are_saved_once(line: CommandLine) -> None:
    prompt = pictures()
    prompt["first"] = node("SaveImage", images=out("make"), filename_prefix="before")
    prompt["invert"] = node("ImageInvert", image=out("collect"))
    prompt["last"] = node("SaveImage", images=out("invert"), filename_prefix="after")
    done = line.run("run", line.write("graph.json", prompt), "--items", "3", "--out", "made")
    assert done.status == 0, done.err
    names = [path.name for path in saved(line.folder / "made")]
    assert names == ["after_00001_.png", "after_00002_.png", "after_00003_.png", "before_00001_.png"]
    before, after = pixels(line.folder / "made" / names[3]), pixels(line.folder / "made" / names[0])
    assert numpy.abs((255 - before.astype(int)) - after).max() <= 1, "the saved batch is the inverted one, up to rounding"
    assert "and a last stage" in done.err


def test_a_picture_that_the_prompt_loads_is_brought_to_the_worker(line: CommandLine) -> None:
    picture = numpy.random.default_rng(1).integers(0, 256, (24, 40, 3), numpy.uint8)
    Image.fromarray(picture).save(line.folder / "beside-the-prompt.png")
    prompt = {
        "load": node("LoadImage", image="beside-the-prompt.png"),
        "save": node("SaveImage", images=out("load"), filename_prefix="copy"),
    }
    done = line.run("run", line.write("load.json", prompt), "--out", "made")
    assert done.status == 0, done.err
    assert numpy.array_equal(pixels(line.folder / "made" / "copy_00001_.png"), picture)


def test_a_node_that_raises_fails_the_job_in_plain_words_and_finished_images_are_kept(line: CommandLine, builtin_rig: Rig) -> None:
    prompt = pictures(seed=100)
    prompt["fail"] = node("RuleFail", images=out("make"), seed=out("seed"), bad_seed=103)
    prompt["collect"]["inputs"]["images"] = out("fail")
    prompt["wait"] = node("RuleSlow", images=out("fail"), milliseconds=150)
    prompt["collect"]["inputs"]["images"] = out("wait")
    done = line.run("run", line.write("graph.json", prompt), "--items", "8", "--out", "made", "--json")
    assert done.status == 1
    found = done.json
    message = "node fail (RuleFail) raised ValueError: seed 103 brings no luck"
    assert found["error"]["code"] == "job_failed" and message in found["error"]["message"]
    assert found["error"]["fields"]["index"] == 3 and found["error"]["fields"]["worker"] in ("one", "two")
    assert f"error: job {found['job']} failed: item 3 on worker {found['error']['fields']['worker']}: {message}" in done.err
    assert "on the worker, innermost last:" in done.err and 'raise ValueError(f"seed {seed} brings no luck")' in done.err
    files = pngs(line.folder / "made")
    assert 2 <= len(files) < 8
    assert [texts(path)["seed"] for path in files] == [int(item["seed"]) for item in found["items"]]
    assert f"{len(files)} of 8 items were finished; {len(files)} files are in made" in done.err
    states = {state.state for state in builtin_rig.cluster.jobs.item_states(found["job"]).values()}
    assert states <= {"done", "failed", "stopped", "pending"} and "failed" in states
    shown = line.run("jobs", "show", found["job"])
    assert "item 3 failed on" in shown.out and "brings no luck" in shown.out and "raise ValueError" in shown.out


def test_ctrl_c_cancels_the_job_and_keeps_what_is_finished(line: CommandLine, builtin_rig: Rig) -> None:
    process = line.start("run", line.write("graph.json", slow(400)), "--items", "50", "--out", "made", "--json")
    until(lambda: (line.folder / "made").is_dir() and len(pngs(line.folder / "made")) >= 2)
    done = line.interrupt(process)
    assert done.status == 130, done.err
    found = done.json
    assert found["error"]["code"] == "job_cancelled" and "interrupted by its user" in done.err
    here = pngs(line.folder / "made")
    assert len(here) == len(found["files"]) >= 2 and f"{len(here)} of 50 items were finished" in done.err
    assert builtin_rig.cluster.jobs.job_state(found["job"]).state == "cancelled"
    until(lambda: all(worker.state != "busy" for worker in builtin_rig.cluster.workers.workers()), timeout_s=5)
    assert until(lambda: not line.left_running())


def test_a_run_brings_its_own_redis_and_workers_and_takes_them_away(tmp_path: Path) -> None:
    line = CommandLine(tmp_path)
    done = line.run("run", line.write("graph.json", pictures()), "--items", "4", "--workers", "2", "--engine", "builtin", "--json")
    assert done.status == 0, done.err
    assert len(done.json["files"]) == 4
    assert line.left_running() == [] and line.left_lying() == []
    assert list((tmp_path / "cache" / "workers").iterdir()) == [], "folders of workers that ended well are removed"


def test_a_run_whose_workers_cannot_start_says_why(tmp_path: Path) -> None:
    line = CommandLine(tmp_path)
    path = line.write("graph.json", pictures())
    done = line.run("run", path, "--workers", "1", "--engine", "builtin", DC_DEVICE="cuda:7", CUDA_VISIBLE_DEVICES="")
    assert done.status in (1, 2, 3) and "cuda" in done.err and "Traceback" not in done.err, done.err
    assert line.left_running() == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_parks_the_job_and_nothing_is_lost(line: CommandLine, builtin_rig: Rig) -> None:
    """Files above a size cannot be written, as on a full disk; with room the job goes on."""
    path = line.write("graph.json", pictures(seed=30, width=256, height=256))
    command = f'ulimit -f 100; exec "{sys.executable}" -m distributed_comfy run "{path}" --items 4 --out made --json'
    where: dict[str, Any] = {"cwd": line.folder, "env": line.environment}
    full = subprocess.run(["sh", "-c", command], **where, capture_output=True, text=True, check=False, timeout=60)
    assert full.returncode == 2, full.stderr
    job_id = json.loads(full.stdout)["job"]
    assert "error: cannot write to made" in full.stderr and "free space there or choose another folder with --out" in full.stderr
    assert f"nothing is lost: `distributed-comfy jobs attach {job_id} --out DIR` goes on" in full.stderr
    done = line.run("jobs", "attach", job_id, "--out", "elsewhere", "--json")
    assert done.status == 0, done.err
    assert [texts(line.folder / file)["seed"] for file in done.json["files"]] == [30, 31, 32, 33]
    assert sorted(index for index, _, _ in builtin_rig.executions(job_id)) == [0, 1, 2, 3], "no item ran twice"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_ends_a_run_whose_redis_is_gone(redis_server: RedisServer, tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    options = ("--port", "0", "--unixsocket", str(folder / "s"), "--dir", str(folder), "--save", "")
    server = subprocess.Popen([redis_server.program, *options], stdout=subprocess.DEVNULL)
    try:
        until((folder / "s").exists)
        line = CommandLine(tmp_path, DC_REDIS_URL=f"unix://{folder / 's'}")
        path = line.write("graph.json", pictures(steps=600, width=512, height=512))
        process = line.start("run", path, "--items", "4", "--workers", "1", "--engine", "builtin")
        until(lambda: "job " in process.stderr.readline(), timeout_s=60)  # type: ignore[union-attr]
        time.sleep(1.0)  # the first item is under way
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
    time.sleep(1.0)
    began = time.monotonic()
    done = line.interrupt(process)
    assert done.status == 130 and "interrupted before all of the job was here" in done.err, done.err
    assert "jobs attach" in done.err and "Traceback" not in done.err
    assert time.monotonic() - began < 40
    assert until(lambda: not line.left_running())
