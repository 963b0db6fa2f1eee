"""Asks a real Prometheus every question of the shipped dashboard while a small cluster works, and prints how many series answer.

    python scripts/check_dashboard.py --prometheus /usr/bin/prometheus

It brings up an embedded Redis, an agent with two workers of the built-in engine, ``distributed-comfy metrics`` and Prometheus with the
shipped configuration; runs jobs, one of which fails, and kills a worker, which the agent starts again.  Exit status 1 where a question
that must have an answer has none.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD = ROOT / "docker/monitoring/grafana/dashboards/distributed-comfy.json"
CONFIG = ROOT / "docker/monitoring/prometheus.yml"
PROMETHEUS_PORT = 19090
RATE_INTERVAL = "30s"
WITHOUT_ANSWER = {"Device memory in use"}
"""Needs a GPU."""
START_S = 60.0
FAILING = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "broken.png"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}


def questions() -> list[tuple[str, str]]:
    """(Panel, expression) of the dashboard, with a rate interval filled in as Grafana does."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [(panel["title"], target["expr"].replace("$__rate_interval", RATE_INTERVAL)) for panel in panels for target in panel["targets"]]


def ask(expression: str) -> list[dict[str, Any]]:
    """Series that answer, over the last minutes, as a panel asks.

    Raises:
        urllib.error.HTTPError: it is no expression.
    """
    now = time.time()
    parameters = urllib.parse.urlencode({"query": expression, "start": now - 300, "end": now, "step": 5})
    with urllib.request.urlopen(f"http://127.0.0.1:{PROMETHEUS_PORT}/api/v1/query_range?{parameters}", timeout=10) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return [series for series in found if any(value != "NaN" for _, value in series["values"])]


@contextmanager
def running(command: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program for as long as the context lasts."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env={**os.environ, **environment})
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_for(pattern: str, log: Path) -> str:
    """The first group of a pattern in a log, once it is there."""
    deadline = time.monotonic() + START_S
    while not (found := re.search(pattern, log.read_text(errors="replace"))):
        if time.monotonic() > deadline:
            raise SystemExit(f"{pattern!r} does not come: {log.read_text(errors='replace')[-1000:]}")
        time.sleep(0.1)
    return found[1]


def work(stack: ExitStack, folder: Path, environment: dict[str, str]) -> None:
    """Jobs that succeed, one that fails, and a worker that is killed."""
    ours, log = [sys.executable, "-m", "distributed_comfy"], folder / "up.log"
    (folder / "workers.json").write_text(json.dumps({"workers": {name: {"engine": "builtin"} for name in ("one", "two")}}))
    stack.enter_context(running([*ours, "up"], log, DC_WORKERS_FILE=str(folder / "workers.json"), **environment))
    pids = {name: int(wait_for(rf"worker {name}: starting .* pid (\d+);", log)) for name in ("one", "two")}
    for name in pids:
        wait_for(rf"worker {name}: (running)", log)
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "failing.json").write_text(json.dumps(FAILING))
    seeded = str(ROOT / "examples/seeded_pictures.json")
    for prompt in (seeded, str(folder / "failing.json")):
        subprocess.run([*ours, "run", prompt], env={**os.environ, **environment}, cwd=folder, check=False, capture_output=True)
    with running([*ours, "run", seeded, "--items", "500"], folder / "long.log", **environment):
        time.sleep(15)
        os.kill(pids["one"], signal.SIGKILL)
        time.sleep(20)


def main() -> int:
    """Print a line for each question."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--prometheus", default="prometheus", metavar="PROGRAM")
    prometheus = parser.parse_args().prometheus
    silent = 0
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        environment = {"DC_RUNTIME_DIR": str(folder / "runtime"), "DC_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
        metrics = [sys.executable, "-m", "distributed_comfy", "metrics", "--port", "0"]
        stack.enter_context(running(metrics, folder / "metrics.log", **environment))
        port = wait_for(r"Metrics are at http://127\.0\.0\.1:(\d+)/", folder / "metrics.log")
        (folder / "prometheus.yml").write_text(CONFIG.read_text().replace("metrics:9808", f"127.0.0.1:{port}"))
        options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
        listen = f"--web.listen-address=127.0.0.1:{PROMETHEUS_PORT}"
        stack.enter_context(running([prometheus, *options, listen], folder / "prometheus.log"))
        wait_for(r"(Server is ready)", folder / "prometheus.log")
        work(stack, folder, environment)
        for title, expression in questions():
            answers = ask(expression)
            silent += not answers and title not in WITHOUT_ANSWER
            print(f"{len(answers):3} {title}: {expression}")
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main())
