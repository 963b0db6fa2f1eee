"""Runs benchmarks and shows them as one table: ``python -m benchmarks [NAME...] [--quick] [--json FILE] [--md FILE]``."""
from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import dispatch, fairness, links, losses, relay, scaling, state, tiles, transport
from benchmarks.machine import facts, load
from benchmarks.report import Measured, as_json, as_markdown, print_report
from benchmarks.rig import BenchmarkFailed
from benchmarks.rows import Section
from benchmarks.worker import ROOT

RESULTS = Path("benchmarks") / "results" / "benchmarks.json"

BENCHMARKS: dict[str, Callable[..., Section]] = {
    "dispatch": dispatch.run,
    "tiles": tiles.run,
    "state": state.run,
    "transport": transport.run,
    "links": links.run,
    "relay": relay.run,
    "fairness": fairness.run,
    "losses": losses.run,
    "scaling": scaling.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for.

    Returns:
        1 where a benchmark could not be run; a missed target is a result like any other.
    """
    description = "Measures the project against its targets; the exit status is 0 also where some are missed."
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=description)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; without a name all of them")
    parser.add_argument("--quick", action="store_true", help="see whether everything works; too few repetitions for numbers to trust")
    parser.add_argument("--json", type=Path, metavar="FILE", default=RESULTS, help="write every number to FILE [%(default)s]")
    parser.add_argument("--md", type=Path, metavar="FILE", help="write the report to FILE")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    _forget_settings()
    logging.basicConfig(level="ERROR")
    here = facts(ROOT)
    measured, failed = _measure(options.names or list(BENCHMARKS), quick=options.quick)
    print_report(measured, here)
    for path, render in ((options.json, as_json), (options.md, as_markdown)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(render(measured, here, quick=options.quick), encoding="utf-8")
    return 1 if failed else 0


def _measure(names: Sequence[str], *, quick: bool) -> tuple[list[Measured], bool]:
    """One benchmark after the other, and whether one could not be run."""
    measured, failed = [], False
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        load_before, began = load(), time.monotonic()
        try:
            section = BENCHMARKS[name](quick=quick)
        except BenchmarkFailed as error:
            print(f"{name} could not be run: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        measured.append(Measured(name, section, time.monotonic() - began, load_before, load()))
    return measured, failed


def _forget_settings() -> None:
    """The defaults are measured, whatever this shell has set for another cluster."""
    for name in [name for name in os.environ if name.startswith("DC_") or name == "COMFYUI_PATH"]:
        del os.environ[name]


if __name__ == "__main__":
    sys.exit(main())
