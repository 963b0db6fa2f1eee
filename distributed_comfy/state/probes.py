"""A job for one worker alone, of which nothing stays in the table; for `doctor`."""
from __future__ import annotations

from typing import Any

from distributed_comfy.state.scripts import SendTickets, script_source


class ProbeTable:
    """Access to the table for jobs that try a worker.

    Args:
        client: `redis.Redis` of the state server with ``decode_responses=True``.
        prefix: first part of every key.
        send_tickets: see `state.scripts.SendTickets`.
    """

    def __init__(self, client: Any, prefix: str, send_tickets: SendTickets) -> None:
        self._script = client.register_script(script_source("probe", prefix))
        self._send_tickets = send_tickets

    def pin(self, signature: str, worker: str) -> bool:
        """Let this worker alone serve the signature, and call it.

        Args:
            signature: of a job in the table, which no worker serves.
        Returns:
            False where there is no such worker (any more).
        """
        return self._run("pin", signature, worker) == "ok"

    def forget(self, job_id: str) -> bool:
        """Remove an ended job with all its keys; False where it has not ended.  Its blobs are the caller's."""
        return self._run("forget", job_id) != "active"

    def _run(self, *args: str) -> str:
        outcome, *workers = (str(part) for part in self._script(keys=(), args=args))
        if workers:
            self._send_tickets(workers)
        return outcome
