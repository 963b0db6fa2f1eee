"""Another process that uses Celery's result API: it shares no memory, no settings and no import with whoever submitted the job."""
from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_comfy.settings import Settings, variable
from tasks.cluster import Cluster
from tests.command_line import PROJECT

_HEAD = """
import pickle, sys, time
from celery import Celery
from celery.result import AsyncResult, GroupResult

app = Celery(backend={backend!r})
app.conf.result_backend_transport_options = {options!r}
print("ready", flush=True)
"""
_TAIL = """
with open(sys.argv[1], "wb") as file:
    pickle.dump(answer, file)
"""


@dataclass
class AskingProcess:
    """A script under way."""

    process: subprocess.Popen[str]
    answer_file: Path

    def answer(self, timeout_s: float = 60.0) -> Any:
        """What the script put into ``answer``."""
        try:
            out, _ = self.process.communicate(timeout=timeout_s)
        finally:
            self.process.kill()
        assert self.process.returncode == 0, out
        return pickle.loads(self.answer_file.read_bytes())


class CeleryUser:
    """Runs scripts with a Celery application ``app``, which only knows URLs.

    Args:
        cluster: whose servers it asks.
        folder: for scripts and answers.
        stock: use Celery's own Redis backend.
        options: of the result backend, beside the key prefix and the blob server's URL.
    """

    def __init__(self, cluster: Cluster, folder: Path, *, stock: bool = False, **options: str) -> None:
        self._folder = folder
        self._backend = cluster.redis_url if stock else f"tasks.backend:FrameBackend+{cluster.redis_url}"
        self._options = {"global_keyprefix": cluster.settings.key_prefix, "blob_url": cluster.blob_url, **options}
        self._asked = 0

    def ask(self, script: str, **names: Any) -> Any:
        """Run a script to its end; its ``answer``.

        Args:
            script: Python; ``names`` are known in it.
        """
        return self.begin(script, **names).answer()

    def begin(self, script: str, **names: Any) -> AskingProcess:
        """Start a script, and return when it has imported everything."""
        self._asked += 1
        path = self._folder / f"celery-user-{self._asked}-{id(self)}.py"
        given = "".join(f"{name} = {value!r}\n" for name, value in names.items())
        path.write_text(_HEAD.format(backend=self._backend, options=self._options) + given + script + _TAIL, encoding="utf-8")
        ours = {variable(field) for field in Settings.model_fields}
        environment = {**{name: value for name, value in os.environ.items() if name not in ours}, "PYTHONPATH": str(PROJECT)}
        answer = path.with_suffix(".pickle")
        process = subprocess.Popen(
            [sys.executable, str(path), str(answer)], cwd=self._folder, env=environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "ready\n", line + process.stdout.read()
        return AskingProcess(process, answer)
