"""All about one server: whether it answers, its version, its settings, its clock."""
from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import redis

from distributed_comfy.errors import DistributedComfyError, RedisRefused, RedisTooOld, RedisUnreachable
from distributed_comfy.orchestrator.doctor.findings import Finding, fail, ok
from distributed_comfy.orchestrator.doctor.redis_settings import check_blob_settings, check_clock, check_state_settings
from distributed_comfy.orchestrator.doctor.redis_version import check_version, installed_package, read_package
from distributed_comfy.orchestrator.doctor.server_facts import ServerFacts, read_facts
from distributed_comfy.orchestrator.servers import Servers
from distributed_comfy.settings import Settings, redact_url
from distributed_comfy.state.connection import connect


@dataclass(frozen=True)
class ServerLook:
    """One server: what it said, if anything, and how that was."""

    facts: ServerFacts | None
    reached: Finding


def look_at_servers(servers: Servers) -> tuple[ServerLook, ServerLook]:
    """Ask the state server and the blob server, at the same time; where they are one server, once."""
    looks: dict[str, ServerLook] = {}
    places = {"state": (servers.redis_url, "DC_REDIS_URL")}
    if not servers.one:
        places["blob"] = (servers.blob_url, "DC_BLOB_URL")

    def look(what: str) -> None:
        looks[what] = _look(f"{what} Redis", *places[what])

    threads = [threading.Thread(target=look, args=(what,), name=f"doctor-{what}", daemon=True) for what in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return looks["state"], looks["blob"] if "blob" in looks else _same(looks["state"])


def _same(state: ServerLook) -> ServerLook:
    """The blob server that is the state server: what is wrong with it was said of that, and is mended there."""
    if state.facts is None:
        found = "it is the state Redis (DC_BLOB_URL names no other), which cannot be used"
        return ServerLook(None, fail("blob Redis", found, "mend the state Redis, see there"))
    return ServerLook(state.facts, ok("blob Redis", "it is the state Redis (DC_BLOB_URL names no other)"))


def _look(check: str, url: str, setting: str) -> ServerLook:
    shown = redact_url(url)
    try:
        client = connect(url, setting)
    except DistributedComfyError as error:
        return ServerLook(None, fail(check, str(error), _remedy(error, setting)))
    try:
        facts = read_facts(client, url)
    except redis.RedisError as error:
        remedy = "look into its log, and at the rights of its user (ACL)"
        return ServerLook(None, fail(check, f"{shown} stopped answering: {error}", remedy))
    finally:
        client.close()
    return ServerLook(facts, ok(check, f"{shown} answers in {facts.answer_ms:.1f} ms"))


def _remedy(error: DistributedComfyError, setting: str) -> str:
    if isinstance(error, RedisUnreachable):
        return f"start it, open its port to this host, or correct {setting}"
    if isinstance(error, RedisRefused):
        return f"correct user and password in {setting}"
    return "upgrade it" if isinstance(error, RedisTooOld) else f"correct {setting}"


def check_servers(state: ServerLook, blob: ServerLook, settings: Settings, *, embedded: bool) -> list[Finding]:
    """Judge both.

    Args:
        state, blob: from `look_at_servers`.
        settings: a version that the owner accepts.
        embedded: this project started them, so nobody else can reach them.
    """
    findings = [state.reached, *_version_and_clock("state Redis", state.facts, settings, embedded)]
    if state.facts:
        findings += check_state_settings(state.facts)
    findings.append(blob.reached)
    if blob.facts and not _is_one(state.facts, blob.facts):
        findings += _version_and_clock("blob Redis", blob.facts, settings, embedded)
    if blob.facts:
        findings += check_blob_settings(blob.facts, state.facts)
    return findings


def _version_and_clock(what: str, facts: ServerFacts | None, settings: Settings, embedded: bool) -> Sequence[Finding]:
    if facts is None:
        return ()
    package = read_package(facts.programs) or (installed_package(facts) if facts.loopback else None)
    version = check_version(f"{what}: version", facts, package, accepted=settings.redis_accept, private=embedded)
    return (version, check_clock(f"{what}: clock", facts))


def _is_one(state: ServerFacts | None, blob: ServerFacts) -> bool:
    return state is not None and state.run_id == blob.run_id
