"""``doctor`` on real servers, workers and engines: what it finds, what it says, and that it leaves nothing and disturbs nobody."""
from __future__ import annotations

import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import redis

from distributed_comfy.orchestrator.doctor import probe
from distributed_comfy.orchestrator.doctor.workers import check_worker, check_workers
from distributed_comfy.planning.requirements import capability_hash
from distributed_comfy.state.keys import Keys
from tests.cluster_rig import Rig
from tests.command_line import PROJECT, CommandLine, Finished, pictures, slow, until

pytestmark = pytest.mark.redis

MOVING = ("sequence", "served", "inflight", "tallies", "reaper", "lease", "memory", "calls", "worker:one", "worker:two", "_kombu")
"""Parts of names of keys that move without the doctor, or only count."""


def vouched(url: str) -> str:
    """The version of the test's server, which need not be a patched one."""
    with redis.Redis.from_url(url) as client:
        return str(client.info("server")["redis_version"])


@pytest.fixture
def line(builtin_rig: Rig, tmp_path: Path) -> CommandLine:
    cluster = builtin_rig.cluster
    return CommandLine(
        tmp_path, DC_REDIS_URL=cluster.redis_url, DC_BLOB_URL=cluster.blob_url, DC_KEY_PREFIX=cluster.settings.key_prefix,
        DC_REDIS_ACCEPT=vouched(cluster.redis_url), DC_ENGINE="builtin",
    )  # fmt: skip


def found(done: Finished) -> dict[str, list[dict[str, str]]]:
    """Findings by what was looked at."""
    findings: dict[str, list[dict[str, str]]] = {}
    for finding in done.json["findings"]:
        findings.setdefault(finding["check"], []).append(finding)
    return findings


def failed(done: Finished) -> list[str]:
    return [finding["check"] for finding in done.json["findings"] if finding["level"] == "fail"]


def keys(rig: Rig) -> set[str]:
    """Of both servers, but for those that move by themselves."""
    found: set[str] = set()
    for url in (rig.cluster.redis_url, rig.cluster.blob_url):
        with redis.Redis.from_url(url, decode_responses=True) as client:
            found |= {key for key in client.scan_iter() if not any(part in key for part in MOVING)}
    return found


def test_a_cluster_in_order_is_said_to_be_so_each_worker_by_a_real_item_of_which_nothing_stays(line: CommandLine, builtin_rig: Rig) -> None:
    builtin_rig.wait_idle()
    log = builtin_rig.execution_log
    before, executions = keys(builtin_rig), log.read_text().splitlines() if log.exists() else []
    done = line.run("doctor", "--json")
    assert done.status == 0 and done.json["healthy"] is True, done.out + done.err
    looked_at = found(done)
    for name in ("one", "two"):
        assert "a probe item came back right in" in looked_at[f"worker {name}"][0]["found"]
    assert len(log.read_text().splitlines()) == len(executions) + 2
    assert "builtin" in looked_at["engine"][0]["found"] and "node classes, ready in" in looked_at["engine"][0]["found"]
    assert looked_at["workers: differences"][0]["level"] == "ok"
    assert "no password" in looked_at["state Redis: settings"][0]["found"]
    assert vouched(builtin_rig.cluster.redis_url) in looked_at["state Redis: version"][0]["found"]
    assert {"blob Redis", "blob Redis: clock", "disk: output folder", "disk: cache folder", "packages", "settings"} <= set(looked_at)
    assert keys(builtin_rig) - before == set()
    assert until(lambda: not line.left_running())
    assert list((line.folder / "cache" / "workers").iterdir()) == [] and not (line.folder / "output").exists()


def test_people_get_a_line_for_each_look_with_what_to_do(line: CommandLine) -> None:
    done = line.run("doctor", "--no-engine")
    assert done.status == 0, done.out
    assert "a probe item came back right" in done.out and "-> set requirepass" in done.out
    assert "engine" not in [row.split()[1] for row in done.out.splitlines() if row.startswith(("ok", "WARN", "FAIL"))]
    assert " 0 failed, " in done.out.splitlines()[-1]


