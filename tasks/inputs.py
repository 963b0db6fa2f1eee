"""Brings an item's input files to this host before the engine gets the item; each content once, whichever worker needs it."""
from __future__ import annotations

import logging
import time
from pathlib import Path

from distributed_comfy.errors import BlobMissing, ItemInterrupted
from distributed_comfy.messages import InputFile, RunRequest, item_id
from distributed_comfy.transport.files import InputCache
from tasks.cluster import Cluster

log = logging.getLogger(__name__)

PATIENCE_S = 20.0
"""How long an item waits for a file that the blob store lost; the job's collector looks every few seconds and puts it back."""
_PAUSE_S = 0.5


def bring_inputs(cluster: Cluster, request: RunRequest, folder: Path) -> None:
    """Have every file that the item loads in this host's cache.

    Args:
        cluster: open connections.
        request: the item.
        folder: the cache, `EngineOptions.cache_folder`.
    Raises:
        BlobMissing: nobody put a lost file back in time.
        ItemInterrupted: the job ended while the item waited for one.
        FileDamaged, CacheUnwritable, ConnectionLost: see `InputCache.fetch`.
    """
    cache, give_up = InputCache(folder), time.monotonic() + PATIENCE_S
    for entry in request.input_files:
        while not _fetched(cluster, cache, entry, may_wait=time.monotonic() < give_up):
            if cluster.jobs.job_state(request.job_id).ended:
                raise ItemInterrupted(item_id=item_id(request.job_id, request.index))
            time.sleep(_PAUSE_S)


def _fetched(cluster: Cluster, cache: InputCache, entry: InputFile, *, may_wait: bool) -> bool:
    try:
        cache.fetch(cluster.blobs, entry.file)
    except BlobMissing:
        if not may_wait:
            raise
        log.warning("input %s of node %s is not in the blob store; waiting for it", entry.file.name, entry.node_id)
        return False
    return True
