"""Checks what ruff has no rule for: sizes of files and functions, and names that say nothing.  Exit status 1 with one line per finding."""
from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("distributed_comfy", "tasks", "tiler", "worker_entry.py", "install.py", "__init__.py", "scripts")
FILE_LINES = 450
CATALOGUES = {"distributed_comfy/errors.py"}  # long because it lists, not because it does much
FUNCTION_LINES = 50
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "data", "info", "stuff"}


def findings(path: Path, source: str) -> Iterator[str]:
    """What is wrong with one file, as ``path:line: text``."""
    lines = source.count("\n")
    if lines > FILE_LINES and path.as_posix() not in CATALOGUES:
        yield f"{path}:1: {lines} lines, at most {FILE_LINES}; split it by what it owns"
    if path.stem in EMPTY_NAMES:
        yield f"{path}:1: the name {path.stem!r} says nothing; name what the file owns"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = function_lines(node)
            if length > FUNCTION_LINES:
                yield f"{path}:{node.lineno}: {node.name} has {length} lines, at most {FUNCTION_LINES}"
        elif isinstance(node, ast.ClassDef) and node.name.endswith(("Manager", "Helper", "Utils", "Util")):
            yield f"{path}:{node.lineno}: the name {node.name} says nothing; name what it does"


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from ``def`` to the end, the docstring left out."""
    first = node.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    docstring = (first.end_lineno or first.lineno) - first.lineno + 1 if is_docstring else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - docstring


def python_files(root: Path) -> Iterator[Path]:
    """The project's own modules, in a stable order."""
    for name in SOURCES:
        place = root / name
        yield from [place] if place.is_file() else sorted(place.rglob("*.py"))


def main() -> int:
    """Exit status: 1 where something was found."""
    found = [line for path in python_files(ROOT) for line in findings(path.relative_to(ROOT), path.read_text(encoding="utf-8"))]
    print("\n".join(found) if found else "style: nothing found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
