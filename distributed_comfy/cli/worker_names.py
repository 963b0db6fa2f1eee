"""Which workers there are, for commands that take the name of one."""
from __future__ import annotations

from collections.abc import Collection
from typing import Any

import click

from distributed_comfy.cli.cluster import connected
from distributed_comfy.cli.output import Output
from distributed_comfy.config_file import nearest
from distributed_comfy.errors import DistributedComfyError, WorkerUnknown
from tasks.cluster import Cluster

_SHOWN = 12


class WorkerName(click.Argument):
    """The NAME of a worker; where it is missing, the error says which there are, and how they are."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """As click does."""
        try:
            return super().process_value(ctx, value)
        except click.MissingParameter as error:
            if listed := _listed(ctx.ensure_object(Output)):
                raise click.UsageError(f"Missing argument 'NAME': {listed}.", ctx) from error
            raise


worker_name = click.argument("name", cls=WorkerName)


def _listed(output: Output) -> str:
    """``there are pc1-cpu (stopped), pc1-cuda0 (idle)``; empty where nobody can be asked."""
    try:
        with connected(output) as cluster:
            states = worker_states(cluster)
    except DistributedComfyError:
        return ""
    shown = [f"{name} ({state})" for name, state in sorted(states.items())]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return f"there are {', '.join(shown[:_SHOWN])}{more}" if shown else "there is no worker yet"


def worker_states(cluster: Cluster) -> dict[str, str]:
    """Every worker that is known -> its state: in the table, else as its agent has it."""
    kept = {worker.name: str(worker.phase) for record in cluster.hosts.living() for worker in record.workers}
    return kept | {worker.facts.name: str(worker.state) for worker in cluster.workers.workers()}


def unknown_worker(name: str, known: Collection[str]) -> WorkerUnknown:
    """The error for a name that no worker has, with the names that there are."""
    if not known:
        return WorkerUnknown(name=name, known=" (there is none)")
    near = nearest(name, known)
    listed = sorted(known)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    meant = f"; did you mean {near}?" if near else ""
    return WorkerUnknown(name=name, known=f" (there are {', '.join(listed[:_SHOWN])}{more}{meant})")