def test_a_worker_at_work_is_left_in_peace(line: CommandLine, builtin_rig: Rig) -> None:
    builtin_rig.wait_idle()
    job = builtin_rig.begin(slow(700), items=8)
    job.until(lambda: {state.state for state in builtin_rig.cluster.workers.workers()} == {"busy"})
    done = line.run("doctor", "--no-engine", "--json")
    assert done.status == 0, done.out
    works = [found(done)[f"worker {name}"][0]["found"] for name in ("one", "two")]
    assert all("left in peace" in text or "got other work" in text for text in works), works
    report = job.wait()
    assert sorted(index for index, _, _ in builtin_rig.executions(report.job_id)) == list(range(8)), "nothing ran twice"


def test_a_drained_worker_is_not_tried(line: CommandLine, builtin_rig: Rig) -> None:
    builtin_rig.cluster.jobs.drain("two")
    try:
        looked_at = found(line.run("doctor", "--no-engine", "--json"))
    finally:
        builtin_rig.cluster.jobs.drain("two", drained=False)
    (drained,) = looked_at["worker two"]
    assert drained["level"] == "warn" and "workers undrain two" in drained["remedy"]


def test_a_worker_that_does_not_take_its_probe_is_told(builtin_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    builtin_rig.wait_idle()
    before = keys(builtin_rig)
    monkeypatch.setattr(probe, "_ANSWER_S", 4.0)
    pid = builtin_rig.workers["two"].process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        looked_at = {finding.check: finding for finding in check_workers(builtin_rig.cluster, threading.Event())}
    finally:
        os.kill(pid, signal.SIGCONT)
    assert looked_at["worker one"].level == "ok", looked_at
    assert looked_at["worker two"].level == "fail" and "did not take a probe item within 4 s" in looked_at["worker two"].found
    builtin_rig.wait_idle()
    assert keys(builtin_rig) - before == set(), "its job was cancelled and forgotten"
    builtin_rig.run(pictures(), items=4)


def test_a_worker_that_describes_itself_anew_before_it_takes_its_probe_is_called_again(builtin_rig: Rig) -> None:
    builtin_rig.wait_idle()
    cluster = builtin_rig.cluster
    (two,) = cluster.workers.workers(["two"])
    capability = cluster.matching.capabilities()[two.capability]
    incarnation = cluster.client.hget(Keys(cluster.settings.key_prefix)("worker", "two"), "inc")
    pid = builtin_rig.workers["two"].process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool:
            looks = pool.submit(check_worker, cluster, "two", threading.Event())
            until(lambda: cluster.workers.workers(["two"])[0].state == "ticketed")
            other = replace(capability, tags=("another",))
            cluster.workers.register(two.facts, str(incarnation), capability_hash(other), other)
            os.kill(pid, signal.SIGCONT)
            assert "a probe item came back right in" in looks.result().found
    finally:
        os.kill(pid, signal.SIGCONT)
        cluster.workers.register(two.facts, str(incarnation), two.capability, capability)


def test_a_worker_that_takes_its_probe_and_does_not_finish_it_is_told(builtin_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    builtin_rig.wait_idle()
    monkeypatch.setattr(probe, "_ANSWER_S", 3.0)
    engine = psutil.Process(builtin_rig.workers["two"].process.pid).children()[0]
    engine.suspend()
    try:
        looked_at = check_worker(builtin_rig.cluster, "two", threading.Event())
    finally:
        engine.resume()
    assert looked_at.level == "fail" and looked_at.found == "took a probe item and has not finished it within 3 s"
    builtin_rig.wait_idle()


def test_servers_that_do_not_answer_are_named_without_their_password(line: CommandLine) -> None:
    url = "redis://:geheim@127.0.0.1:1/0"
    done = line.run("doctor", "--json", DC_REDIS_URL=url, DC_BLOB_URL="")
    assert (done.status, failed(done)) == (1, ["state Redis", "blob Redis"]) and "geheim" not in done.out + done.err
    assert "DC_REDIS_URL" in found(done)["state Redis"][0]["remedy"]
    blobs = found(done)["blob Redis"][0]
    assert "it is the state Redis" in blobs["found"] and "DC_BLOB_URL" not in blobs["remedy"], "only the other one is wrong"
    own = line.run("doctor", "--json", DC_REDIS_URL=url, DC_BLOB_URL=url.replace(":1/", ":2/"))
    assert "correct DC_BLOB_URL" in found(own)["blob Redis"][0]["remedy"]
    assert "not looked at" in found(done)["engine, workers"][0]["found"]


def test_a_blob_server_that_is_the_state_server_is_warned_of(line: CommandLine, builtin_rig: Rig) -> None:
    done = line.run("doctor", "--json", "--no-engine", DC_BLOB_URL="", DC_KEY_PREFIX="other:")
    assert done.status == 0 and "it is the state Redis" in found(done)["blob Redis: settings"][0]["found"]
    assert "none is running" in found(done)["workers"][0]["found"]
    with redis.Redis.from_url(builtin_rig.cluster.redis_url) as client:
        client.delete(*client.scan_iter("other:*"))


def test_without_a_server_the_embedded_one_is_looked_at_and_ended_again(tmp_path: Path) -> None:
    line = CommandLine(tmp_path, DC_ENGINE="builtin")
    done = line.run("doctor", "--json")
    assert done.status == 0, done.out
    looked_at = found(done)
    assert "DC_REDIS_URL is not set" in looked_at["embedded Redis"][0]["found"]
    assert looked_at["state Redis: settings"][0]["level"] == looked_at["blob Redis: settings"][0]["level"] == "ok"
    assert until(lambda: not line.left_running())


def fake_comfyui(folder: Path, program: str) -> dict[str, str]:
    """A tree whose import does what ``program`` says; settings that name it."""
    (folder / "comfy").mkdir(parents=True)
    for name in ("main.py", "nodes.py", "comfy/__init__.py", "comfy/cli_args.py"):
        (folder / name).touch()
    (folder / "comfy" / "options.py").write_text(program)  # what is imported first
    return {"COMFYUI_PATH": str(folder), "DC_COMFYUI_PYTHON": sys.executable, "DC_ENGINE": "comfyui", "DC_DEVICE": "cpu"}


def test_an_engine_that_does_not_start_is_told_with_its_own_last_lines(line: CommandLine, tmp_path: Path) -> None:
    broken = fake_comfyui(tmp_path / "Comfy", "print('loading the pack of Ann: no module named left_pad'); raise SystemExit(4)")
    done = line.run("doctor", "--json", **broken)
    assert (done.status, failed(done)) == (1, ["engine"]), done.out
    (engine,) = found(done)["engine"]
    assert "ComfyUI ended with status 4" in engine["found"] and "loading the pack of Ann: no module named left_pad" in engine["found"]
    assert str(tmp_path / "Comfy" / "main.py") in engine["remedy"]
    assert list((line.folder / "cache" / "workers").iterdir()) == []


def test_an_engine_with_wrong_settings_is_told(line: CommandLine) -> None:
    done = line.run("doctor", "--json", DC_ENGINE="comfyui")
    assert failed(done) == ["engine"] and "COMFYUI_PATH: not set" in found(done)["engine"][0]["found"]


def test_ctrl_c_ends_it_with_all_that_it_started(line: CommandLine, tmp_path: Path) -> None:
    sleeps = fake_comfyui(tmp_path / "Comfy", f"open({str(tmp_path / 'begun')!r}, 'w').close(); import time; time.sleep(600)")
    process = line.start("doctor", **sleeps)
    until((tmp_path / "begun").exists)
    began = time.monotonic()
    done = line.interrupt(process)
    assert done.status == 130 and "interrupted before all was looked at" in done.err and "Traceback" not in done.err
    assert time.monotonic() - began < 10
    assert until(lambda: not line.left_running())


@pytest.mark.parametrize("name", ["tasks", "tiler"])
def test_a_foreign_package_is_told_before_anything_imports_it(line: CommandLine, name: str) -> None:
    (line.folder / f"{name}.py").write_text("raise RuntimeError('imported')")
    done = line.run("doctor", "--json", PYTHONPATH=f"{line.folder}:{PROJECT}")
    assert (done.status, failed(done)) == (1, ["packages"]) and "imported" not in done.out + done.err
    assert str(line.folder / f"{name}.py") in found(done)["packages"][0]["found"]
    other = line.run("workers", "list", PYTHONPATH=f"{line.folder}:{PROJECT}")
    assert other.status == 3 and f"the Python package '{name}' comes from" in other.err
