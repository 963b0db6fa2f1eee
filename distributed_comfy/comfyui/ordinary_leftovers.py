"""Removes what a ComfyUI that was killed left of its prompts on workers: their spools, and files that had no name yet.

Several ComfyUIs may use one output folder, so only what nobody holds any more is touched.
"""
from __future__ import annotations

import logging
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from distributed_comfy.comfyui.ordinary_run import SPOOL_PREFIX
from distributed_comfy.comfyui.placed_files import JOURNAL, is_partial
from distributed_comfy.file_lock import FileLock

log = logging.getLogger(__name__)


def sweep(spools: Path, roots: Collection[Path]) -> None:
    """Remove the spools of the dead, and what their journals name.

    Args:
        spools: the folder in which the spools are.
        roots: folders in which files are placed; nothing is removed anywhere else.
    """
    for spool in spools.glob(f"{SPOOL_PREFIX}*"):
        try:
            _remove(spool, roots)
        except OSError as error:
            log.warning("%s was left by a ComfyUI that was killed, and cannot be removed: %s", spool, error)
    with suppress(OSError):  # absent, or others have theirs there
        spools.rmdir()


def _remove(spool: Path, roots: Collection[Path]) -> None:
    lock = FileLock(spool / "lock")
    if not lock.try_acquire():
        return
    try:
        journal = spool / JOURNAL
        named = journal.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if journal.exists() else []
        left = [path for path in map(Path, named) if is_partial(path) and _is_in(path, roots)]
        for path in left:
            path.unlink(missing_ok=True)
    finally:
        lock.release()
    shutil.rmtree(spool, ignore_errors=True)
    log.info("removed what a ComfyUI that was killed left of a prompt: %s", spool.name)


def _is_in(path: Path, roots: Collection[Path]) -> bool:
    folder = path.parent.resolve()
    return any(folder.is_relative_to(root.resolve()) for root in roots)
