"""The JSON file of settings: where it lies, what it may hold.  A path goes in, text by name comes out; the values are judged elsewhere."""
from __future__ import annotations

import difflib
import json
import logging
import os
import secrets
import stat
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from distributed_comfy.errors import SettingInvalid

log = logging.getLogger(__name__)

VARIABLE = "DC_CONFIG"
"""Names the file; it is the one setting that the file cannot hold."""
_PAGE = "docs/settings.md"
_EXAMPLE = '{"DC_REDIS_URL": "redis://..."}'


def default_config_file(environment: Mapping[str, str]) -> Path:
    """Where a user's file lies by the customs of this system, whether there is one or not."""
    home = Path(os.path.expanduser("~"))  # Path.home() would raise for a container's user that has none
    if sys.platform == "win32":
        base = Path(environment.get("APPDATA") or home / "AppData" / "Roaming")
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    return base / "distributed-comfy" / "config.json"


def read_config_file(path: Path, names: Collection[str], private: Collection[str]) -> dict[str, str | int | float]:
    """The settings in a file; an empty file has none.

    Args:
        path: of the file.
        names: what settings are called, ``DC_REDIS_URL`` and so on.
        private: those among ``names`` that should not be seen by other users of the host.
    Raises:
        SettingInvalid: the file cannot be read, is no JSON object, or holds a name that is no setting, twice the same one, or a value
            that is neither text nor a number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SettingInvalid(name=VARIABLE, reason=f"cannot read {path}: {reason}; set it to a JSON file, or unset it") from error
    entries = parse_object(path, text)
    for name, value in entries.items():
        _check_name(path, name, names)
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise SettingInvalid(name=name, reason=f"must be text or a number (it is {json.dumps(value)[:80]} in {path})")
    _warn_of_readers(path, sorted(set(entries) & set(private)))
    return entries


def write_config_file(path: Path, entries: Mapping[str, str | int | float]) -> None:
    """Replace a file of settings whole; who may read it stays as it was, and a new one is for its user alone.

    Raises:
        SettingInvalid: it cannot be written.
    """
    target = Path(os.path.realpath(path))  # a link stays one
    if target.exists() and not target.is_file():  # /dev/null, say, which must not become a file
        raise SettingInvalid(name=VARIABLE, reason=f"cannot write {path}, which is no file; name one, or unset it")
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o600
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(json.dumps(dict(entries), indent=2, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, mode)  # whatever the umask took of it
        os.replace(partial, target)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        reason = f"cannot write {path}: {error.strerror or error}; see who owns the file and its folder"
        raise SettingInvalid(name=VARIABLE, reason=reason) from error


def parse_object(path: Path, text: str, *, variable: str = VARIABLE, page: str = _PAGE, example: str = _EXAMPLE) -> dict[str, Any]:
    """The JSON object in a file's text; an empty text has none.

    Args:
        path: of the file, for messages.
        text: what is in it.
        variable: the setting that names the file.
        page: that shows what may stand in it.
        example: of such an object.
    Raises:
        SettingInvalid: with line and column, or what stands there twice.
    """
    if not text.strip():
        return {}
    try:
        found = json.loads(text, object_pairs_hook=lambda pairs: _without_doubles(path, pairs), parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        remedy = "write \\\\ (or /) where a path has a backslash" if "escape" in error.msg else f"make it JSON, as in {page}"
        where = f"{path}, line {error.lineno}, column {error.colno}"
        raise SettingInvalid(name=variable, reason=f"{where}: {error.msg}; {remedy}") from error
    except ValueError as error:
        raise SettingInvalid(name=variable, reason=f"{path}: {error}; make it JSON, as in {page}") from error
    if not isinstance(found, dict):
        raise SettingInvalid(name=variable, reason=f"{path} must be a JSON object like {example}, not {type(found).__name__}")
    return found


def _without_doubles(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise SettingInvalid(name=twice, reason=f"stands more than once in {path}; remove all but one")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")


def _check_name(path: Path, name: str, names: Collection[str]) -> None:
    if name in names:
        return
    if name == VARIABLE:
        raise SettingInvalid(name=name, reason=f"cannot stand in {path} itself; remove it there and set the environment variable")
    close = nearest(name, names)
    remedy = f"did you mean {close}?" if close else "docs/settings.md shows all; remove it"
    raise SettingInvalid(name=name, reason=f"is not a setting (it stands in {path}); {remedy}")


def nearest(name: str, names: Collection[str]) -> str:
    """The one of several names that a misspelt one most likely means, whatever its case; empty where none is near."""
    by_upper = {known.upper(): known for known in names}
    return next((by_upper[found] for found in difflib.get_close_matches(name.upper(), by_upper, n=1)), "")


def _warn_of_readers(path: Path, private: list[str]) -> None:
    """On Windows a user's own folder is closed to others by default."""
    if os.name == "posix" and private and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        log.warning("%s holds %s and other users can read it; run: chmod 600 %s", path, " and ".join(private), path)
