"""The file of a host's workers on disk: read, changed and written whole, so that no crash leaves half of one."""
from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from distributed_comfy.agent.configuration import HostConfiguration, parse_configuration, plain_configuration
from distributed_comfy.config_file import parse_object
from distributed_comfy.errors import SettingInvalid

VARIABLE = "DC_WORKERS_FILE"
_EXAMPLE = '{"workers": {"pc1-cuda0": {"device": "cuda:0"}}}'

Change = Callable[[dict[str, Any]], None]
"""Alters a configuration given as JSON values, in place."""
Check = Callable[[HostConfiguration], object]
"""Raises what is wrong with a configuration on this host."""


class WorkersFile:
    """One file; only its agent writes it, a person may at any time.

    Args:
        path: absolute.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def exists(self) -> bool:
        """Whether it was written already."""
        return os.path.lexists(self.path)

    def read(self) -> HostConfiguration:
        """What it says.

        Raises:
            SettingInvalid: it cannot be read, or is no JSON.
            WorkersFileWrong: names place and remedy.
        """
        try:
            text = self.path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingInvalid(name=VARIABLE, reason=f"cannot read {self.path}: {_said(error)}; mend it, or name another file") from error
        found = parse_object(self.path, text, variable=VARIABLE, page="docs/agent.md", example=_EXAMPLE)
        return parse_configuration(found, str(self.path))

    def read_or_empty(self) -> HostConfiguration:
        """What it says; a host without the file has no workers.  Errors as of `read`."""
        return self.read() if self.exists() else HostConfiguration()

    def write(self, configuration: HostConfiguration) -> None:
        """Replace it; only this user can read it, because an environment may hold secrets.

        Raises:
            SettingInvalid: it cannot be written.
        """
        text = json.dumps(plain_configuration(configuration), indent=2, ensure_ascii=False) + "\n"
        target = Path(os.path.realpath(self.path))  # a link stays one
        partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
            _sync_folder(target.parent)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise SettingInvalid(name=VARIABLE, reason=f"cannot write {self.path}: {_said(error)}; name another file") from error

    def change(self, alter: Change, source: str, check: Check) -> HostConfiguration:
        """Read it, alter it, check it, write it.

        Args:
            alter: see `Change`.
            source: who wants that, for messages.
            check: see `Check`.
        Returns:
            What it says now.
        Raises:
            WorkersFileWrong: the file was wrong already, or would be; it stays as it was.
            SettingInvalid: it cannot be read or written.
        """
        plain = plain_configuration(self.read_or_empty())
        alter(plain)
        changed = parse_configuration(plain, source)
        check(changed)
        self.write(changed)
        return changed


def _said(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _sync_folder(folder: Path) -> None:
    """So that the new name is on disk too; Windows can neither open nor needs it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
