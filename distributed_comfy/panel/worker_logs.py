"""The logs of workers for a page, of any host and also of workers that are gone; out of Redis alone, no file is opened."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from distributed_comfy.agent.steering import keeper_of
from distributed_comfy.errors import WorkerUnknown
from distributed_comfy.panel.bodies import BadRequest
from distributed_comfy.panel.place import Place
from distributed_comfy.settings import slug
from distributed_comfy.state.worker_log import LogLine
from tasks.cluster import Cluster

ALL_LINES = 20_000
"""More than any worker keeps."""
LINES = 500
WAIT_MS = 1000
_BAD = frozenset({"WARNING", "ERROR", "CRITICAL"})
_LEVELS = {"": None, "WARNING": _BAD, "ERROR": _BAD - {"WARNING"}}


@dataclass(frozen=True)
class LogQuery:
    """Which lines are wanted."""

    lines: int = LINES
    search: str = ""
    level: str = ""
    source: str = ""

    def chosen(self, found: Iterable[LogLine]) -> list[LogLine]:
        """Those of these."""
        levels, needle = _LEVELS[self.level], self.search.casefold()
        return [
            line for line in found
            if (levels is None or line.level in levels) and self.source in ("", line.source) and needle in line.text.casefold()
        ][-self.lines :]  # fmt: skip


class LogReader:
    """One panel's; waits for Redis.

    Args:
        place: what serves the panel.
    """

    def __init__(self, place: Place) -> None:
        self._place = place

    def read(self, name: str, query: LogQuery) -> dict[str, Any]:
        """As ``Log`` of openapi.json.

        Raises:
            BadRequest: the query makes no sense.
            WorkerUnknown: there is no such worker, and no log of one.
        """
        if query.level not in _LEVELS or query.source not in ("", "worker", "engine"):
            raise BadRequest("level is WARNING or ERROR, source is worker or engine")
        selects = bool(query.search or query.level or query.source)
        found = self._last(name, ALL_LINES if selects else query.lines)
        last = found[-1].entry_id if found else "0"
        return {"worker": name, "lines": list(map(shown_line, query.chosen(found))), "searched": len(found), "last_id": last}

    def text(self, name: str) -> str:
        """All lines that are kept, for a file; errors as of `read`."""
        return "".join(
            f"{datetime.fromtimestamp(line.at_ms / 1000, timezone.utc):%Y-%m-%dT%H:%M:%S}Z {line.source:<6} {line.level:<7} {line.text}\n"
            for line in self._last(name, ALL_LINES)
        )

    def newest(self, name: str) -> str:
        """Id of the last line; ``0`` where there is none.  Errors as of `read`."""
        found = self._last(name, 1)
        return found[-1].entry_id if found else "0"

    def after(self, name: str, entry_id: str) -> list[LogLine]:
        """Lines behind one, waiting a moment for them."""
        return self._place.cluster().logs.after(name, entry_id, WAIT_MS)

    def _last(self, name: str, lines: int) -> list[LogLine]:
        cluster = self._place.cluster()
        found = cluster.logs.last(name, lines) if name and name == slug(name) else []
        if not found and not _is_known(cluster, name):
            raise WorkerUnknown(name=name[:100])
        return found


def shown_line(line: LogLine) -> dict[str, Any]:
    """As ``LogLine`` of openapi.json."""
    return {"id": line.entry_id, "at_ms": line.at_ms, "source": line.source, "level": line.level, "text": line.text}


def _is_known(cluster: Cluster, name: str) -> bool:
    if not name or name != slug(name):
        return False
    return bool(cluster.workers.workers([name]) or keeper_of(cluster, name) or cluster.statuses.read([name]))
