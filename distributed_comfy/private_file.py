"""Logs that only their user can read: what nodes print is in them, and what prompts say."""
from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

PRIVATE = 0o600
PRIVATE_FOLDER = 0o700


def make_private_folder(folder: Path) -> None:
    """Make a folder for this user alone; one that is there stays as it is."""
    folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)


def append_privately(path: Path) -> BinaryIO:
    """A file to append to, unbuffered; its folder is made where it is missing.

    Raises:
        OSError: it cannot be written.
    """
    make_private_folder(path.parent)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE)
    with suppress(OSError):  # one of an earlier version, or of another owner
        os.chmod(path, PRIVATE)
    return os.fdopen(descriptor, "ab", buffering=0)
