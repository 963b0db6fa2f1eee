"""Brings an item's input files to this host before the engine gets the item; each content once, whichever worker needs it."""
from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextvars import copy_context
from pathlib import Path

from distributed_comfy.errors import BlobMissing, ItemInterrupted
from distributed_comfy.messages import InputFile, RunRequest, item_id
from distributed_comfy.transport.files import InputCache
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

PATIENCE_S = 20.0
"""How long an item waits for a file that the blob store lost; the job's collector looks every few seconds and puts it back."""
_PAUSE_S = 0.5
_LOOK_S = 0.1


def bring_inputs(cluster: Cluster, request: RunRequest, folder: Path, is_wanted: Callable[[], bool]) -> None:
    """Have every file that the item loads in this host's cache.

    They are fetched in a thread of their own: one that waits for a slow or silent server hears nothing for as long as the client tries.
    What this item gives up, that thread leaves with the next piece that arrives.

    Args:
        cluster: open connections.
        request: the item.
        folder: the cache, `EngineOptions.cache_folder`.
        is_wanted: whether the item is to run still.
    Raises:
        BlobMissing: nobody put a lost file back in time.
        ItemInterrupted: the item is not wanted any more, or its job ended while it waited for a lost file.
        FileDamaged, CacheUnwritable, ConnectionLost: see `InputCache.fetch`.
    """
    if not request.input_files:
        return

    given_up = threading.Event()  # whoever waited has gone: what it says of its item after that is of another claim, or of none

    def check() -> None:
        if given_up.is_set() or not is_wanted():
            raise ItemInterrupted(item_id=item_id(request.job_id, request.index))

    brought: Future[None] = Future()

    def bring() -> None:
        try:
            _bring(cluster, request, InputCache(folder), check)
        except BaseException as error:  # noqa: BLE001 - whatever it was, the ticket's thread waits for it
            brought.set_exception(error)
        else:
            brought.set_result(None)

    threading.Thread(target=copy_context().run, args=(bring,), name="inputs", daemon=True).start()
    try:
        while not wait([brought], _LOOK_S).done:
            check()
    finally:
        given_up.set()
    brought.result()


def _bring(cluster: Cluster, request: RunRequest, cache: InputCache, check: Callable[[], None]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    for entry in request.input_files:
        while not _fetched(cluster, cache, entry, check, may_wait=time.monotonic() < give_up):
            check()
            if cluster.jobs.job_state(request.job_id).ended:
                raise ItemInterrupted(item_id=item_id(request.job_id, request.index))
            time.sleep(_PAUSE_S)


def _fetched(cluster: Cluster, cache: InputCache, entry: InputFile, check: Callable[[], None], *, may_wait: bool) -> bool:
    try:
        cache.fetch(cluster.blobs, entry.file, check)
    except BlobMissing:
        if not may_wait:
            raise
        log.warning("input %s of node %s is not in the blob store; waiting for it", entry.file.name, entry.node_id)
        return False
    return True
