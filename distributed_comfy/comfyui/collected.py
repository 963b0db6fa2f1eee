"""What a job has brought home, as the values that nodes of this ComfyUI give: torch tensors on the CPU, bit for bit as they came."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distributed_comfy.collector.assemble import PlacedValue, placed_values
from distributed_comfy.collector.gaps import stand_ins
from distributed_comfy.collector.spool import Spool
from distributed_comfy.engine.joining import joined_audio, joined_latents, joined_tensors
from distributed_comfy.messages import CollectorPlan, JobRecord
from distributed_comfy.nodes.collector import nothing_of
from distributed_comfy.transport.values import load_value
from distributed_comfy.workflow.classes import COLLECTOR_SLOTS, TENSOR_SLOTS


class _SpooledItem:
    """A `BlobReader` of one item in an open spool."""

    def __init__(self, spool: Spool, index: int) -> None:
        self._spool, self._index = spool, index

    def get(self, blob: str) -> memoryview:
        """See `BlobReader.get`; writable, and nothing of the file stays open."""
        return np.fromfile(self._spool.path(self._index, blob), np.uint8).data


def collected_values(spool: Spool, record: JobRecord, plan: CollectorPlan, nothing: Any) -> tuple[Any, ...]:
    """What a collector gives at each of its outputs.

    Args:
        spool: open; every item is here, or will never be.
        record: the job.
        plan: the collector.
        nothing: for a wired slot that no item gave a value: what keeps everything behind it from running.
    Raises:
        SizesDiffer, BatchDiffers: values that cannot be joined.
        FrameError: a file of the spool was damaged.
    """
    return tuple(_joined(spool, record, plan, slot, nothing) if slot in plan.slots else nothing_of(slot) for slot in COLLECTOR_SLOTS)


def _joined(spool: Spool, record: JobRecord, plan: CollectorPlan, slot: str, nothing: Any) -> Any:
    gaps = stand_ins(spool.items(), record.generated) if plan.on_missing == "repeat" else {}
    placed = [one for one in placed_values(spool, plan.node_id, slot, gaps) if one.index < record.generated]
    if not placed:
        return nothing
    if slot in TENSOR_SLOTS:
        return joined_tensors(slot, [one.value for one in placed], _loaded(spool, placed))
    return (joined_audio if slot == "audio" else joined_latents)(list(_loaded(spool, placed)))


def _loaded(spool: Spool, placed: Sequence[PlacedValue]) -> Iterator[Any]:
    for one in placed:
        yield load_value(_SpooledItem(spool, one.index), one.value, as_torch=True)


def upscaled_value(canvas: NDArray[np.float32]) -> tuple[Any]:
    """What an upscale gives: the canvas in memory of its own, because its file goes with the job."""
    import torch

    return (torch.from_numpy(np.array(canvas)),)
