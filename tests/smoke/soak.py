"""A job under a random fault every few seconds; all that is random comes from one seed."""
from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.cluster_rig import RunningJob
from tests.smoke.field import Ending, Field, Hit, Network, kill
from tests.smoke.measured import Costs

Fault = Callable[["Soak"], int]
"""Does it and mends it; gives how many executions it may have cost."""


@dataclass
class Soak:
    """One job and what is done to it; the n-th fault, and the pause before it, are the same with every run of a seed.

    Args:
        field: where.
        seed: of all chances.
        items: of the job.
        pause_s: shortest and longest time between two faults.
        faults_s: how long there are any.
    """

    field: Field
    seed: int
    items: int
    pause_s: tuple[float, float]
    faults_s: float = float("inf")

    def __post_init__(self) -> None:
        self.chance = random.Random()
        self.done: list[str] = []
        self._job: RunningJob | None = None

    def run(self, timeout_s: float) -> Ending:
        """Disturb a job until it is at its end."""
        began, extra = time.time(), 0
        job = self._job = self.field.begin(items=self.items)
        job_id = job.queued()
        while not self._is_over(job_id):
            assert time.time() - began < timeout_s, f"{self.done}\n{self.field.rig.logs()}"
            self.field.restart_ended()
            self.chance = random.Random(f"{self.seed}/{len(self.done)}")  # a round that is left out, or a fault that misses, moves no other
            time.sleep(self.chance.uniform(*self.pause_s))
            if time.time() - began > self.faults_s or self._is_struck_enough(job_id):
                continue
            name, fault = self.chance.choice(FAULTS)
            self.done.append(name)
            extra += fault(self)
        ending = self.field.ended(job, None, began, timeout_s=60.0)
        ending.items, ending.costs = self.items, Costs(0, extra)
        return ending

    def _is_over(self, job_id: str) -> bool:
        return bool(self.field.cluster.jobs.job_state(job_id).ended)

    def _is_struck_enough(self, job_id: str) -> bool:
        """An item that is struck once more would fail, and its job with it; it is left in peace until it is done."""
        items = self.field.cluster.jobs.item_states(job_id).values()
        return any(item.attempts + 1 >= self.field.timing.attempts for item in items if item.state != "done")

    # -- faults ------------------------------------------------------------------------------------------------------------
    def hit(self) -> Hit | None:
        """An execution of one of the workers, if one goes on just now."""
        assert self._job is not None
        names = [name for name, worker in self.field.rig.workers.items() if worker.process.poll() is None]
        return self.field.hit_now(self._job.report.job_id, on=self.chance.sample(names, len(names)))

    def network(self) -> Network:
        """The way of one of the workers."""
        return self.field.networks[self.chance.choice(sorted(self.field.networks))]

    def for_a_while(self) -> None:
        """Shorter or longer than a lease."""
        time.sleep(self.field.timing.lease_s * self.chance.uniform(0.2, 1.8))

    def kill_engine(self) -> int:
        if not (hit := self.hit()):
            return 0
        kill(hit.engine)
        return 1

    def kill_consumer(self) -> int:
        if not (hit := self.hit()):
            return 0
        kill(hit.worker.process)
        hit.worker.process.wait()
        return 1

    def freeze(self) -> int:
        if not (hit := self.hit()):
            return 0
        hit.freeze()
        self.for_a_while()
        hit.go_on()
        return 1

    def end_worker(self) -> int:
        """In good order, which costs nothing."""
        if hit := self.hit():
            hit.worker.process.send_signal(signal.SIGTERM)
        return 0

    def reset(self) -> int:
        self.network().each(lambda way: way.reset())
        return 0

    def refuse(self) -> int:
        return self._cut(lambda way: way.refuse(), lambda way: way.go_on())

    def stop(self) -> int:
        return self._cut(lambda way: way.stop(), lambda way: way.go_on())

    def silence(self) -> int:
        return self._cut(lambda way: way.stop(), lambda way: way.renew())

    def _cut(self, cut: Callable[[Any], Any], mend: Callable[[Any], Any]) -> int:
        network = self.network()
        network.each(cut)
        self.for_a_while()
        network.each(mend)
        return 1

    def swallow(self) -> int:
        """The next reply of a script that every worker calls."""
        self.network().state.swallow(self.field.script(self.chance.choice(["claim", "complete", "renew"])))
        return 0

    def kill_state(self) -> int:
        """Each worker may have told it an item's end that it had not written yet, as in the row of that fault."""
        self.field.state.kill()
        time.sleep(self.chance.uniform(0.1, 1.0))
        self.field.state.start()
        return len(self.field.rig.workers)

    def kill_blobs(self) -> int:
        """Each worker may have one result there, and the collector two that it fetches."""
        self.field.blobs.kill()
        time.sleep(self.chance.uniform(0.1, 1.0))
        self.field.blobs.start()
        return len(self.field.rig.workers) + 2


FAULTS: Sequence[tuple[str, Fault]] = [
    ("engine killed", Soak.kill_engine), ("consumer killed", Soak.kill_consumer), ("worker frozen", Soak.freeze),
    ("worker ended", Soak.end_worker), ("connections reset", Soak.reset), ("connections refused", Soak.refuse),
    ("network stopped", Soak.stop), ("network silent", Soak.silence), ("reply lost", Soak.swallow), ("state Redis killed", Soak.kill_state),
    ("blob Redis killed", Soak.kill_blobs),
]  # fmt: skip
