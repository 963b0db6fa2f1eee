"""Sets of CPUs as Linux writes them: ``0-3,8`` is CPUs 0, 1, 2, 3 and 8."""
from __future__ import annotations

import re
from collections.abc import Iterable

MOST_CPUS = 8192
"""Above what any kernel counts; keeps a misprint from becoming a list of billions."""


def parse_cpus(text: str) -> tuple[int, ...]:
    """The CPUs in ``text``, sorted; none for an empty one.

    Raises:
        ValueError: it is no such list.
    """
    found: set[int] = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        numbers = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part, re.ASCII)
        first, last = (int(numbers[1]), int(numbers[2] or numbers[1])) if numbers else (1, 0)
        if first > last or last >= MOST_CPUS:
            raise ValueError("must be CPU numbers like 0-3,8")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def format_cpus(cpus: Iterable[int]) -> str:
    """The shortest text from which `parse_cpus` reads these CPUs."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
