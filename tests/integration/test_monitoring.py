"""What others may see of a running cluster: its metrics, its logs as JSON, and nowhere a secret.

One worker with the built-in engine on servers with a password, and ``distributed-comfy metrics``.
"""
from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest
import redis

from distributed_comfy.messages import Prompt
from tests.cluster_fixtures import THREADS
from tests.cluster_rig import Rig
from tests.command_line import PROJECT, CommandLine, until
from tests.flower_process import guarded_servers
from tests.metrics_process import MetricsProcess
from tests.prompts import node, out
from tests.state_audit import snapshot

pytestmark = pytest.mark.redis

PREFIX = "monitored:"
LOGS = {"DC_LOG_LEVEL": "DEBUG", "DC_LOG_FORMAT": "json"}
PASSWORD = "canary-redis-password"
SECRETS = {"auth_token_comfy_org": "canary-auth-token", "api_key_comfy_org": "canary-api-key"}
CANARIES = (PASSWORD, *SECRETS.values())


@dataclass(frozen=True)
class Stack:
    """A worker, and the process that is asked for metrics."""

    rig: Rig
    metrics: MetricsProcess


@pytest.fixture(scope="module")
def stack(redis_server: Any, tmp_path_factory: pytest.TempPathFactory, require_service: Callable[[str, str], NoReturn]) -> Iterator[Stack]:
    from distributed_comfy.settings import read_settings
    from tasks.cluster import open_cluster

    if subprocess.run([sys.executable, "-c", "import prometheus_client"], capture_output=True, check=False).returncode:
        require_service("prometheus_client", "pip install prometheus_client")
    folder = tmp_path_factory.mktemp("monitored")
    with guarded_servers(redis_server.program, folder / "redis", PASSWORD) as servers:
        cluster = open_cluster(read_settings(key_prefix=PREFIX, cache_dir=folder / "cache"), servers.state_url, servers.blob_url)
        rig = Rig("builtin", cluster, folder, {**LOGS, "DC_THREADS": str(THREADS), "DC_HOST": "pc1"})
        urls = {"DC_REDIS_URL": servers.state_url, "DC_BLOB_URL": servers.blob_url}
        metrics = MetricsProcess(folder, **urls, **LOGS, DC_KEY_PREFIX=PREFIX)
        try:
            rig.start("one")
            yield Stack(rig, metrics)
        finally:
            status = metrics.stop()
            rig.close()
            cluster.close()
    assert status == 0 and "Traceback" not in metrics.log(), metrics.log()


def rule_images(milliseconds: int = 0) -> Prompt:
    return {
        "seed": node("DistributedSeed", seed=500),
        "make": node("RuleImage", seed=out("seed"), width=16, height=16, batch_size=1, channels=3),
        "wait": node("RuleSlow", images=out("make"), milliseconds=milliseconds),
        "collect": node("DistributedCollector", images=out("wait"), load_balance=False),
    }


def failing() -> Prompt:
    prompt = rule_images()
    prompt["fail"] = node("RuleFail", images=out("make"), seed=out("seed"), bad_seed=501)
    prompt["wait"]["inputs"]["images"] = out("fail")
    return prompt


# -- metrics ------------------------------------------------------------------------------------------------------------
def test_a_scrape_shows_what_happens(stack: Stack) -> None:
    metrics, before = stack.metrics, stack.metrics.series()
    assert metrics.value("worker_state", worker="one", host="pc1", device="cpu", state="idle") == 1
    running = stack.rig.begin(rule_images(milliseconds=700), items=3)
    until(lambda: metrics.value("items", state="running", kind="generate") == 1)
    assert metrics.value("jobs", state="running") == 1
    assert metrics.value("worker_state", worker="one", host="pc1", device="cpu", state="busy") == 1
    running.wait()
    until(lambda: metrics.value("jobs", state="running") == 0)
    after = metrics.series()

    def grown(name: str, **labels: str) -> float:
        key = (f"distributed_comfy_{name}", frozenset(labels.items()))
        return after.get(key, 0.0) - before.get(key, 0.0)

    assert grown("queue_wait_seconds_count", kind="generate") == grown("item_seconds_count", kind="generate") == 3
    assert 2.1 <= grown("item_seconds_sum", kind="generate") < 30
    assert grown("item_seconds_bucket", kind="generate", le="0.5") == 0 and grown("item_seconds_bucket", kind="generate", le="+Inf") == 3
    assert grown("jobs_ended_total", state="done") == 1
    assert grown("worker_engine_seconds_total", worker="one", host="pc1", device="cpu") >= 2.1
    for server in ("state", "blobs"):
        assert metrics.value("redis_up", server=server) == 1 and metrics.value("redis_memory_bytes", server=server) > 100_000
    assert metrics.value("in_flight_limit_bytes", scope="all_jobs") > 0


