"""``distributed-comfy workers logs``."""
from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime

import click
import redis

from distributed_comfy.cli.cluster import ago, connected, redis_now_ms
from distributed_comfy.cli.commands import INTERRUPTED, json_lines_option
from distributed_comfy.cli.output import Output
from distributed_comfy.cli.worker_names import unknown_worker, worker_name
from distributed_comfy.errors import RedisUnreachable
from distributed_comfy.state.worker_log import LogLine
from tasks.cluster import Cluster

_WAIT_MS = 1000
_LOOK_S = 2.0
"""How often a follower looks whether the worker is still there."""
_STYLES = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red"}


@click.command("logs", short_help="The last lines of a worker's log; -f follows it.")
@worker_name
@click.option("-f", "--follow", is_flag=True, help="Go on showing what comes, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0, 100_000), default=200, show_default=True, help="Lines to begin with.")
@json_lines_option
@click.pass_obj
def worker_log(output: Output, /, name: str, follow: bool, lines: int) -> int:
    """What a worker and its engine have logged lately, from any host; also of one that is gone, for an hour (DC_LOG_TTL_S).

    \b
    Examples:
      distributed-comfy workers logs pc1-cuda0 -f
      distributed-comfy workers logs pc1-cuda0 -n 1000 --json
    """
    try:
        with connected(output) as cluster:
            reader = _Reader(output, cluster, name)
            reader.begin(lines)
            if follow:
                reader.follow()
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


class _Reader:
    """Shows one worker's log."""

    def __init__(self, output: Output, cluster: Cluster, name: str) -> None:
        self._output = output
        self._cluster = cluster
        self._name = name
        self._last = "0"
        self._there = True
        self._looked = 0.0

    def begin(self, lines: int) -> None:
        """The last lines.

        Raises:
            WorkerUnknown: there is no such worker, and no log of one.
        """
        found = self._cluster.logs.last(self._name, max(1, lines))
        if not found and not self._is_there():
            raise unknown_worker(self._name, {*self._known(), *self._cluster.logs.names()})
        if found:
            self._last = found[-1].entry_id
        self._show(found[-lines:] if lines else [])
        self._look()

    def follow(self) -> None:
        """What comes, until Ctrl-C."""
        away = False
        while True:
            try:
                lines = self._cluster.logs.after(self._name, self._last, _WAIT_MS)
                self._show(lines)
                if not lines and time.monotonic() - self._looked >= _LOOK_S:
                    self._look()
            except (RedisUnreachable, redis.RedisError) as error:
                if not away:
                    self._output.warn(f"{error}; it goes on when that answers again")
                away = True
                time.sleep(_WAIT_MS / 1000)
            else:
                away = False

    def _look(self) -> None:
        """Say that the worker has gone, or has come back."""
        there, self._looked = self._is_there(), time.monotonic()
        if there != self._there:
            self._output.warn(f"worker {self._name} is back" if there else self._gone())
        self._there = there

    def _gone(self) -> str:
        last_ms = int(self._last.partition("-")[0])
        return f"worker {self._name} is gone; its last line is {ago(redis_now_ms(self._cluster), last_ms)} old"

    def _show(self, lines: Iterable[LogLine]) -> None:
        for line in lines:
            self._last = line.entry_id
            at = datetime.fromtimestamp(line.at_ms / 1000)
            fields = {"time": at.astimezone().isoformat(timespec="milliseconds"), "level": line.level, "message": line.text}
            self._output.result({"worker": self._name, "source": line.source, **fields, "id": line.entry_id})
            self._output.say(f"{at:%Y-%m-%d %H:%M:%S} {line.source:<6} {line.level:<7} {line.text}".rstrip(), _STYLES.get(line.level, ""))

    def _is_there(self) -> bool:
        return self._name in self._known()

    def _known(self) -> set[str]:
        live = {worker.facts.name for worker in self._cluster.workers.workers() if worker.state != "lost"}
        return live | set(self._cluster.workers.starting())
