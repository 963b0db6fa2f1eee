"""Reads the values of one lane of a feed in order, small ones a few ahead, so that the way to the blob store is not gone once for each."""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from distributed_comfy.messages import Value
from distributed_comfy.transport.blobs import BlobStore
from distributed_comfy.transport.feed_names import tensors_of
from distributed_comfy.transport.values import load_value, value_blobs

_AHEAD = 2
_AHEAD_BYTES = 64 * 2**20
"""Larger values are not read ahead: they would take memory, and for them the way hardly counts."""


def read_feed(blobs: BlobStore, values: Sequence[Value], *, wait_for: Callable[[list[str]], None]) -> Iterator[Any]:
    """Load each value and unlink its blobs, in order: whoever feeds takes a blob that is gone for read, and so are all before it.

    Args:
        values: of one lane.
        wait_for: returns when these blobs are there; called in the caller's thread only.
    """
    with ExitStack() as ending:
        readers = ending.enter_context(ThreadPoolExecutor(_AHEAD, thread_name_prefix="read-feed"))
        unlinker = ending.enter_context(ThreadPoolExecutor(1, thread_name_prefix="unlink-feed"))
        coming: deque[Future[tuple[Any, ...]]] = deque()
        unlinked: list[Future[None]] = []
        for position, value in enumerate(values):
            found = coming.popleft().result() if coming else ()
            if not found:
                wait_for(value_blobs(value))
            for later in values[position + 1 + len(coming) : position + 1 + _AHEAD]:
                if not _is_small(later):
                    break
                coming.append(readers.submit(_read_if_there, blobs, later))
            if not found:
                found = (load_value(blobs, value, as_torch=True),)
            unlinked.append(unlinker.submit(blobs.unlink, value_blobs(value)))
            yield found[0]
        for future in unlinked:
            future.result()


def _read_if_there(blobs: BlobStore, value: Value) -> tuple[Any, ...]:
    """The value, or nothing where it has not come yet."""
    names = value_blobs(value)
    return (load_value(blobs, value, as_torch=True),) if not names or all(blobs.exists(names)) else ()


def _is_small(value: Value) -> bool:
    return sum(tensor.size_bytes for tensor in tensors_of(value)) <= _AHEAD_BYTES