def test_a_port_that_is_taken_is_named(stack: Stack, tmp_path: Path) -> None:
    port = stack.metrics.url.rsplit(":", 1)[1].split("/")[0]
    cluster = stack.rig.cluster
    done = CommandLine(tmp_path, DC_REDIS_URL=cluster.redis_url, DC_BLOB_URL=cluster.blob_url).run("metrics", "--port", port)
    assert done.status == 2 and f"--port: cannot listen on 127.0.0.1:{port}" in done.err


def test_where_the_client_is_not_installed_the_command_says_how_to_get_it(tmp_path: Path) -> None:
    broken = tmp_path / "prometheus_client"
    broken.mkdir()
    broken.joinpath("__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'prometheus_client'\")")
    done = CommandLine(tmp_path, PYTHONPATH=f"{tmp_path}:{PROJECT}").run("metrics")
    assert done.status == 2 and "pip install 'distributed-comfy[metrics]'" in done.err


# -- logs ---------------------------------------------------------------------------------------------------------------
def entries(path: Path) -> list[dict[str, Any]]:
    """Every line of a log, which must be an object."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_every_line_of_a_worker_and_its_engine_is_json_with_job_and_item(stack: Stack) -> None:
    done = stack.rig.run(rule_images(), items=2)
    failed = stack.rig.run(failing(), items=2)
    worker = stack.rig.workers["one"]
    consumer, engine = entries(worker.folder / "worker.log"), entries(worker.engine_log)
    assert {line.get("worker") for line in engine} == {"one"}
    assert all({"time", "level", "logger", "message"} <= set(line) for line in consumer + engine)
    for lines in (consumer, engine):
        for job_id in (done.job_id, failed.job_id):
            about = [line for line in lines if job_id in line["message"] or line.get("job") == job_id]
            assert {line.get("item") for line in about if line.get("item")} == {f"{job_id}-0", f"{job_id}-1"}
            assert all(line.get("job") == job_id for line in about)
    loggers = {line["logger"] for line in consumer}
    assert {"tasks.run_item", "tasks.consumer", "celery.app.trace"} <= loggers
    traced = [line for line in consumer if line["logger"] == "celery.app.trace" and "done in" in line["message"]]
    assert {line["item"] for line in traced} >= {f"{done.job_id}-0", f"{done.job_id}-1"}, "Celery's own lines, too"


# -- no secret anywhere -------------------------------------------------------------------------------------------------
class Wiretap:
    """Every command that anybody sends to a server, with all its arguments; and every published message."""

    def __init__(self, url: str) -> None:
        self.lines: list[str] = []
        self._client = redis.Redis.from_url(url)
        self._monitor = self._client.monitor()
        self._monitor.__enter__()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        try:
            for command in self._monitor.listen():
                self.lines.append(command["command"])
        except (redis.RedisError, OSError, ValueError, AttributeError):  # `stop` closed it
            pass

    def stop(self) -> str:
        """All of it."""
        before = len(self.lines)
        self._client.set("end-of-tap", 1)
        until(lambda: any("end-of-tap" in line for line in self.lines[before:]))
        self._monitor.connection.disconnect()
        self._thread.join(timeout=5)
        self._client.close()
        return "\n".join(self.lines)


class Events:
    """What Celery's monitors hear."""

    def __init__(self, app: Any) -> None:
        self.heard: list[dict[str, Any]] = []
        self._stop = threading.Event()
        app.control.enable_events()
        self._thread = threading.Thread(target=self._listen, args=(app,), daemon=True)
        self._thread.start()

    def _listen(self, app: Any) -> None:
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": self.heard.append})
            while not self._stop.is_set():
                try:
                    receiver.capture(limit=None, timeout=0.3, wakeup=True)
                except TimeoutError:
                    pass

    def stop(self) -> str:
        """All of them."""
        self._stop.set()
        self._thread.join(timeout=10)
        return repr(self.heard)


