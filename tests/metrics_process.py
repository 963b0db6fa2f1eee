"""``distributed-comfy metrics`` as a process of its own, and what it answers."""
from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.command_line import PROJECT, until

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


class MetricsProcess:
    """The command, from its start until `stop`."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self._log = folder / "metrics.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "distributed_comfy", "metrics", "--port", "0"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
            )  # fmt: skip
        self.url = until(self._announced)

    def _announced(self) -> str | None:
        assert self.process.poll() is None, self.log()
        found = re.search(r"Metrics are at (\S+) and are those of", self.log())
        return found[1] if found else None

    def log(self) -> str:
        """What it wrote."""
        return self._log.read_text(errors="replace")

    def page(self) -> str:
        """What a scrape gets."""
        with urllib.request.urlopen(self.url, timeout=30) as answer:
            return str(answer.read().decode())

    def series(self) -> Series:
        """(Name, labels) -> value of everything in a scrape."""
        found = text_string_to_metric_families(self.page())
        return {(sample.name, frozenset(sample.labels.items())): sample.value for metric in found for sample in metric.samples}

    def value(self, name: str, **labels: str) -> float:
        """One value of a new scrape; 0 where there is no such series."""
        return self.series().get((f"distributed_comfy_{name}", frozenset(labels.items())), 0.0)

    def stop(self) -> int:
        """End it as a supervisor does; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=20)
        finally:
            self.process.kill()
