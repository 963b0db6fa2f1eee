"""What gpu.py --scale found, as Markdown and JSON."""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu_scale import Measured, Scaled
from benchmarks.rows import median, spread

GENERATION, FOUR_K, EIGHT_K = 0.97, 1.3, 1.25
BUSY = 0.85
MB, GIB = 1e6, 2**30
_MASTERS = ("master", "this process")


def as_json(facts: Mapping[str, Any], scaled: Scaled) -> str:
    """Every number, raw."""
    return json.dumps({"facts": facts, **dataclasses.asdict(scaled)}, indent=1, default=str)


def as_markdown(facts: Mapping[str, Any], scaled: Scaled) -> str:
    """The tables."""
    facts_told = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    cold = "\n".join(f"- {name}: {seconds:.1f} s" for name, seconds in scaled.cold.items())
    alike = "\n".join(f"- {name}: {'the same bits' if same else 'DIFFERENT BITS'}" for name, same in scaled.alike.items())
    groups = _groups(scaled.runs)
    pictures = [group for (way, _), group in groups.items() if "^2" not in way]
    tiles = [group for (way, _), group in groups.items() if "^2" in way]
    parts = [facts_told, cold, _table(pictures, groups), alike, _table(tiles, groups)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _groups(runs: Sequence[Measured]) -> dict[tuple[str, int], list[Measured]]:
    found: dict[tuple[str, int], list[Measured]] = {}
    for run in runs:
        found.setdefault((run.way, run.count), []).append(run)
    return found


def _table(groups: Sequence[Sequence[Measured]], every: Mapping[tuple[str, int], Sequence[Measured]]) -> str:
    if not groups:
        return ""
    head = ["way", "devices", "runs", "seconds", "items/s", "of plain", "over the floor", "target", "busy", "before first", "after last"]
    head += ["step", "MB moved", "master RSS", "worker RSS", "VRAM"]
    rows = [head, ["---"] * len(head), *(_row(group, every) for group in groups)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _row(runs: Sequence[Measured], every: Mapping[tuple[str, int], Sequence[Measured]]) -> list[str]:
    one, seconds = runs[0], [run.seconds for run in runs]
    plain = every.get(("plain", one.count), ())
    share = _rate(runs) / _rate(plain) if plain and "^2" not in one.way and one.way != "plain" else 0.0
    over = median([run.seconds / run.floor_s for run in runs])
    return [
        one.way,
        str(one.count),
        str(len(runs)),
        f"{median(seconds):.2f} ({spread(seconds, 2)})",
        f"{_rate(runs):.3f}",
        f"{share:.1%}" if share else "",
        f"{over:.3f} x",
        _verdict(one, share, over),
        f"{median([run.busy for run in runs]):.1%}",
        f"{median([run.first_s for run in runs]):.2f} s",
        f"{median([run.last_s for run in runs]):.2f} s",
        f"{median([run.step_s for run in runs]) * 1000:.1f} ms",
        f"{median([run.moved_bytes for run in runs]) / MB:.1f}",
        _rss(runs, masters=True),
        _rss(runs, masters=False),
        f"{max(run.vram_bytes for run in runs) / GIB:.2f} GiB",
    ]


def _rate(runs: Sequence[Measured]) -> float:
    return runs[0].items / median([run.seconds for run in runs])


def _verdict(run: Measured, share: float, over: float) -> str:
    if share:
        return f"97 %: {'met' if share >= GENERATION else 'missed'}"
    limit = FOUR_K if "4096^2" in run.way else EIGHT_K if "8192^2" in run.way else 0.0
    return f"{limit} x: {'met' if over <= limit else 'missed'}" if limit else ""


def _rss(runs: Sequence[Measured], *, masters: bool) -> str:
    """The most of one of the processes that collect, or of any other."""
    every = [size for run in runs for name, size in run.rss_bytes.items() if (name in _MASTERS) == masters]
    return f"{max(every) / GIB:.2f} GiB" if every else ""
