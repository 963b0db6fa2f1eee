"""Writes docs/errors.md, docs/settings.md, the tables of docs/agent.md and docs/comfyui.md from the code; tests compare."""
from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pydantic import BaseModel  # noqa: E402

from distributed_comfy.agent.configuration import HostConfiguration, WorkerConfiguration  # noqa: E402
from distributed_comfy.comfyui.options import Options  # noqa: E402
from distributed_comfy.errors import DistributedComfyError, all_errors  # noqa: E402
from distributed_comfy.settings import Settings  # noqa: E402

ERRORS_HEAD = """# Errors

Written by `make docs` from `distributed_comfy/errors.py`. An error travels as its code and fields, never as text; the fields are the
names in braces. *Retried* errors may succeed elsewhere or later and use up an attempt of the item. *Exit* is the exit status of the
command line: 1 failed, 2 bad input, 3 no worker or no Redis, 4 not invited any more, 130 cancelled.

| Code | When | Message | Retried | Exit |
|---|---|---|---|---|
"""

SETTINGS_HEAD = """# Settings

Written by `make docs` from `distributed_comfy/settings.py`. Every setting is an environment variable, read once at the start; an
option of the command line wins over it. A wrong value stops the start and names the variable. An empty variable counts as not set,
and a misspelt one is told at the start of each command.

## The file of settings

The same names can stand in a JSON file, with text or numbers as values; the environment wins over it.

    {
      "DC_REDIS_URL": "redis://:PASSWORD@gpu-host:6379/0",
      "DC_BLOB_URL": "redis://:PASSWORD@gpu-host:6380/0",
      "COMFYUI_PATH": "~/comfy/ComfyUI",
      "DC_SLOTS": 2
    }

`DC_CONFIG=FILE` names it; without that it is, where it exists, the user's own:

| System | File |
|---|---|
| Linux and others | `$XDG_CONFIG_HOME/distributed-comfy/config.json`, by default `~/.config/distributed-comfy/config.json` |
| macOS | `~/Library/Application Support/distributed-comfy/config.json` |
| Windows | `%APPDATA%\\distributed-comfy\\config.json` (write `\\\\` or `/` in paths) |

A relative path in it is meant from the file's folder, and `~` is the user's home. An unknown name, a wrong value or a mistake in the JSON
stops the start and names file and setting. As the file may hold passwords, close it to others with `chmod 600`; a warning says where that
was forgotten. An empty file has no settings, so `DC_CONFIG=/dev/null` keeps the user's own one out.

## All settings

| Variable | Default | Values | Meaning |
|---|---|---|---|
"""

BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def errors_page() -> str:
    """docs/errors.md as it should be."""
    return ERRORS_HEAD + "".join(f"| {' | '.join(_error_cells(error))} |\n" for error in all_errors())


def _error_cells(error: type[DistributedComfyError]) -> tuple[str, ...]:
    sentence = _cell(f"`{error.sentence}`") if error.__subclasses__() == [] else "(a family of errors)"
    return f"`{error.code}`", _cell(inspect.getdoc(error) or ""), sentence, "yes" if error.retryable else "no", str(error.exit_code)


def settings_page() -> str:
    """docs/settings.md as it should be."""
    meanings = dict(_field_docstrings(Settings))
    rows = (f"| `{variable(name)}` | {_default(name)} | {_values(name)} | {_cell(meanings[name])} |\n" for name in Settings.model_fields)
    return SETTINGS_HEAD + "".join(rows)


def variable(field: str) -> str:
    """The environment variable of a field."""
    return "COMFYUI_PATH" if field == "comfyui_path" else f"DC_{field.upper()}"


def agent_page(page: str) -> str:
    """docs/agent.md with the tables of fields as they should be; see `page_with_tables`."""
    return page_with_tables(page, HostConfiguration, WorkerConfiguration)


def comfyui_page(page: str) -> str:
    """docs/comfyui.md with the table of options as it should be; see `page_with_tables`."""
    return page_with_tables(page, Options)


def page_with_tables(page: str, *models: type[BaseModel]) -> str:
    """A page with the tables of fields as they should be.

    Args:
        page: as it is; a table stands below a comment that names its class.
        models: those classes.
    """
    for model in models:
        head = f"<!-- {model.__name__} -->\n| Field | Default | Meaning |\n|---|---|---|\n"
        table = head + "".join(f"{row}\n" for row in field_rows(model))
        before, after = re.split(rf"<!-- {model.__name__} -->\n(?:\|.*\n)*", page)
        page = before + table + after
    return page


def field_rows(model: type[BaseModel]) -> list[str]:
    """One row of a table for each field of a class of the configuration."""
    meanings = dict(_field_docstrings(model))
    return [f"| `{name}` | `{_json_default(field)}` | {_cell(meanings[name])} |" for name, field in model.model_fields.items()]


def _json_default(field: Any) -> str:
    return json.dumps(field.get_default(call_default_factory=True))


def _field_docstrings(model: type) -> Iterator[tuple[str, str]]:
    body = ast.parse(inspect.getsource(model)).body[0]
    assert isinstance(body, ast.ClassDef)
    for field, text in itertools.pairwise(body.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            yield field.target.id, inspect.cleandoc(str(text.value.value))


def _default(name: str) -> str:
    default = Settings.model_fields[name].default
    return "not set" if default in (None, "") else f"`{default}`"


def _values(name: str) -> str:
    field = Settings.model_fields[name]
    literal = _literals(field.annotation)
    if literal:
        return ", ".join(f"`{value}`" for value in literal)
    rules = [(sign, getattr(rule, key, None)) for rule in field.metadata for key, sign in BOUNDS.items()]
    bounds = [f"{sign} {bound}" for sign, bound in rules if bound is not None]
    kind = {int: "whole number", float: "number", bool: "true or false"}.get(typing.cast(type, field.annotation), "text")
    if "Path" in str(field.annotation):
        kind = "path"
    return " ".join([kind, ", ".join(bounds)]).strip()


def _literals(annotation: object) -> tuple[object, ...]:
    """The allowed words of ``Literal[...]`` or ``Literal[...] | None``."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(value for part in typing.get_args(annotation) for value in _literals(part))
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("``", "`")


def main() -> None:
    """Write the pages."""
    agent, comfyui = ((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("agent", "comfyui"))
    pages = {"errors": errors_page(), "settings": settings_page(), "agent": agent_page(agent), "comfyui": comfyui_page(comfyui)}
    for name, page in pages.items():
        path = ROOT / "docs" / f"{name}.md"
        path.write_text(page, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
