"""ComfyUI's main module works for us although it is not the program."""
from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator

from distributed_comfy.engine.comfyui.tree import BOUND_BY_THE_PROGRAM
from tests.comfyui.comfy_process import Comfy


def test_what_its_functions_use_is_bound_at_import_or_by_us(comfy: Comfy) -> None:
    body = ast.parse((comfy.root / "main.py").read_text(encoding="utf-8")).body
    bound = {name for statement in body if not _is_for_the_program(statement) for name in _bound(statement)}
    used = {name for statement in body if isinstance(statement, ast.FunctionDef) for name in _free(statement)}
    by_the_program = {name for statement in body if _is_for_the_program(statement) for name in _bound(statement)}
    assert set(BOUND_BY_THE_PROGRAM) <= by_the_program
    assert (used & by_the_program) - bound - set(dir(builtins)) == set(BOUND_BY_THE_PROGRAM)


def _is_for_the_program(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and "__main__" in ast.dump(statement.test)


def _bound(statement: ast.stmt) -> Iterator[str]:
    """Names that a statement of the module gives a value; a function gives one to its own name only."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _free(function: ast.FunctionDef) -> set[str]:
    """Names that a function reads and does not bind itself."""
    names = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
    own = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    arguments = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    return {node.id for node in names if isinstance(node.ctx, ast.Load)} - own - arguments
