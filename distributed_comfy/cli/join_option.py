"""What ``--join`` takes, for the commands that have it; they load neither certificates nor servers, which only who invites needs."""
from __future__ import annotations

import sys
from pathlib import Path

from distributed_comfy.errors import SettingInvalid


def token_text(given: str, option: str = "--join") -> str:
    """A token as it was given: itself, ``@FILE``, or ``-`` for standard input, so that no list of processes shows it.

    Args:
        given: what the option holds.
        option: its name, for messages.
    Raises:
        SettingInvalid: the file cannot be read.
    """
    try:
        if given == "-":
            return sys.stdin.readline()
        return Path(given[1:]).read_text(encoding="utf-8") if given.startswith("@") else given
    except (OSError, UnicodeDecodeError) as error:
        raise SettingInvalid(name=option, reason=f"cannot read {given[1:]}: {error}") from error
