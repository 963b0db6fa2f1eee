"""The last lines of each worker's log, in a stream that is capped and outlives the worker for a while."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from distributed_comfy.state.scripts import Scripts

LogSource = Literal["worker", "engine"]

_FIELDS = ("s", "l", "m")


@dataclass(frozen=True)
class LogLine:
    """One line."""

    source: LogSource
    """``worker``: the process that claims and reports; ``engine``: the one that runs prompts, with its nodes."""
    level: str
    """``INFO``, ``WARNING``...; empty where the line has none."""
    text: str
    entry_id: str = ""
    """Its place in the stream; empty before it has one."""

    @property
    def at_ms(self) -> int:
        """When it reached Redis, by that clock; 0 before."""
        return int(self.entry_id.partition("-")[0] or 0)


class WorkerLogs:
    """The logs of all workers of one cluster."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    def append(self, name: str, lines: Sequence[LogLine], batch: str, *, keep_lines: int, keep_ms: int) -> None:
        """Add lines; the same batch twice adds them once.

        Args:
            name: of the worker.
            lines: in order.
            batch: a name that no other batch of this worker has.
            keep_lines: how many lines the stream may have then, roughly.
            keep_ms: how long it stays without another sign of the worker.
        """
        flat = [part for line in lines for part in (line.source, line.level, line.text)]
        self._scripts.run("log", name, batch, keep_lines, keep_ms, *flat)

    def last(self, name: str, lines: int) -> list[LogLine]:
        """The last lines, oldest first; none of a worker that is unknown or gone for too long."""
        client, key = self._scripts.client, self._scripts.keys("log", name)
        found: Any = self._scripts.reply(lambda: client.xrevrange(key, count=lines)) if lines else []
        return [_line(*entry) for entry in reversed(found)]

    def after(self, name: str, entry_id: str, wait_ms: int) -> list[LogLine]:
        """The lines behind one (``0`` for the first), waiting for them if there are none yet.

        Args:
            wait_ms: at most a second, see `state.connection`.
        """
        client, key = self._scripts.client, self._scripts.keys("log", name)
        found: Any = self._scripts.reply(lambda: client.xread({key: entry_id or "0"}, count=1000, block=wait_ms))
        return [_line(*entry) for _, entries in found or () for entry in entries]

    def names(self) -> list[str]:
        """Workers of which there is a log, also those that are gone."""
        client, (before, after) = self._scripts.client, self._scripts.keys("log", "*").split("*")
        found = self._scripts.reply(lambda: list(client.scan_iter(f"{before}*{after}", count=1000)))
        return sorted(key[len(before) : len(key) - len(after)] for key in found)


def _line(entry_id: str, fields: dict[str, str]) -> LogLine:
    source, level, text = (fields.get(name, "") for name in _FIELDS)
    return LogLine("engine" if source == "engine" else "worker", level, text, entry_id)
