"""``python -m tests.smoke.mutations [PROMISE...]``: takes each protection out of a copy of the project and sees its test fail.

A promise whose test passes without the protection is printed as SURVIVES, and the exit status is 1.
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
from pathlib import Path

from tests.smoke.promises import PROMISES, Mutation, Promise

ROOT = Path(__file__).parents[2]
LIMIT_S = 300.0
KEPT_OUT = shutil.ignore_patterns(".venv", ".git", "__pycache__", ".*_cache", "*.egg-info", ".hypothesis")


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


def passes(copy: Path, test: str) -> bool:
    """Whether a test passes in the copy; one that does not end in time fails."""
    name, _, case = test.partition("[")
    chosen = [test] if case and " " not in case else [name, "-k", case.removesuffix("]").replace(" ", " and ")] if case else [name]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not smoke and not comfyui", *chosen]
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    assert done.returncode in (0, 1), f"{test}: {done.stdout}{done.stderr}"
    return done.returncode == 0


def survives(promise: Promise) -> bool:
    """Whether the promise's test passes without its protection."""
    assert promise.mutation is not None
    with copy_of_the_project() as copy:
        mutate(copy, promise.mutation)
        return passes(copy, promise.test)


def main(names: list[str]) -> int:
    """Exit status: 1 where a protection can be taken out unseen."""
    unseen = 0
    for name, promise in PROMISES.items():
        if promise.mutation is None or (names and name not in names):
            continue
        began = time.monotonic()
        alive = survives(promise)
        unseen += alive
        print(f"{'SURVIVES' if alive else 'seen    '} {time.monotonic() - began:5.0f} s  {name}: {promise.mutation.file}", flush=True)  # noqa: T201
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
