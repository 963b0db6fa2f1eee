"""The door's process (`state.door`) with the rules of the relay: what an invited host sends directly passes under the same conditions.

Other users, whom the owner of the servers has given a secret of their own, are the server's business alone.
"""
from __future__ import annotations

import threading
from pathlib import Path

from distributed_comfy.relay.rules import FormJudge, Judge
from distributed_comfy.relay.wire import Database
from distributed_comfy.serve.host_rules import judge_of_prefixes
from distributed_comfy.state.connection import HOST_USER
from distributed_comfy.state.door import DoorOrder, DoorPlan, run_door


def main() -> None:
    """Be the door until stdin closes."""
    run_door(judge_of, look_after)


def look_after(order: DoorOrder) -> None:
    """Remove invitations when they expire, for as long as the door is open."""
    from distributed_comfy.orchestrator.servers import Servers  # these load much that the door can open without
    from distributed_comfy.orchestrator.sweeping import sweep_until

    servers = Servers(order.state_url, order.blob_url, embedded=True, folder=Path(order.folder))
    for prefix in order.plan.prefixes.split():
        threading.Thread(target=sweep_until, args=(threading.Event(), servers, prefix), daemon=True).start()


def judge_of(plan: DoorPlan, database: Database, user: str, secret: str) -> Judge | None:
    """The judge of a connection through the door; None for a user of no invited host."""
    judge = judge_of_prefixes(plan.prefixes.split(), database, 0, user, secret)
    return FormJudge({}) if judge is None and user.startswith(HOST_USER) else judge
