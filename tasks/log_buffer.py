"""Lines of a worker's log on their way into Redis: bounded in number, length and rate, and without secrets."""
from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

from distributed_comfy.settings import Settings, redact_url
from distributed_comfy.state.worker_log import LogLine, LogSource

LINE_LIMIT_BYTES = 8 * 2**10
LINES_PER_S = 50.0
"""Of each source, in the long run."""
BURST_LINES = 500
"""That may come at once: a ComfyUI with many node packs says a lot while it starts."""
WAITING_LINES = 2000
"""While Redis is away; older ones are dropped."""

_HIDDEN = "***"
_SHORTEST_SECRET = 4
"""A shorter one is in half of all words."""
_ASSIGNED = re.compile(r"\b(DC_\w*(?:PASSWORD|SECRET|TOKEN|AUTH|KEY)\w*[\"']?\s*[=:]\s*[\"']?)[^\s\"',}]+", re.IGNORECASE)


class Redactor:
    """Takes secrets out of text: passwords of any URL, and those of our settings wherever they stand.

    Args:
        settings: of this process.
        urls: of the servers it uses, which may not be in the settings.
    """

    def __init__(self, settings: Settings, urls: Iterable[str] = ()) -> None:
        found = {urlsplit(url).password or "" for url in (settings.redis_url, settings.blob_url, *urls)}
        found |= {unquote(secret) for secret in found} | {settings.flower_basic_auth.partition(":")[2]}
        secrets = sorted((secret for secret in found if len(secret) >= _SHORTEST_SECRET), key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, secrets))) if secrets else None

    def __call__(self, text: str) -> str:
        """The text without them."""
        text = _ASSIGNED.sub(rf"\g<1>{_HIDDEN}", redact_url(text))
        return self._known.sub(_HIDDEN, text) if self._known else text


class RateLimit:
    """So many in the long run, more at once after a quiet time."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._left = float(burst)
        self._at = time.monotonic()

    def allows(self, now: float) -> bool:
        """Whether one more may go now."""
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._per_s)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class LogBuffer:
    """Takes lines from any thread and never blocks; says in a line of its own how many it dropped.

    Args:
        redact: takes secrets out of a text.
    """

    def __init__(self, redact: Redactor) -> None:
        self._redact = redact
        self._lock = threading.Lock()
        self._waiting: deque[LogLine] = deque()
        self._limits: dict[LogSource, RateLimit] = {name: RateLimit(LINES_PER_S, BURST_LINES) for name in ("worker", "engine")}
        self._too_fast: dict[LogSource, int] = {"worker": 0, "engine": 0}
        self._overflowed = 0

    def add(self, source: LogSource, level: str, text: str, now: float | None = None) -> None:
        """One line, or the lines of a traceback as one.

        Args:
            now: monotonic time; None: that of the call.
        """
        line = LogLine(source, level, shortened(self._redact(text)))
        with self._lock:
            if not self._limits[source].allows(time.monotonic() if now is None else now):
                self._too_fast[source] += 1
                return
            self._say_dropped(source)
            self._put(line)

    def skipped(self, source: LogSource, size_bytes: int) -> None:
        """So much was left out before it could become lines."""
        with self._lock:
            self._put(LogLine(source, "", f"… {size_bytes} bytes were skipped: too much at once"))

    def take(self, most: int) -> list[LogLine]:
        """The next lines, oldest first, each once."""
        with self._lock:
            for source in self._too_fast:
                self._say_dropped(source)
            taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            if self._overflowed and taken:
                count, self._overflowed = self._overflowed, 0
                return [LogLine("worker", "WARNING", f"… {count} lines were dropped: Redis did not answer"), *taken]
            return taken

    def _put(self, line: LogLine) -> None:
        self._waiting.append(line)
        if len(self._waiting) > WAITING_LINES:
            self._waiting.popleft()
            self._overflowed += 1

    def _say_dropped(self, source: LogSource) -> None:
        count, self._too_fast[source] = self._too_fast[source], 0
        if count:
            self._put(LogLine(source, "", f"… {count} lines were dropped: more than {LINES_PER_S:g} a second"))


def shortened(text: str) -> str:
    """``text`` within `LINE_LIMIT_BYTES`; its beginning and its end, because an error stands at the end of a traceback."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= LINE_LIMIT_BYTES:
        return encoded.decode()
    half = LINE_LIMIT_BYTES // 2 - 32
    cut = len(encoded) - 2 * half
    return f"{encoded[:half].decode(errors='ignore')} … {cut} bytes left out … {encoded[-half:].decode(errors='ignore')}"
