"""Checks the types of the page's modules, which stand in their comments, with TypeScript's compiler (npx fetches it; nothing is built).

Without node, or a registry that npx reaches, one line says that they were not checked; in CI that is a failure.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPILER = "typescript@7.0.2"
_FETCH_TIMEOUT_S = 180.0


def npx() -> str | None:
    """The program that fetches and runs the compiler; None where node or it is missing."""
    return shutil.which("npx") if shutil.which("node") else None


def lacks(program: str | None) -> str:
    """Why the compiler cannot be run here, and what to do; empty where it can."""
    if program is None:
        return "node or npx is missing: install Node.js 20 or newer with npm (Debian: `apt-get install nodejs npm`)"
    try:
        found = subprocess.run(_command(program, "--version"), cwd=ROOT, capture_output=True, text=True, timeout=_FETCH_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"npx does not get {COMPILER} within {_FETCH_TIMEOUT_S:.0f} s: see whether npm reaches its registry"
    said = found.stderr.strip().splitlines()[-1:] or ["it says nothing"]
    return f"npx does not get {COMPILER}: {said[0]}" if found.returncode else ""


def main() -> int:
    """Exit status: 1 where something was found, or where CI could not look."""
    program = npx()
    reason = lacks(program)
    if reason or program is None:
        print(f"page: types NOT checked, {reason}")
        return 1 if os.environ.get("CI", "").lower() in ("1", "true") else 0
    checked = subprocess.run(_command(program, "--project", "tsconfig.json", *sys.argv[1:]), cwd=ROOT)
    if checked.returncode == 0:
        print("page: types are right")
    return 1 if checked.returncode else 0


def _command(program: str, *arguments: str) -> list[str]:
    return [program, "--yes", "--package", COMPILER, "tsc", *arguments]


if __name__ == "__main__":
    sys.exit(main())
