"""A master that dies, and the same command again: it goes on where it stopped, with a table that survived and with one that did not."""
from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distributed_comfy.collector.spool import SPOOL_FOLDER
from distributed_comfy.orchestrator.resume import resume
from distributed_comfy.settings import read_settings
from tasks.cluster import open_cluster
from tests.blob_server import BlobServer
from tests.cluster_rig import Rig
from tests.command_line import CommandLine, Finished, pixels, slow, texts, until
from tests.conftest import RedisServer
from tests.prompts import node, out

pytestmark = pytest.mark.redis

ITEMS = 10
SEED = 500


@pytest.fixture
def line(builtin_rig: Rig, tmp_path: Path) -> CommandLine:
    cluster = builtin_rig.cluster
    line = CommandLine(tmp_path, DC_REDIS_URL=cluster.redis_url, DC_BLOB_URL=cluster.blob_url, DC_KEY_PREFIX=cluster.settings.key_prefix)
    line.write("graph.json", slow(300, seed=SEED))
    return line


def start(line: CommandLine, *more: str) -> subprocess.Popen[str]:
    return line.start("run", "graph.json", "--items", str(ITEMS), "--out", "made", "--json", *more)


def spools(line: CommandLine) -> list[Path]:
    return list((line.folder / "made" / SPOOL_FOLDER).glob("*"))


def spooled(line: CommandLine) -> set[int]:
    return {int(path.stem) for folder in spools(line) for path in folder.glob("items/*.json")}


def start_into_a_save_node(line: CommandLine, **changes: Any) -> subprocess.Popen[str]:
    """The collected images are for an output node of the last stage to save."""
    prompt = slow(300, seed=SEED)
    prompt["save"] = node("SaveImage", images=out("collect"), filename_prefix="whole")
    prompt.update(changes)
    line.write("graph.json", prompt)
    return start(line)


def pngs(line: CommandLine) -> list[Path]:
    return sorted((line.folder / "made").glob("*.png"))


def kill_in_the_middle(line: CommandLine) -> str:
    """Kill a run that has saved some of its images; the id of its job."""
    process = start(line)
    until(lambda: len(pngs(line)) >= 3 or process.poll() is not None)
    assert process.poll() is None, line.finish(process)
    os.kill(process.pid, signal.SIGKILL)
    line.finish(process)
    (spool,) = spools(line)
    return spool.name


@pytest.fixture
def blob_server(redis_server: RedisServer, tmp_path: Path) -> Iterator[BlobServer]:
    """One that the test kills and starts again."""
    server = BlobServer(redis_server.program, tmp_path / "blobs")
    yield server
    server.kill()


def check_complete(line: CommandLine) -> None:
    """Every image once, in order, and nothing else."""
    assert [texts(path)["seed"] for path in pngs(line)] == list(range(SEED, SEED + ITEMS))
    assert [path.name for path in pngs(line)] == [f"ComfyUI_{number:05}_.png" for number in range(1, ITEMS + 1)]
    assert sorted(path.name for path in (line.folder / "made").iterdir()) == [path.name for path in pngs(line)]


def test_the_same_command_goes_on_where_a_killed_one_stopped(line: CommandLine, builtin_rig: Rig) -> None:
    old = kill_in_the_middle(line)
    before, here = {path: path.stat().st_mtime_ns for path in pngs(line)}, spooled(line)
    done = line.finish(start(line))
    assert done.status == 0, done.err
    found = done.json
    assert f"goes on with job {old}, which nobody collected: " in done.err and found["job"] == old
    check_complete(line)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was saved stays as it is"
    assert sorted(index for index, *_ in builtin_rig.executions(old)) == list(range(ITEMS)), "what its workers had goes on"
    assert here and len(found["files"]) == ITEMS
    assert builtin_rig.cluster.jobs.job_state(old).state == "done"


def kill_and_wait_until_parked(line: CommandLine, rig: Rig) -> tuple[str, set[int]]:
    """A job whose owner lease has run out while some of it was left to do, and its finished items; some of them lie in the blob store."""
    line.write("graph.json", slow(1000, seed=SEED))
    line.environment["DC_OWNER_TTL_S"] = "1"
    old, jobs = kill_in_the_middle(line), rig.cluster.jobs
    jobs.pause(old)  # for a slow reaper: what runs is finished
    until(lambda: (state := jobs.job_state(old)).state == "parked" and not state.counts["running"])
    finished = {index for index, item in jobs.item_states(old).items() if item.state == "done"}
    assert len(spooled(line)) < len(finished) < ITEMS
    return old, finished


def test_what_workers_finish_after_the_master_was_killed_does_not_run_again_for_another_job_either(
    line: CommandLine, builtin_rig: Rig
) -> None:
    old, finished = kill_and_wait_until_parked(line, builtin_rig)
    done = line.finish(start(line, "--priority", "7"))
    assert done.status == 0, done.err
    assert f"goes on where job {old} stopped: {len(finished)} of" in done.err and done.json["job"] != old
    check_complete(line)
    assert {index for index, *_ in builtin_rig.executions(done.json["job"])} == set(range(ITEMS)) - finished


