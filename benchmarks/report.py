"""The results of a run as a table on the terminal, as JSON, and as docs/benchmarks.md."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.rows import Row, Section, shown

_HEAD = """\
# Benchmarks

Written by `make bench ARGS="--md docs/benchmarks.md"`, which takes six minutes on four cores; do not edit. The targets are the project's
own, set before anything was built; what is missed stays here as missed. Timings are noisy, here more than elsewhere: a virtual machine of
few cores that does other things meanwhile. So medians are shown unless a row says otherwise, ways that are compared take turns, and
*load* is how many processes wanted a core during the minute before a section began and before it ended. Everything runs on one host over
loopback."""


@dataclass(frozen=True)
class Measured:
    """A section and the circumstances of its run."""

    name: str
    section: Section
    seconds: float
    load_before: str
    load_after: str


def as_table(measured: Sequence[Measured]) -> Table:
    """For the terminal."""
    table = Table("what", "measured", "target", "", "note", show_lines=False)
    colours = {"met": "green", "missed": "bold red", "": ""}
    for one in measured:
        table.add_section()
        for row in one.section.rows:
            verdict = f"[{colours[row.verdict]}]{row.verdict}[/]" if row.verdict else ""
            table.add_row(row.name, shown(row.value, row.unit), _target(row), verdict, row.note)
    return table


def print_report(measured: Sequence[Measured], facts: Mapping[str, str]) -> None:
    """Table, facts and count to standard output, wide enough also where that is a file."""
    console = Console()
    Console(width=max(console.width, 160)).print(as_table(measured))
    for name, value in facts.items():
        console.print(f"{name}: {value}", highlight=False, soft_wrap=True)
    console.print(summary(measured))


def summary(measured: Sequence[Measured]) -> str:
    """How many targets are met."""
    judged = [row for one in measured for row in one.section.rows if row.met is not None]
    return f"{sum(bool(row.met) for row in judged)} of {len(judged)} targets are met."


def as_json(measured: Sequence[Measured], facts: Mapping[str, str], *, quick: bool) -> str:
    """Every number, with its target and verdict."""
    sections: list[dict[str, Any]] = []
    for one in measured:
        rows = [{**asdict(row), "met": row.met} for row in one.section.rows]
        circumstances = {"seconds": round(one.seconds, 1), "load_before": one.load_before, "load_after": one.load_after}
        sections.append({"name": one.name, "title": one.section.title, **circumstances, "rows": rows})
    return json.dumps({"version": 1, "quick": quick, "facts": facts, "sections": sections}, indent=1)


def as_markdown(measured: Sequence[Measured], facts: Mapping[str, str], *, quick: bool) -> str:
    """docs/benchmarks.md."""
    parts = [_HEAD]
    if quick:
        parts.append("**A quick run, to see whether everything works: too few repetitions for numbers to trust.**")
    parts.append("\n".join(f"- {name}: {value}" for name, value in facts.items()))
    parts.append(summary(measured))
    for one in measured:
        parts += [f"## {one.section.title}", _markdown_table(one.section.rows), one.section.how]
        if one.section.limits:
            parts.append(f"**What limits it.** {one.section.limits}")
        parts.append(f"Took {one.seconds:.0f} s; load {one.load_before} before, {one.load_after} after.")
    return "\n\n".join(parts) + "\n"


def _markdown_table(rows: Sequence[Row]) -> str:
    lines = ["| what | measured | target | | note |", "|---|---|---|---|---|"]
    for row in rows:
        verdict = f"**{row.verdict}**" if row.verdict == "missed" else row.verdict
        cells = [row.name, shown(row.value, row.unit), _target(row), verdict, row.note]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _target(row: Row) -> str:
    return "" if row.target is None else f"<= {shown(row.target, row.unit)}"
