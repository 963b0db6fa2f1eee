"""A job while this ComfyUI collects it."""
from __future__ import annotations

from dataclasses import dataclass

from distributed_comfy.collector.collect import Collector
from distributed_comfy.collector.spool import Spool
from distributed_comfy.messages import JobRecord
from distributed_comfy.planning.plan import JobPlan
from tasks.cluster import Cluster


@dataclass(frozen=True)
class RunningJob:
    """A job that is in the table, and is being collected."""

    cluster: Cluster
    record: JobRecord
    plan: JobPlan
    spool: Spool
    collector: Collector

    def has(self, node_id: str) -> bool:
        """Whether all that a node of the prompt gives is here."""
        if self.record.tiles is not None and node_id == self.record.tiles.node_id:
            return self.collector.canvas is not None
        here = sum(index < self.record.generated for index in self.spool.items())
        return here + (len(self.collector.missing) if self.record.spare else 0) >= self.record.generated
