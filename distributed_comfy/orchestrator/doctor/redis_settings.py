"""Whether servers are set up so that nothing is lost and nobody uninvited comes in; pure judgement of `ServerFacts`."""
from __future__ import annotations

from collections.abc import Iterator

from distributed_comfy.orchestrator.doctor.findings import Finding, fail, ok, warn
from distributed_comfy.orchestrator.doctor.server_facts import ServerFacts

CLOCK_LIMIT_S = 2.0
_KEEP = "and the same in its configuration file"


def check_state_settings(facts: ServerFacts) -> list[Finding]:
    """Of the server that holds jobs and items."""
    check = "state Redis: settings"
    return list(_state_faults(check, facts)) or [ok(check, "noeviction, append-only file, password")]


def _state_faults(check: str, facts: ServerFacts) -> Iterator[Finding]:
    if facts.role != "master":
        yield fail(check, "it is a replica and takes no changes", "name the primary server in DC_REDIS_URL")
    if facts.maxmemory_policy != "noeviction":
        judge = fail if facts.maxmemory else warn
        yield judge(
            check,
            f"maxmemory-policy is {facts.maxmemory_policy}: when memory is short it throws jobs away",
            f"run `CONFIG SET maxmemory-policy noeviction` on it, {_KEEP}",
        )
    if not facts.appends:
        yield fail(
            check, "no append-only file: a restart of the server loses all jobs", f"run `CONFIG SET appendonly yes` on it, {_KEEP}"
        )  # fmt: skip
    elif facts.append_error:
        yield fail(check, "its last write to the append-only file failed", "give it disk space and look into its log")
    yield from _strangers(check, facts)


def check_blob_settings(facts: ServerFacts, state: ServerFacts | None) -> list[Finding]:
    """Of the server that holds tensors and files.

    Args:
        facts: of it.
        state: of the state server, where that answered.
    """
    check = "blob Redis: settings"
    if state is not None and facts.run_id == state.run_id:
        remedy = "start a second server without persistence and with a maxmemory, and name it in DC_BLOB_URL"
        return [warn(check, "it is the state Redis: every image goes through the append-only file", remedy)]
    return list(_blob_faults(check, facts)) or [ok(check, f"maxmemory {facts.maxmemory / 2**30:.1f} GiB, no persistence, password")]


def _blob_faults(check: str, facts: ServerFacts) -> Iterator[Finding]:
    if facts.role != "master":
        yield fail(check, "it is a replica and takes no changes", "name the primary server in DC_BLOB_URL")
    if not facts.maxmemory:
        remedy = f"run `CONFIG SET maxmemory 8gb` (what the host can spare) on it, {_KEEP}"
        yield warn(check, "no maxmemory: many large results at once can use up the host's memory", remedy)
    if facts.maxmemory_policy != "noeviction":
        remedy = f"run `CONFIG SET maxmemory-policy noeviction` on it, {_KEEP}"
        yield warn(check, f"maxmemory-policy is {facts.maxmemory_policy}: it may drop results, whose items then run again", remedy)
    if facts.appends:
        yield warn(check, "it writes every image to disk for nothing", f"run `CONFIG SET appendonly no` on it, {_KEEP}")
    yield from _strangers(check, facts)


def _strangers(check: str, facts: ServerFacts) -> Iterator[Finding]:
    if not facts.open_to_all:
        return
    who = "every user and program of this host" if facts.loopback else "whoever reaches its port"
    remedy = "set requirepass in its configuration and write the URL as redis://:PASSWORD@HOST:PORT/0"
    yield warn(check, f"no password: {who} can run prompts on all workers and read all results", remedy)


def check_clock(check: str, facts: ServerFacts) -> Finding:
    """Leases and ages go by the server's clock alone; times that people compare do not."""
    ahead_s = facts.clock_ahead_s
    found = f"{abs(ahead_s):.3f} s {'ahead of' if ahead_s > 0 else 'behind'} this host"
    if abs(ahead_s) <= CLOCK_LIMIT_S:
        return ok(check, found)
    remedy = "set both clocks by NTP (`timedatectl set-ntp true`)"
    return warn(check, f"{found}: nothing is lost, but logs and Flower show wrong times", remedy)
