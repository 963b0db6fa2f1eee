"""``python -m tests.smoke.mutations [PROMISE...]``: takes each protection out of a copy of the project and sees its test fail.

Each test is run twice in the copy: it must pass as the project is, or its failing would show nothing, and fail without the protection, by
an assertion of its own and not because something of the rig broke.  What does neither is printed in capitals, and the exit status is 1.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.smoke.promises import PROMISES, Mutation

ROOT = Path(__file__).parents[2]
LIMIT_S = 600.0
MEANT = ("AssertionError", "assert ", "Failed: ")
"""How the messages of failures begin that a test has asked for."""
KEPT_OUT = shutil.ignore_patterns(".venv", ".git", "__pycache__", ".*_cache", "*.egg-info", ".hypothesis")


@dataclass(frozen=True)
class Outcome:
    """Of one run of a promise's test."""

    verdict: str
    """``passes``, ``fails`` (by an assertion of its own), or what else became of it, in capitals."""
    says: str = ""
    """With which words it fails."""


@contextmanager
def copy_of_the_project() -> Iterator[Path]:
    """Everything but the environment and what runs left."""
    with tempfile.TemporaryDirectory(prefix="mutated-") as folder:
        copy = Path(folder, "project")
        shutil.copytree(ROOT, copy, ignore=KEPT_OUT)
        yield copy


def mutate(copy: Path, mutation: Mutation) -> None:
    """Take one protection out; it must be there exactly once."""
    path = copy / mutation.file
    source = path.read_text(encoding="utf-8")
    assert source.count(mutation.old) == 1, f"{mutation.file} has {mutation.old!r} {source.count(mutation.old)} times"
    path.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")


def play(copy: Path, test: str, raises: str = "") -> Outcome:
    """Run a test in the copy; ``raises`` is as in `Promise`."""
    report = copy.parent / "report.xml"
    report.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"--junitxml={report}", test]
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return Outcome("DOES NOT END", f"within {LIMIT_S:.0f} s")
    if not report.exists():
        return Outcome("NO REPORT", f"{done.stdout}{done.stderr}"[-1000:])
    return judge(ElementTree.parse(report), raises)


def judge(report: ElementTree.ElementTree, raises: str) -> Outcome:  # type: ignore[type-arg]
    """What a report of pytest says; what a test raises without meaning to, as an import, its rig or a library does, shows nothing."""
    found = {kind: report.findall(f".//testcase/{kind}") for kind in ("failure", "error", "skipped")}
    if found["failure"]:
        message = found["failure"][0].get("message", "").splitlines()[0]
        return Outcome("fails" if is_meant(message, raises) else "RAISES", message[:120])
    if found["error"] or found["skipped"]:
        first = (found["error"] or found["skipped"])[0]
        return Outcome("BREAKS" if found["error"] else "IS SKIPPED", first.get("message", "")[:400])
    return Outcome("passes" if report.findall(".//testcase") else "IS NOT FOUND")


def is_meant(message: str, raises: str) -> bool:
    """Whether a failure's first line is that of an assertion, of `pytest.fail`, or of the one error that is what the test looks out for."""
    return message.startswith((*MEANT, f"{raises}: ") if raises else MEANT)


def without(copy: Path, mutation: Mutation, test: str, raises: str = "") -> Outcome:
    """A promise's test without its protection: ``fails``, or what must not be."""
    whole = play(copy, test)
    if whole.verdict != "passes":
        return Outcome("FAILS WITH IT" if whole.verdict == "fails" else whole.verdict, whole.says)
    mutate(copy, mutation)
    taken_out = play(copy, test, raises)
    return Outcome("SURVIVES") if taken_out.verdict == "passes" else taken_out


def main(names: list[str]) -> int:
    """Exit status: 1 where a protection can be taken out unseen."""
    seen, chosen = 0, [(name, promise) for name, promise in PROMISES.items() if promise.mutation and (not names or name in names)]
    for name, promise in chosen:
        assert promise.mutation is not None
        began = time.monotonic()
        with copy_of_the_project() as copy:
            outcome = without(copy, promise.mutation, promise.test, promise.raises)
        seen += outcome.verdict == "fails"
        print(f"{outcome.verdict} {time.monotonic() - began:5.0f} s  {name} ({promise.mutation.file}): {outcome.says}", flush=True)  # noqa: T201
    print(f"{seen} of {len(chosen)} seen to fail")  # noqa: T201
    return 0 if seen == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
