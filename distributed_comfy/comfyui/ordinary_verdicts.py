"""What is known of prompts that wait: whether a worker may run them, and how often they have come back.

Each entry of ComfyUI's queue is known for itself, because two prompts may have the same id.
"""
from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from distributed_comfy.comfyui.ordinary_rules import Suitable
from distributed_comfy.comfyui.queue_consumer import Item
from distributed_comfy.messages import Capability

log = logging.getLogger(__name__)

RETURNS = 2
"""How often a prompt may come back before it stays in this ComfyUI."""

Live = Mapping[str, Capability]
"""Worker -> what it can run."""


@dataclass
class _Known:
    item: Item
    returns: int = 0
    stays: bool = False
    live: Live = field(default_factory=dict)
    """The workers for which the verdict holds."""
    verdict: Suitable | str | None = None


class Verdicts:
    """Safe to use from several threads.

    Args:
        judge: whether an entry may run on one of these workers, or in words why it stays.
    """

    def __init__(self, judge: Callable[[Item, Live], Suitable | str]) -> None:
        self._judge = judge
        self._known: dict[int, _Known] = {}
        """By identity of the entry, which is kept here and so stays the only one of that identity."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def of(self, item: Item, live: Live) -> Suitable | str:
        """What an entry needs of a worker, or in words why it stays; judged again where the workers have changed."""
        known = self._of(item)
        if known.stays or known.returns > RETURNS:
            return "it came back from the workers"
        if known.verdict is None or known.live != live:
            known.live, known.verdict = live, self._judged(item, live)
            if isinstance(known.verdict, str):
                log.info("prompt %s stays in this ComfyUI: %s", item[1], known.verdict)
        return known.verdict

    def came_back(self, item: Item, *, stays: bool) -> None:
        """An entry is in the queue again.

        Args:
            item: the entry.
            stays: whether no worker should try it again.
        """
        known = self._of(item)
        known.returns += 1
        known.stays = known.stays or stays

    def keep(self, items: Iterable[Item]) -> None:
        """Forget all entries but these."""
        here = {id(item) for item in items}
        with self._lock:
            self._known = {number: known for number, known in self._known.items() if number in here}

    def _of(self, item: Item) -> _Known:
        with self._lock:
            return self._known.setdefault(id(item), _Known(item))

    def _judged(self, item: Item, live: Live) -> Suitable | str:
        try:
            return self._judge(item, live)
        except Exception as error:  # this prompt is not understood; the others are to be judged all the same
            log.exception("prompt %s is not judged; please report this", item[1])
            return f"an error of ours: {error}"
