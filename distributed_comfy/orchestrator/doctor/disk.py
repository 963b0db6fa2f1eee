"""Free space in the folders that fill up."""
from __future__ import annotations

import os
import shutil
from pathlib import Path

from distributed_comfy.orchestrator.doctor.findings import Finding, fail, ok, warn

LOW_BYTES = 2 * 2**30
EMPTY_BYTES = 256 * 2**20


def check_folder(what: str, folder: Path, setting: str) -> Finding:
    """Judge one folder, which need not exist yet.

    Args:
        what: ``cache``, for people.
        folder: where it is or will be.
        setting: what moves it elsewhere.
    """
    check = f"disk: {what} folder"
    place = folder.absolute()
    try:
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
    except OSError as error:
        return fail(check, f"{folder}: {error.strerror or error}", f"choose another one with {setting}")
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return fail(check, f"{place} cannot be written", f"let this user write there, or choose another folder with {setting}")
    found = f"{free / 2**30:.1f} GiB free in {folder}"
    if free < EMPTY_BYTES:
        return fail(check, found, f"free space there, or choose another folder with {setting}")
    if free < LOW_BYTES:
        return warn(check, found, f"free space there, or choose another folder with {setting}")
    return ok(check, found)
