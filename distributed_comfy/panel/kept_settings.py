"""Timeouts and limits: what they are in this process, what they will be after the next start, and the few that a page may change."""
from __future__ import annotations

import ast
import functools
import inspect
import itertools
import logging
import textwrap
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed_comfy.config_file import write_config_file
from distributed_comfy.errors import SettingInvalid, SettingsWrong
from distributed_comfy.panel.bodies import BadRequest
from distributed_comfy.settings import Settings, checked_field, fields_in_environment, file_entries, variable

log = logging.getLogger(__name__)

_SHOWN = (
    "lease_ttl_s", "renew_interval_s", "stall_timeout_s", "hang_timeout_s", "drain_timeout_s", "owner_ttl_s", "ownerless_ttl_s",
    "max_attempts", "retry_backoff_s", "status_interval_s", "describe_interval_s", "log_lines", "log_ttl_s", "job_ttl_s",
    "blob_limit_bytes", "job_bytes_in_flight", "bytes_in_flight", "slots", "frames", "log_level",
)  # fmt: skip
_DAY_S = 86_400
_CHANGEABLE: Mapping[str, tuple[float, float]] = {
    "lease_ttl_s": (3, 600), "stall_timeout_s": (30, _DAY_S), "drain_timeout_s": (0, _DAY_S), "max_attempts": (1, 20),
    "ownerless_ttl_s": (0, 30 * _DAY_S), "job_ttl_s": (60, 365 * _DAY_S),
}  # fmt: skip
"""From and to: narrower than the settings themselves, so that nobody makes a cluster useless by a digit."""
_RENEWALS = 3
"""So often a worker is to be heard of before it may count as lost."""


class KeptSettings:
    """Of the computer that serves a page; waits for its disk.

    Args:
        own: as this process was given them at its start.
    """

    def __init__(self, own: Settings) -> None:
        self._own = own
        self._path = Path(own.config or own.config_folder / "config.json")
        self._changing = threading.Lock()

    def shown(self) -> dict[str, Any]:
        """As ``Settings`` of openapi.json."""
        in_file: dict[str, Any] = {}
        trouble = ""
        try:
            entries = file_entries(self._path)
            in_file = {field: checked_field(field, entries[variable(field)]) for field in _SHOWN if entries.get(variable(field), "") != ""}
        except SettingInvalid as error:
            trouble = str(error)
        in_environment = fields_in_environment()
        shown = [self._shown(field, in_file, fixed=field in in_environment, known=not trouble) for field in _SHOWN]
        return {"settings": shown, "file": str(self._path), "trouble": trouble}

    def change(self, changes: Any) -> dict[str, Any]:
        """Write some into the file, all or none; null stands for the default.

        Raises:
            SettingsWrong: says of each that cannot be so what it must be.
            SettingInvalid: the file cannot be read or written.
        """
        if not isinstance(changes, dict) or not changes:
            raise BadRequest('changes must be an object, like {"DC_STALL_TIMEOUT_S": 900}')
        names = {variable(field): field for field in _CHANGEABLE}
        wrong = {name: reason for name, value in changes.items() if (reason := self._why_not(names.get(name, ""), value))}
        if wrong:
            raise SettingsWrong(shown=", ".join(f"{name[:60]} {reason}" for name, reason in wrong.items()), wrong=wrong)
        with self._changing:
            kept = {name: value for name, value in file_entries(self._path).items() if name not in changes}
            write_config_file(self._path, {**kept, **{name: value for name, value in changes.items() if value is not None}})
        log.info("%s in %s; this counts from the next start", ", ".join(f"{name}={value}" for name, value in changes.items()), self._path)
        return self.shown()

    def _shown(self, field: str, in_file: Mapping[str, Any], *, fixed: bool, known: bool) -> dict[str, Any]:
        value, default = getattr(self._own, field), Settings.model_fields[field].default
        low, high = self._range(field) if field in _CHANGEABLE else (None, None)
        return {
            "name": variable(field), "value": value, "next": value if fixed or not known else in_file.get(field, default),
            "default": default, "words": _words().get(field, ""), "changeable": field in _CHANGEABLE, "fixed": fixed,
            "minimum": low, "maximum": high,
        }  # fmt: skip

    def _range(self, field: str) -> tuple[float, float]:
        low, high = _CHANGEABLE[field]
        return (max(low, _RENEWALS * self._own.renew_interval_s), high) if field == "lease_ttl_s" else (low, high)

    def _why_not(self, field: str, value: Any) -> str:
        """What one must be; empty where it may have this value."""
        if not field:
            return f"cannot be changed here; there are {', '.join(variable(each) for each in _CHANGEABLE)}"
        if field in fields_in_environment():
            return "is said by an environment variable, which comes before the file; change it there"
        if value is None:
            return ""
        low, high = self._range(field)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            return f"must be a number from {low:g} to {high:.15g}"
        try:
            checked_field(field, value)
        except SettingInvalid as error:
            return str(error.fields["reason"])
        return ""


@functools.cache
def _words() -> dict[str, str]:
    """What stands under each field of the settings."""
    (declared,) = ast.parse(textwrap.dedent(inspect.getsource(Settings))).body
    assert isinstance(declared, ast.ClassDef)
    return {
        field.target.id: " ".join(str(said.value.value).split()).replace("``", "")
        for field, said in itertools.pairwise(declared.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant)
    }  # fmt: skip
