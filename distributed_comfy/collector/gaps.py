"""Items that failed for good in a job that goes on without them: which they are, and what stands in for them."""
from __future__ import annotations

from collections.abc import Iterable, Mapping

from distributed_comfy.messages import JobRecord
from distributed_comfy.state.records import ItemState


def missing_items(job: JobRecord, states: Mapping[int, ItemState]) -> set[int]:
    """The items that will never come, where the job can do without them; none where it fails with them."""
    failed = {index for index in range(job.generated) if index in states and states[index].state == "failed"}
    if not job.spare or len(failed) == job.generated or (job.spare == "others" and 0 in failed):
        return set()
    return failed


def stand_ins(here: Iterable[int], generated: int) -> dict[int, int]:
    """Which item's values take the place of each missing one: those of the last before it, of the first there is where it has none.

    Args:
        here: items whose results are there; those from ``generated`` on do not count.
        generated: number of items without the last stage.
    """
    there = sorted(index for index in here if index < generated)
    found, last = {}, there[0] if there else -1
    for index in range(generated if there else 0):
        if index in there:
            last = index
        else:
            found[index] = last
    return found
