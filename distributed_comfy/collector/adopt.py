"""Takes over the spool that a job left: found by resume key, renamed to the job that goes on with it; removes those that nobody wants."""
from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from distributed_comfy.collector.spool import ENDED, MANIFEST, Spool, SpoolManifest, read_manifest
from distributed_comfy.errors import MessageVersionUnknown, OutputUnwritable, SpoolUnusable
from distributed_comfy.file_lock import FileLock

log = logging.getLogger(__name__)

KEPT_S = 7 * 24 * 3600.0
"""How long the items of a job that failed or was cancelled wait for a run that goes on with them."""


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


def remove_ended(spools: Path, complete_key: str = "") -> None:
    """Remove spools of jobs that failed or were cancelled: those that waited for `KEPT_S`, and those whose work is complete now.

    Args:
        spools: where they lie; others there are left alone, and so are those that somebody uses.
        complete_key: resume key of the job that has just been completed here; empty for none.
    """
    for mark in spools.glob(f"*/{ENDED}"):
        try:
            waited_s, manifest = time.time() - mark.stat().st_mtime, read_manifest(mark.parent)
            complete = bool(complete_key) and manifest is not None and manifest.resume_key == complete_key
            if manifest is not None and (complete or waited_s > KEPT_S):
                Spool(mark.parent, manifest).remove()
        except (FileNotFoundError, SpoolUnusable, MessageVersionUnknown, OutputUnwritable) as error:
            log.info("%s stays: %s", mark.parent, error)


def mark_left(spools: Path) -> None:
    """Let the time begin after which `remove_ended` removes what a killed process left; a spool that somebody uses stays as it is."""
    for path in spools.glob(f"*/{MANIFEST}"):
        try:
            manifest = None if (path.parent / ENDED).exists() else read_manifest(path.parent)
            if manifest is not None:
                with Spool(path.parent, manifest) as spool:
                    spool.mark_ended()
        except (FileNotFoundError, SpoolUnusable, MessageVersionUnknown, OutputUnwritable) as error:
            log.debug("the spool %s stays as it is: %s", path.parent, error)
