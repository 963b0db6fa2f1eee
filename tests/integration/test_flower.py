"""``distributed-comfy flower`` over a running cluster: what its HTTP API lists, and that no secret is anywhere to be seen."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from distributed_comfy.messages import Prompt
from tasks.dispatch import send_tickets
from tests.cluster_fixtures import THREADS
from tests.cluster_rig import Rig
from tests.command_line import PROJECT, CommandLine, until
from tests.flower_process import FlowerProcess, guarded_servers
from tests.prompts import node, out

pytestmark = pytest.mark.redis

PASSWORD = "canary-redis-password"
TOKEN = "canary-auth-token"
API_KEY = "canary-api-key"


@dataclass(frozen=True)
class Stack:
    """Two workers and Flower, on servers with a password."""

    rig: Rig
    flower: FlowerProcess


@pytest.fixture(scope="module")
def stack(redis_server: Any, tmp_path_factory: pytest.TempPathFactory, require_service: Callable[[str, str], NoReturn]) -> Iterator[Stack]:
    from distributed_comfy.settings import read_settings
    from tasks.cluster import open_cluster

    if subprocess.run([sys.executable, "-c", "import flower"], capture_output=True, check=False).returncode:
        require_service("Flower", "pip install 'flower>=2.2'")
    folder = tmp_path_factory.mktemp("flower")
    with guarded_servers(redis_server.program, folder / "redis", PASSWORD) as servers:
        cluster = open_cluster(read_settings(key_prefix="flower-rig:", cache_dir=folder / "cache"), servers.state_url, servers.blob_url)
        environment = {"DC_HOST": "pc1", "DC_LOG_LEVEL": "DEBUG", "DC_THREADS": str(THREADS)}
        rig = Rig("builtin", cluster, folder, environment)
        flower = FlowerProcess(folder, DC_REDIS_URL=servers.state_url, DC_BLOB_URL=servers.blob_url, DC_KEY_PREFIX="flower-rig:")
        try:
            rig.start("one", "pc1-cpu-7")
            listens(cluster, flower, ["one", "pc1-cpu-7"])
            yield Stack(rig, flower)
        finally:
            status = flower.stop()
            rig.close()
            cluster.close()
    assert status == 0 and "Traceback" not in flower.log(), flower.log()


def listens(cluster: Any, flower: FlowerProcess, workers: list[str]) -> None:
    """Wait until these workers send events: Flower asks for them every few seconds."""

    def heard() -> bool:
        send_tickets(cluster.app, workers)
        names = {task["worker"].split("@")[0].split(".")[0] for task in flower.tasks() if task["worker"] and task["name"] == "no work"}
        return names >= set(workers)

    until(heard)


def rule_images(milliseconds: int = 0) -> Prompt:
    return {
        "seed": node("DistributedSeed", seed=500),
        "make": node("RuleImage", seed=out("seed"), width=16, height=16, batch_size=1, channels=3),
        "wait": node("RuleSlow", images=out("make"), milliseconds=milliseconds),
        "collect": node("DistributedCollector", images=out("wait"), load_balance=False),
    }


def failing() -> Prompt:
    prompt = rule_images(milliseconds=400)
    prompt["fail"] = node("RuleFail", images=out("make"), seed=out("seed"), bad_seed=500)
    prompt["wait"]["inputs"]["images"] = out("fail")
    return prompt


def test_exactly_the_items_are_listed_by_job_item_node_class_and_seed(stack: Stack) -> None:
    report = stack.rig.run(rule_images(milliseconds=60), items=8)
    rows = stack.flower.rows_when(report.job_id, lambda rows: len(rows) == 8 and all(row.state == "SUCCESS" for row in rows))
    assert sorted((row.item, row.node_class, row.seed) for row in rows) == [(k, "RuleImage", str(500 + k)) for k in range(8)]
    assert all(row.facts["name"] == "RuleImage" and row.facts["runtime"] >= 0.06 for row in rows)
    assert {row.facts["args"] for row in rows} == {f"job {report.job_id}, item {k}, seed {500 + k}" for k in range(8)}
    results = {row.item: row.facts["result"] for row in rows}
    assert all(text.startswith(f"'{report.job_id}-{k}: done in ") for k, text in results.items())
    assert {row.worker for row in rows} == {"one.cpu@pc1", "pc1-cpu-7@pc1"}
    assert len(json.loads(stack.flower.page(f"/api/tasks?search=kwargs:job={report.job_id}"))) == 8
    others = {task["name"] for task in stack.flower.tasks() if task["uuid"] not in {row.facts["uuid"] for row in rows}}
    assert others == {"no work"} or others <= {"no work", "RuleImage", "SaveImage", "DistributedCollector"}


def test_workers_are_listed_by_host_and_device(stack: Stack) -> None:
    assert set(stack.flower.workers()) == {"one.cpu@pc1", "pc1-cpu-7@pc1"}
    assert "one.cpu@pc1" in stack.flower.page("/workers")


def test_a_ticket_that_finds_nothing_is_shown_as_no_work(stack: Stack) -> None:
    before = {task["uuid"] for task in stack.flower.tasks()}
    send_tickets(stack.rig.cluster.app, ["one"])
    new = until(lambda: [task for task in stack.flower.tasks() if task["uuid"] not in before and task["state"] == "SUCCESS"])
    assert [(task["name"], task["result"], task["args"], task["kwargs"]) for task in new] == [("no work", "'no work'", "", "{}")]


def test_the_last_stage_and_a_whole_prompt_are_named_by_their_output_node(stack: Stack) -> None:
    prompt = rule_images()
    prompt["save"] = node("SaveImage", images=out("collect"), filename_prefix="x")
    report = stack.rig.run(prompt, items=2)
    rows = stack.flower.rows_when(report.job_id, lambda rows: len(rows) == 3 and all(row.state == "SUCCESS" for row in rows))
    assert [(row.item, row.node_class) for row in sorted(rows, key=lambda row: row.item)] == [
        (0, "RuleImage"), (1, "RuleImage"), (2, "SaveImage"),
    ]  # fmt: skip
    make = node("EmptyImage", width=8, height=8, batch_size=1, color=0)
    report = stack.rig.run({"make": make, "collect": node("DistributedCollector", images=out("make"))})
    (row,) = stack.flower.rows_when(report.job_id, lambda rows: len(rows) == 1 and rows[0].state == "SUCCESS")
    assert (row.node_class, row.seed, row.facts["args"]) == ("DistributedCollector", "", f"job {report.job_id}, item 0")


def test_a_node_that_raises_shows_its_error_and_where_it_was_raised(stack: Stack) -> None:
    report = stack.rig.run(failing(), items=4)
    rows = stack.flower.rows_when(report.job_id, lambda rows: any(row.state == "FAILURE" for row in rows))
    (failed,) = [row for row in rows if row.state == "FAILURE"]
    assert failed.item == 0
    assert failed.facts["exception"] == "NodeFailed('node fail (RuleFail) raised ValueError: seed 500 brings no luck')"
    assert "rule_nodes.py" in failed.facts["traceback"] and "brings no luck" in failed.facts["traceback"]


def test_a_cancelled_item_is_shown_as_revoked(stack: Stack) -> None:
    running = stack.rig.begin(rule_images(milliseconds=4000), items=2)
    job_id = running.queued()
    stack.flower.rows_when(job_id, lambda rows: len(rows) == 2)
    running.stop.set()
    running.wait()
    rows = stack.flower.rows_when(job_id, lambda rows: all(row.state == "REVOKED" for row in rows))
    assert sorted(row.item for row in rows) == [0, 1]


def test_an_item_whose_engine_died_is_shown_twice_the_first_time_as_a_retry(stack: Stack) -> None:
    running = stack.rig.begin(rule_images(milliseconds=1500), items=2)
    job_id = running.queued()
    index, _, pid = running.until(lambda: stack.rig.executions(job_id))[0]
    os.kill(pid, signal.SIGKILL)
    assert running.wait().done
    rows = stack.flower.rows_when(job_id, lambda rows: sum(row.state == "SUCCESS" for row in rows) == 2)
    rows = [row for row in rows if row.state != "REVOKED"]  # taken by the same worker again, before it knew that it has no engine
    assert sorted(row.state for row in rows if row.item == index) == ["RETRY", "SUCCESS"] and len(rows) == 3
    (died,) = [row for row in rows if row.state == "RETRY"]
    assert died.facts["exception"].startswith("EngineDied('the engine process ended with ")


def test_an_item_whose_worker_was_killed_is_shown_twice(stack: Stack) -> None:
    rig = stack.rig
    (victim,) = rig.start("victim")
    listens(rig.cluster, stack.flower, ["victim"])
    running = rig.begin(rule_images(milliseconds=1500), items=3)
    job_id = running.queued()
    before = stack.flower.rows_when(job_id, lambda rows: {row.worker for row in rows} >= {"victim.cpu@pc1"})
    (lost,) = [row.item for row in before if row.worker == "victim.cpu@pc1"]
    victim.kill()
    rig.workers.pop("victim")
    assert running.wait().done
    rows = stack.flower.rows_when(job_id, lambda rows: sum(row.state == "SUCCESS" for row in rows) == 3)
    assert sorted(row.item for row in rows) == sorted([0, 1, 2, lost])
    twice = {row.worker: row.state for row in rows if row.item == lost}
    assert twice.pop("victim.cpu@pc1") == "STARTED" and list(twice.values()) == ["SUCCESS"]


# -- who may see it -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", ["/api/tasks", "/api/workers", "/tasks", "/workers"])
@pytest.mark.parametrize("auth", ["", "watcher:wrong"])
def test_nothing_is_shown_without_the_password(stack: Stack, path: str, auth: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        stack.flower.page(path, auth)
    assert refused.value.code == 401


@pytest.mark.parametrize("option", ["--host", "--address"])
def test_a_page_that_other_hosts_reach_needs_a_password(tmp_path: Path, option: str) -> None:
    done = CommandLine(tmp_path).run("flower", option, "0.0.0.0", "--port", "0")
    assert done.status == 2 and "--host: '0.0.0.0' can be reached from other hosts; set --basic-auth USER:PASS too" in done.err


def test_a_password_that_is_none_is_refused_and_not_repeated(tmp_path: Path) -> None:
    done = CommandLine(tmp_path).run("flower", "--basic-auth", "canary")
    assert done.status == 2 and "error: --basic-auth: " in done.err and "must be like USER:PASS" in done.err
    assert "canary" not in done.err


def test_a_port_that_is_taken_is_named(stack: Stack, tmp_path: Path) -> None:
    port = stack.flower.url.rsplit(":", 1)[1]
    cluster = stack.rig.cluster
    done = CommandLine(tmp_path, DC_REDIS_URL=cluster.redis_url, DC_BLOB_URL=cluster.blob_url).run("flower", "--port", port)
    assert done.status == 2 and f"--port: cannot listen on 127.0.0.1:{port}" in done.err


def test_where_flower_is_not_installed_the_command_says_how_to_get_it(stack: Stack, tmp_path: Path) -> None:
    broken = tmp_path / "flower"
    broken.mkdir()
    broken.joinpath("__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'flower'\")")
    cluster, path = stack.rig.cluster, f"{tmp_path}{os.pathsep}{PROJECT}"
    done = CommandLine(tmp_path, DC_REDIS_URL=cluster.redis_url, DC_BLOB_URL=cluster.blob_url, PYTHONPATH=path).run("flower")
    assert done.status == 2 and "Flower is not installed for" in done.err and "pip install 'distributed-comfy[flower]'" in done.err


# -- no secret anywhere -------------------------------------------------------------------------------------------------
def test_no_secret_is_in_tasks_events_logs_listings_or_files(stack: Stack, tmp_path: Path) -> None:
    rig, cluster = stack.rig, stack.rig.cluster
    heard: Any = cluster.client.pubsub(ignore_subscribe_messages=True)
    heard.psubscribe("*")
    line = CommandLine(
        tmp_path, DC_REDIS_URL=cluster.redis_url, DC_BLOB_URL=cluster.blob_url, DC_KEY_PREFIX="flower-rig:", DC_LOG_LEVEL="DEBUG"
    )
    secrets = {"auth_token_comfy_org": TOKEN, "api_key_comfy_org": API_KEY, "extra_pnginfo": {"workflow": {"marker": "kept"}}}
    texts: list[str] = []
    for number, prompt in enumerate((rule_images(), failing())):
        path = line.write(f"body{number}.json", {"prompt": prompt, "extra_data": secrets, "client_id": "me"})
        done = line.run("run", path, "--items", "3", "--out", f"made{number}")
        assert done.status == number, done.err
        texts += [done.out, done.err]
    job_ids = list(cluster.jobs.jobs())[-2:]
    for command in (["jobs", "list"], ["jobs", "list", "--json"], ["workers", "list"], ["workers", "list", "--json"]):
        texts.append(line.run(*command).out)
    texts += [line.run("jobs", "show", job_id, *as_json).out for job_id in job_ids for as_json in ([], ["--json"])]
    stack.flower.rows_when(job_ids[0], lambda rows: len(rows) == 3 and all(row.state == "SUCCESS" for row in rows))
    task_id = stack.flower.rows(job_ids[0])[0].facts["uuid"]
    pages = ["api/tasks", "api/workers?refresh=1", f"api/task/info/{task_id}", "api/queues/length", "workers",
              "worker/one.cpu@pc1", "tasks", f"task/{task_id}", "broker", "metrics"]  # fmt: skip
    texts += [stack.flower.page(f"/{page}") for page in pages]
    texts += [stack.flower.log(), *(worker.log() for worker in rig.workers.values())]
    texts += [str(message["data"]) for _ in range(3000) if (message := heard.get_message(timeout=0.001))]
    heard.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name.startswith("ComfyUI")]
    assert len(files) >= 3 and all(b"marker" in path.read_bytes() for path in files)
    texts += [path.read_bytes().decode("latin-1") for path in files]
    texts += [stored_text(cluster.client)]
    whole = "\n".join(texts)
    assert job_ids[0] in whole and len(texts) > 60, "the texts are what they should be"
    assert [secret for secret in (PASSWORD, TOKEN, API_KEY, "canary-flower-password") if secret in whole] == []
    assert json.loads(stack.flower.page("/api/workers"))["one.cpu@pc1"]["conf"]["broker_url"].startswith("redis://:***")


def stored_text(client: Any) -> str:
    """Every key and value of the state server."""
    from tests.state_audit import snapshot

    return repr(snapshot(client))
