"""Takes over the spool that a collector left when it died: found by resume key, renamed to the job that goes on with it."""
from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from distributed_comfy.collector.spool import MANIFEST, Spool, SpoolManifest, read_manifest
from distributed_comfy.errors import MessageVersionUnknown, SpoolUnusable
from distributed_comfy.file_lock import FileLock

log = logging.getLogger(__name__)


def find_left(spools: Path, resume_key: str) -> Iterator[tuple[Path, SpoolManifest]]:
    """Every spool below ``spools`` with this key, the last one written first; whether somebody uses it is for `adopt_spool` to find out.

    Spools of other versions are passed by.
    """
    if not resume_key or not spools.is_dir():
        return
    folders = [folder for folder in spools.iterdir() if (folder / MANIFEST).is_file()]
    for folder in sorted(folders, key=lambda folder: (folder / MANIFEST).stat().st_mtime, reverse=True):
        try:
            manifest = read_manifest(folder)
        except MessageVersionUnknown:
            continue
        if manifest is not None and manifest.resume_key == resume_key:
            yield folder, manifest


def adopt_spool(left: Path, folder: Path, manifest: SpoolManifest) -> Spool | None:
    """Make another job's spool this job's, and open it; None where a collector uses it, or another process was faster.

    Args:
        left: from `find_left`.
        folder: what it is called from now on.
        manifest: the job that goes on with it.
    """
    lock = FileLock(left / "lock")
    try:
        if not lock.try_acquire():
            return None
    except FileNotFoundError:
        return None
    try:
        partial = left / f".{MANIFEST}.part"
        partial.write_text(json.dumps(asdict(manifest)), encoding="utf-8")
        os.replace(partial, left / MANIFEST)
    finally:
        lock.release()  # Windows renames no folder with an open file in it
    try:
        os.replace(left, folder)
        return Spool(folder, manifest)
    except (OSError, SpoolUnusable) as error:
        log.info("the spool %s cannot be taken over: %s", left, error)
        return None