def files_below(folder: Path, *but: str) -> list[str]:
    """The contents of all files, as text that keeps every byte."""
    return [path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file() and path.name not in but]


def test_no_secret_is_in_commands_events_keys_logs_listings_files_or_metrics(stack: Stack, tmp_path: Path) -> None:
    rig, cluster = stack.rig, stack.rig.cluster
    taps = [Wiretap(cluster.redis_url), Wiretap(cluster.blob_url)]
    events = Events(cluster.app)
    until(lambda: events.heard)
    line = CommandLine(tmp_path, DC_REDIS_URL=cluster.redis_url, DC_BLOB_URL=cluster.blob_url, DC_KEY_PREFIX=PREFIX, **LOGS)
    extra = {**SECRETS, "extra_pnginfo": {"workflow": {"marker": "kept"}}}
    saved = rule_images()
    saved["save"] = node("SaveImage", images=out("collect"), filename_prefix="saved")
    texts: list[str] = []
    for number, prompt in enumerate((saved, failing())):
        path = line.write(f"body{number}.json", {"prompt": prompt, "extra_data": extra, "client_id": "me"})
        done = line.run("run", path, "--items", "3", "--out", f"made{number}")
        assert done.status == number, done.err
        assert all(json.loads(entry) for entry in done.err.splitlines()), "standard error is JSON"
        texts += [done.out, done.err]
    job_ids = list(cluster.jobs.jobs())[-2:]
    for command in (["list", "--json"], ["show", job_ids[0], "--json"], ["show", job_ids[1], "--json"], ["show", job_ids[1]]):
        texts.append(line.run("jobs", *command).out)
    texts += [repr(cluster.app.AsyncResult(f"{job_id}-{index}")._get_task_meta()) for job_id in job_ids for index in range(3)]
    texts += [stack.metrics.page(), stack.metrics.log(), events.stop(), *(tap.stop() for tap in taps)]
    texts += [repr(snapshot(cluster.client)), *(repr(cluster.blob_client.get(key)) for key in cluster.blob_client.scan_iter())]
    texts += files_below(rig.folder / "one") + files_below(tmp_path, "body0.json", "body1.json")
    worker = psutil.Process(rig.workers["one"].process.pid)
    texts += [" ".join(process.cmdline()) for process in (worker, *worker.children(recursive=True))]
    pictures = list((tmp_path / "made0").glob("saved*.png"))
    assert len(pictures) == 3 and all(b"marker" in path.read_bytes() for path in pictures)
    assert any("'type': 'task-started'" in text and job_ids[0] in text for text in texts), "events were heard"
    assert any("EVALSHA" in text and job_ids[0] in text and "marker" in text for text in texts), "commands were heard"
    assert [canary for canary in CANARIES for text in texts if canary in text] == []


@pytest.mark.parametrize("host", ["127.0.0.1:1", "127.0.0.1:port", "no such host:6379"])
def test_a_server_that_cannot_be_reached_is_named_without_its_password(tmp_path: Path, host: str) -> None:
    url = f"redis://user:{PASSWORD}@{host}/0"
    done = CommandLine(tmp_path, DC_REDIS_URL=url, DC_BLOB_URL=url, DC_LOG_LEVEL="DEBUG").run("jobs", "list")
    assert done.status in (2, 3) and host.split(":")[0] in done.err
    assert PASSWORD not in done.err + done.out
