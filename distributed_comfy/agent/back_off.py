"""How long a worker that ended by itself waits until it is started again."""
from __future__ import annotations

FIRST_S = 1.0
LONGEST_S = 60.0
HEALTHY_S = 300.0
"""A worker that ran for this long was well: the next wait is short again."""


class BackOff:
    """Doubles from 1 s to 60 s."""

    def __init__(self) -> None:
        self._next_s = FIRST_S

    def after(self, ran_s: float) -> float:
        """The wait after a run of ``ran_s`` seconds."""
        if ran_s >= HEALTHY_S:
            self.reset()
        wait_s = self._next_s
        self._next_s = min(2 * wait_s, LONGEST_S)
        return wait_s

    def reset(self) -> None:
        """The next wait is the shortest: somebody has started the worker on purpose."""
        self._next_s = FIRST_S
