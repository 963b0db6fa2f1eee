"""The command as its user can type it: in an environment that is not activated, ``distributed-comfy`` alone finds nothing."""
from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

NAME = "distributed-comfy"


def typed_command(argv0: str | None = None) -> str:
    """``distributed-comfy`` where the shell finds this one; else its path, from the current folder where it lies below that.

    Args:
        argv0: how this process was started; None: ``sys.argv[0]``.
    """
    program = Path(argv0 if argv0 is not None else sys.argv[0])
    if program.stem != NAME:  # python -m distributed_comfy
        program = Path(sys.executable).with_name(NAME)
    found = shutil.which(NAME)
    if found is not None and _one_program(Path(found), program):
        return NAME
    if not program.with_suffix("").exists() and not program.with_suffix(".exe").exists():
        return f"{_shown(Path(sys.executable))} -m distributed_comfy"
    return _shown(program.with_suffix(""))


def _one_program(one: Path, other: Path) -> bool:
    return os.path.abspath(one.with_suffix("")) == os.path.abspath(other.with_suffix(""))


def _shown(program: Path) -> str:
    """Links are not followed: an environment's Python is one."""
    path = os.path.abspath(program)
    try:
        near = os.path.relpath(path)
    except ValueError:  # another drive of Windows
        near = path
    shown = path if near.startswith(os.pardir) else near if os.sep in near else os.path.join(os.curdir, near)
    return f'"{shown}"' if " " in shown else shown
