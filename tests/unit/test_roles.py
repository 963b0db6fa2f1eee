"""The table of rights: nothing is left out of it, and what it gives is what it says."""
from __future__ import annotations

import fnmatch
import re

import pytest
from kombu.transport.redis import Channel

from distributed_comfy.access.roles import BROKER_KEYS, CHANNELS, ROLES, STATE_KEYS, Place, Role, UserScope, acl_rules
from distributed_comfy.state.keys import Keys
from distributed_comfy.state.scripts import SCRIPTS, SHARED, script_source

SCOPE = UserScope("dc:", "pc2")
PLACES: tuple[Place, ...] = ("state", "blobs", "both")


def plain_rules(role: Role, place: Place = "state") -> list[str]:
    """Those of the user's own part, without selectors."""
    return [rule for rule in acl_rules(role, place, SCOPE) if not rule.startswith("(")]


def may(role: Role, access: str, key: str, place: Place = "state") -> bool:
    """Whether the user's own part gives this access to a key."""
    kinds = {"~": "rw", "%R~": "r", "%W~": "w", "%RW~": "rw"}
    given = (re.match(r"(~|%\w+~)(.*)", rule) for rule in plain_rules(role, place))
    return any(match and access in kinds[match[1]] and fnmatch.fnmatchcase(key, match[2].replace("[^", "[!")) for match in given)


def test_every_key_and_channel_of_the_table_has_a_decision() -> None:
    missing = set(Keys.templates()) - set(STATE_KEYS)
    assert not missing, f"{sorted(missing)}: say in access/roles.py (STATE_KEYS) who may touch these"
    assert set(STATE_KEYS) == set(Keys.templates()), "a key that is gone has no place in access/roles.py"
    assert set(STATE_KEYS) > CHANNELS


def test_every_key_of_celerys_broker_has_a_decision() -> None:
    names = [name for name in vars(Channel) if re.fullmatch(r"keyprefix_\w+|unacked\w*_key", name) and name != "keyprefix_fanout"]
    assert len(names) >= 6
    for name in names:
        key = str(getattr(Channel, name)).replace("%s", "{}")
        assert key in BROKER_KEYS, f"kombu's {name} ({key}): say in access/roles.py (BROKER_KEYS) who may touch it"


def test_the_commands_of_all_scripts_are_among_a_workers() -> None:
    text = "\n".join(script_source(name, "dc:") for name in (*SCRIPTS, *SHARED))
    used = {name.lower() for name in re.findall(r"(?:call|pcall)\('([A-Z]+)'", text)}
    assert "hget" in used and used <= {rule[1:] for rule in acl_rules("worker", "state", SCOPE)}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("place", PLACES)
def test_no_role_has_all_keys_or_channels_or_an_admins_commands(role: Role, place: Place) -> None:
    rules = acl_rules(role, place, SCOPE)
    assert rules[:4] == ["resetkeys", "resetchannels", "clearselectors", "-@all"]
    keys = [key for rule in rules for key in re.findall(r"(?:~|&)(\S+)", rule)]
    assert all(key.startswith("dc:") and key not in ("dc:*", "dc:job:*", "dc:worker:*", "dc:celery:*") for key in keys)
    assert "+@admin" not in rules and "+@dangerous" not in rules and ("+@all" in rules) == (role == "master")
    assert not any(rule.startswith(("+acl", "+config", "+client|kill", "+keys", "+scan", "+flush")) for rule in rules)


def test_a_workers_lease_and_queue_are_its_own() -> None:
    job = "dc:job:0123456789ab"
    for own, other in (
        ("dc:worker:pc2-cuda0:lease", "dc:worker:pc3-cuda0:lease"),
        ("dc:worker:pc2-a:starting", "dc:worker:pc22-a:starting"),
    ):
        assert may("worker", "w", own) and may("worker", "r", own)
        assert may("worker", "r", other) and not may("worker", "w", other)
    assert may("worker", "r", "dc:celery:gpu.pc2-cuda0") and may("worker", "r", "dc:celery:gpu.pc2-cuda0\x06\x163")
    assert may("worker", "w", "dc:celery:gpu.pc3-cuda0") and not may("worker", "r", "dc:celery:gpu.pc3-cuda0")
    assert may("worker", "w", f"{job}:result") and not may("worker", "w", f"{job}:prompts") and not may("worker", "w", f"{job}:spec")


def test_nobody_but_the_owner_of_the_server_touches_invitations_and_no_worker_a_hosts_orders() -> None:
    for role in ROLES:
        assert not may(role, "r", "dc:invites") and not may(role, "w", "dc:invites")
    assert may("worker", "w", "dc:joined:pc2") and not may("worker", "r", "dc:joined:pc3")
    assert (
        not may("worker", "w", "dc:celery:host.pc3")
        and may("worker", "r", "dc:celery:host.pc2")
        and may("master", "w", "dc:celery:host.pc3")
    )


def test_nobody_writes_or_reads_what_consumers_would_put_back_for_each_other() -> None:
    for role in ROLES:
        assert not any(may(role, access, f"dc:celery:unacked{part}") for access in "rw" for part in ("", "_index", "_mutex"))


def test_a_hosts_seal_and_record_are_for_masters_and_itself() -> None:
    assert may("worker", "w", "dc:seal:pc2") and not may("worker", "r", "dc:seal:pc2")
    assert not may("worker", "w", "dc:seal:pc3") and not may("worker", "r", "dc:seal:pc3")
    assert may("master", "r", "dc:seal:pc3") and not may("monitor", "r", "dc:seal:pc3")
    assert may("worker", "r", "dc:host:pc2") and not may("worker", "r", "dc:host:pc3")
    assert not may("worker", "r", "dc:host:pc3:answer:x") and not may("worker", "r", "dc:host:pc22")


def test_a_database_of_another_number_is_nobodys_but_a_masters() -> None:
    for role in ROLES:
        selects = [rule for rule in acl_rules(role, "state", UserScope("dc:", database=3)) if rule.startswith("+select")]
        assert selects == ([] if role == "master" else ["+select|3"])
    assert "+select|5" in acl_rules("worker", "blobs", UserScope("dc:", "pc2", 3, (5,)))


def test_a_monitor_changes_nothing_of_the_table() -> None:
    changed = [name for name, rights in STATE_KEYS.items() if "w" in rights.monitor]
    assert changed == []
    assert may("monitor", "r", "dc:job:0123456789ab") and not may("monitor", "w", "dc:job:0123456789ab")


def test_a_worker_reads_input_files_and_writes_only_blobs_of_jobs() -> None:
    job = "dc:blob:0123456789ab"
    assert may("worker", "w", f"{job}:0:claim:value0:0", "blobs") and may("worker", "r", f"{job}/input/0:0", "blobs")
    assert not may("worker", "w", f"{job}/input/0:0", "blobs") and not may("worker", "w", "dc:blob:other:0", "blobs")