def test_a_reaper_that_comes_while_the_old_job_is_fetched_leaves_its_results(
    line: CommandLine, builtin_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled job without an owner is none whose results anybody will fetch."""
    (old, finished), cluster = kill_and_wait_until_parked(line, builtin_rig), builtin_rig.cluster
    cancel = cluster.jobs.cancel

    def cancel_slowly(job_id: str, reason: str) -> None:
        cancel(job_id, reason)
        time.sleep(3 * cluster.settings.reaper_interval_s)

    monkeypatch.setattr(cluster.jobs, "cancel", cancel_slowly)
    record = replace(cluster.jobs.record(old), job_id="0123456789ab", priority=7)
    resumed = resume(cluster, record, line.folder / "made", "somebody-1")
    assert resumed is not None and resumed.record is None
    with resumed.spool:
        assert set(resumed.spool.items()) == finished


def test_it_goes_on_even_if_the_table_is_lost(line: CommandLine, builtin_rig: Rig) -> None:
    old = kill_in_the_middle(line)
    here = spooled(line)
    cluster = builtin_rig.cluster
    cluster.jobs.cancel(old, "as if its Redis had been emptied")
    for key in cluster.client.scan_iter(f"{cluster.settings.key_prefix}*{old}*"):
        cluster.client.delete(key)
    done = line.finish(start(line))
    assert done.status == 0, done.err
    assert f"{len(here)} of {ITEMS} items here already" in done.err
    check_complete(line)
    assert {index for index, *_ in builtin_rig.executions(done.json["job"])} == set(range(ITEMS)) - here


def test_a_run_whose_items_are_all_here_needs_no_worker_time(line: CommandLine, builtin_rig: Rig) -> None:
    """The master died between the last result and the last file."""
    process = start(line)
    until(lambda: spooled(line))
    (spool,) = spools(line)
    os.kill(process.pid, signal.SIGSTOP)  # results that nobody fetches any more stay in the blob store
    jobs = builtin_rig.cluster.jobs
    until(lambda: jobs.job_state(spool.name).ended or jobs.job_state(spool.name).state == "parked")
    finished = jobs.job_state(spool.name).counts["done"]
    os.kill(process.pid, signal.SIGKILL)
    line.finish(process)
    done = line.finish(start(line))
    assert done.status == 0, done.err
    check_complete(line)
    assert finished and len(builtin_rig.executions(done.json["job"])) == ITEMS and done.json["job"] == spool.name


def test_another_prompt_or_fresh_starts_afresh(line: CommandLine, builtin_rig: Rig) -> None:
    kill_in_the_middle(line)
    shutil.copytree(line.folder / "made", line.folder / "kept")
    fresh = line.finish(start(line, "--fresh"))
    assert fresh.status == 0 and "goes on" not in fresh.err
    assert len(builtin_rig.executions(fresh.json["job"])) == ITEMS
    shutil.rmtree(line.folder / "made")
    (line.folder / "kept").rename(line.folder / "made")
    other = line.finish(start(line, "--set", "make.width=40"))
    assert other.status == 0 and "goes on" not in other.err
    assert len(spools(line)) == 1, "what the first run left stays for a run that can use it"
    assert {pixels(line.folder / path).shape[1] for path in other.json["files"]} == {40}


def interrupt_in_the_middle(line: CommandLine, process: subprocess.Popen[str]) -> Finished:
    """Ctrl-C after some items; every finished one is an image."""
    until(lambda: len(spooled(line)) >= 3 or process.poll() is not None)
    done = line.interrupt(process)
    assert done.status == 130, done.err
    found, here = done.json, pngs(line)
    assert 3 <= len(here) == len(found["items"]) == len(found["files"])
    assert [texts(path)["seed"] for path in here] == sorted(int(item["seed"]) for item in found["items"])
    assert [path.name for path in here] == [f"ComfyUI_{number:05}_.png" for number in range(1, len(here) + 1)]
    assert f"{len(here)} of {ITEMS} items were finished; {len(here)} files are in made" in done.err
    return done


def test_an_interrupted_job_leaves_its_images_also_where_a_node_of_its_last_stage_saves_them(line: CommandLine, builtin_rig: Rig) -> None:
    first = interrupt_in_the_middle(line, start_into_a_save_node(line))
    here = pngs(line)
    assert "the same command goes on with them" in first.err
    assert {texts(path)["prompt"]["save"]["class_type"] for path in here} == {"SaveImage"}, "the user's own prompt"
    done = line.finish(start(line))
    assert done.status == 0, done.err
    assert f"goes on where job {first.json['job']} stopped: {len(here)} of" in done.err
    again = {index for index, *_ in builtin_rig.executions(done.json["job"])}
    assert again == set(range(ITEMS + 1)) - {item["index"] for item in first.json["items"]}, "what is finished does not run again"
    assert len(done.json["files"]) == ITEMS and pngs(line)[: len(here)] == here
    assert [item["kind"] for item in done.json["items"]] == ["generate"] * ITEMS + ["last"]
    assert not (line.folder / "made" / SPOOL_FOLDER).exists(), "a complete run leaves no spool"


def test_a_cancelled_job_is_retried_and_attached_without_running_finished_items_again(line: CommandLine, builtin_rig: Rig) -> None:
    assert line.run("jobs", "list").status == 0  # the first command takes longest, and the cancel must not
    process = start_into_a_save_node(line, wait=node("RuleSlow", images=out("make"), milliseconds=1000))
    until(lambda: len(spooled(line)) >= 3)
    (spool,) = spools(line)
    assert line.run("jobs", "cancel", spool.name).status == 0
    first = line.finish(process)
    assert len(pngs(line)) == len(first.json["items"]) >= 3
    before = builtin_rig.executions(spool.name)
    assert line.run("jobs", "retry", spool.name).status == 0
    done = line.run("jobs", "attach", spool.name, "--out", "made", "--json")
    assert done.status == 0, done.err
    again = {index for index, *_ in builtin_rig.executions(spool.name)[len(before) :]}
    assert again == set(range(ITEMS + 1)) - {item["index"] for item in first.json["items"]}
    assert len(done.json["files"]) == ITEMS and not spools(line)


def test_a_failed_item_does_not_take_the_finished_ones_along(line: CommandLine) -> None:
    bad = node("RuleFail", images=out("wait"), seed=out("seed"), bad_seed=SEED + 4)
    process = start_into_a_save_node(line, bad=bad, collect=node("DistributedCollector", images=out("bad"), load_balance=False))
    done = line.finish(process)
    assert done.status == 1, done.err
    assert [texts(path)["seed"] for path in pngs(line)] == [int(item["seed"]) for item in done.json["items"]]
    assert f"{len(pngs(line))} of {ITEMS} items were finished; {len(pngs(line))} files are in made" in done.err and len(pngs(line)) >= 2


def test_what_an_interrupted_job_left_goes_with_a_complete_run_or_after_a_week(line: CommandLine) -> None:
    line.write("other.json", slow(1, seed=SEED + 50))
    interrupt_in_the_middle(line, start(line))
    assert line.run("run", "other.json", "--items", "2", "--out", "made").status == 0
    (kept,) = spools(line)
    fresh = line.finish(start(line, "--fresh"))
    assert fresh.status == 0 and not spools(line), "the same work is complete"
    line.write("graph.json", slow(300, seed=SEED + 70))
    process = start(line)
    until(lambda: spooled(line))
    line.interrupt(process)
    (kept,) = spools(line)
    long_ago = time.time() - 8 * 24 * 3600
    os.utime(kept / "ended", (long_ago, long_ago))
    assert line.run("run", "other.json", "--items", "2", "--out", "made").status == 0
    assert not (line.folder / "made" / SPOOL_FOLDER).exists()


def test_a_run_that_is_alive_is_left_alone(line: CommandLine, builtin_rig: Rig) -> None:
    first = start(line)
    until(lambda: spooled(line))
    second = line.finish(start(line))
    done = line.finish(first)
    assert (first.returncode, second.status) == (0, 0), done.err + second.err
    assert "goes on" not in second.err and done.json["job"] != second.json["job"]
    assert sorted(texts(path)["seed"] for path in pngs(line)) == sorted([*range(SEED, SEED + ITEMS)] * 2)


def test_a_run_whose_blob_server_stays_away_ends_and_the_same_command_goes_on_with_what_is_here(
    line: CommandLine, builtin_rig: Rig, blob_server: BlobServer
) -> None:
    settings = read_settings(key_prefix="away:", blob_away_s=3.0)
    cluster = open_cluster(settings, builtin_rig.cluster.redis_url, blob_server.url)
    rig = Rig("builtin", cluster, builtin_rig.new_folder(), {})
    line.environment.update(DC_BLOB_URL=blob_server.url, DC_BLOB_AWAY_S="3", DC_KEY_PREFIX="away:")
    try:
        rig.start("own")
        process = start(line)
        until(lambda: len(pngs(line)) >= 3 or process.poll() is not None)
        blob_server.kill()
        ended = line.finish(process)
        assert ended.status == 3 and re.search(r"the blob server has not answered for \d s \(the blob Redis at ", ended.err), ended.err
        here = spooled(line)
        assert len(here) >= 3, "they wait for the next run"
        blob_server.start()
        done = line.finish(start(line))
        assert done.status == 0 and f"{len(here)} of {ITEMS} items" in done.err, done.err
        check_complete(line)
    finally:
        rig.close()
        cluster.close()
