"""What stands for a waiting node while this ComfyUI makes items of its job: one node that waits, and turns, of which each makes an item.

The node expands into these once; the one that waits asks for turn after turn, and each turn expands into the nodes of one item.  So items
lie beside each other: were each added within the one before, ComfyUI's caches would nest as deep as there are items, and end in a
RecursionError that ends its queue.  A turn whose item is over leaves nothing in ComfyUI.
"""
from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field

from distributed_comfy.comfyui.master_job import MasterJob
from distributed_comfy.comfyui.running_job import RunningJob
from distributed_comfy.messages import Prompt

TURN_CLASS = "DistributedLocalTurn"
"""Internal: waits for an item to make, or for the end of the job."""
WAIT_CLASS = "DistributedLocalWait"
"""Internal: stands for the node that waits for the job."""
TURNS_INPUT = "turns"
"""Literal input of both: the id of their `Turns`."""
PART_INPUTS = tuple(f"part_{number}" for number in range(256))
"""Lazy inputs of the node that waits, one for each turn; when all are over and the job is not, it expands into turns anew."""
FEWEST = 8
OVER = ""
"""What the last turn gives: all that the node waits for is here."""


@dataclass
class Turns:
    """Those of one expansion."""

    turns_id: str
    job: MasterJob
    node_id: str
    """Of the prompt: who waits for the job."""
    outputs: int
    """Of that node."""
    made: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Turn -> the nodes of its item, until it is over."""


class AllTurns:
    """Those of the prompts that are not over; safe to use from several threads."""

    def __init__(self) -> None:
        self._turns: dict[str, Turns] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def add(self, job: MasterJob, node_id: str, outputs: int) -> Turns:
        """New ones for a node that waits."""
        turns = Turns(f"{node_id}~turns{next(self._numbers)}", job, node_id, outputs)
        with self._lock:
            self._turns[turns.turns_id] = turns
        return turns

    def find(self, turns_id: str) -> Turns | None:
        """None where they are none of ours, or their prompt is over."""
        with self._lock:
            return self._turns.get(turns_id)

    def leftovers(self, node_id: str) -> tuple[str, ...] | None:
        """The nodes of the item of a turn that is over; None where the node is no turn.  Each is told once."""
        turns = self.find(node_id.rpartition(".")[0])
        return turns.made.pop(node_id, ()) if turns is not None else None

    def drop(self, job: MasterJob) -> None:
        """The job's prompt is over."""
        with self._lock:
            self._turns = {turns_id: turns for turns_id, turns in self._turns.items() if turns.job is not job}


def turn_nodes(turns: Turns, count: int) -> tuple[str, Prompt]:
    """Id of the node that waits, and all that is added."""
    shared = {"override_display_id": turns.node_id}
    parts = dict(zip(PART_INPUTS, (f"{turns.turns_id}.{number}" for number in range(count)), strict=False))
    wait = f"{turns.turns_id}.wait"
    nodes = {turn: {"class_type": TURN_CLASS, "inputs": {TURNS_INPUT: turns.turns_id}, **shared} for turn in parts.values()}
    inputs = {TURNS_INPUT: turns.turns_id, **{part: [turn, 0] for part, turn in parts.items()}}
    return wait, {**nodes, wait: {"class_type": WAIT_CLASS, "inputs": inputs, **shared}}


def how_many(running: RunningJob) -> int:
    """Turns that are enough where all that is left is made here, and nothing of it twice; within the limits of a node."""
    return min(len(PART_INPUTS), max(FEWEST, running.record.items - len(running.spool.items()) + 1))
