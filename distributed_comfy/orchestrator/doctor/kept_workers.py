"""Hosts that are not heard of any more, and workers that do not run: neither answers a probe, so what agents say of them is told."""
from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime

from distributed_comfy.orchestrator.doctor.findings import Finding, fail, ok, warn
from distributed_comfy.state.records import GoneHost, HostRecord, HostWorker

_NOT_RUNNING = ("disabled", "stopped", "failed", "backing-off")
_START = "`distributed-comfy workers start {name}` tries at once"
_BETWEEN = "; "
"""Stands before the remedy in a reason that an agent tells."""


def not_running(records: Iterable[HostRecord]) -> set[str]:
    """Names of workers of which their agents say that they have no process; what the table says of them is older."""
    return {own.name for record in records for own in record.workers if own.phase in _NOT_RUNNING}


def check_kept(records: Sequence[HostRecord], on_table: Collection[str]) -> list[Finding]:
    """A finding for each worker that an agent keeps and that cannot be tried out.

    Args:
        records: of living agents.
        on_table: names of the others.
    """
    return [
        _check(record.host, own)
        for record in records
        for own in sorted(record.workers, key=lambda own: own.name)
        if own.name not in on_table
    ]


def check_gone(hosts: Sequence[GoneHost], now_ms: int) -> Iterator[Finding]:
    """A finding for each host that is not heard of any more."""
    for host in hosts:
        name, minutes = host.record.host, max(0, now_ms - host.seen_ms) // 60_000
        clock = datetime.fromtimestamp(host.seen_ms / 1000).strftime("%H:%M")
        workers = ", ".join(sorted(own.name for own in host.record.workers if own.phase not in ("disabled", "stopped")))
        found = f"not heard of since {clock} ({minutes} min ago)" + (f", nor of what it ran: {workers}" if workers else "")
        remedy = "start `distributed-comfy up` there, or look at its network"
        yield fail(f"host {name}", found, f"{remedy}; `distributed-comfy hosts forget {name}` if it does not come back")


def _check(host: str, own: HostWorker) -> Finding:
    check, (reason, _, remedy) = f"worker {own.name}", own.reason.partition(_BETWEEN)
    start = _START.format(name=own.name)
    if own.phase == "disabled":
        return ok(check, f"switched off by its user; `distributed-comfy workers enable {own.name}` switches it on")
    if own.phase == "stopped" and not reason:
        return ok(check, f"stopped by its user; `distributed-comfy workers start {own.name}` starts it")
    log = f"look into `distributed-comfy workers logs {own.name}`"
    if own.phase == "failed":
        why = reason or "its agent does not say why"
        return fail(check, f"cannot start on {host}: {why}", f"{remedy or log}; then `distributed-comfy workers start {own.name}`")
    if own.phase == "backing-off":
        again = f"ended on {host}, and is started again in {max(0.0, own.next_start_s):.0f} s (restart {own.restarts})"
        return fail(check, f"{again}: {reason}" if reason else again, f"{remedy or log}; {start}")
    if own.phase == "stopped":
        return fail(check, f"stopped on {host}: {reason}", f"{remedy or log}; {start}")
    if own.phase == "starting" and reason:
        return fail(check, f"is being started again on {host}: {reason}", remedy or log)
    return warn(check, f"is {own.phase} on {host}, and takes no items", f"wait a moment; if it stays so, {log}")
