"""``distributed-comfy redis``: for whoever runs a Redis of their own."""
from __future__ import annotations

import secrets

import click

from distributed_comfy.access.roles import ROLES, Place, Role, UserScope, acl_rules
from distributed_comfy.access.users import ServerUsers, hashed, names_overlap
from distributed_comfy.cli.commands import json_option
from distributed_comfy.cli.logs import set_up_logging
from distributed_comfy.cli.output import Output
from distributed_comfy.errors import SettingInvalid
from distributed_comfy.orchestrator.inviting import users_of
from distributed_comfy.settings import Settings, read_settings, slug
from distributed_comfy.state.connection import HOST_USER

_WORKER_USER = "dc-worker-"
"""First part of the user that `redis acl` makes for a host's workers, where it is given no other name."""


@click.group()
def redis() -> None:
    """Rights of users on a Redis of your own."""


@redis.command(short_help="Print (or set) the rights of a worker's, master's or monitor's user.")
@click.option("--role", type=click.Choice(ROLES), default="worker", show_default=True)
@click.option("--user", metavar="NAME", default="", help="[dc-ROLE, or dc-ROLE-HOST]")
@click.option("--host", default="", help="Of a worker's user: only for workers called HOST-something; without it for workers of any host.")
@click.option("--apply", is_flag=True, help="Make the user on the configured servers, and print its password.")
@json_option
@click.pass_obj
def acl(output: Output, /, role: Role, user: str, host: str, apply: bool) -> None:
    """Print what a user of a role may do, as lines for the server's aclfile, one for each server; or make the user.

    Redis 7 or later, or Valkey: earlier ones cannot tell reading from writing. Put a password in place of PASSWORD.

    \b
    Roles: worker (takes items), master (submits, collects, steers), monitor (metrics and Flower).
    """
    settings = read_settings()
    set_up_logging(settings, output, audience="person")
    if host != slug(host) or (host and role != "worker"):
        raise SettingInvalid(name="--host", reason=f"is for workers, and has only a-z, 0-9, - and _ (it is {host!r})")
    name = user or "-".join(part for part in ("dc", role, host) if part)
    if apply:
        _apply(output, settings, name, role, host)
    else:
        _print(output, settings, name, role, host)


def _print(output: Output, settings: Settings, name: str, role: Role, host: str) -> None:
    places: dict[Place, str] = {"state": "the state server", "blobs": "the blob server", "both": "one server that is both"}
    scope = UserScope(settings.key_prefix, host)
    lines = {place: f"user {name} on >PASSWORD {' '.join(acl_rules(role, place, scope))}" for place in places}
    output.result({"user": name, **lines})
    for place, what in places.items():
        output.remark(f"# {what}")
        output.say(lines[place])


def _apply(output: Output, settings: Settings, name: str, role: Role, host: str) -> None:
    secret = secrets.token_urlsafe(32)
    with users_of(settings) as (servers, database):
        if host:
            _check_host(servers, name, host)
        for server in servers:
            _put(server, name, hashed(secret), role, UserScope(settings.key_prefix, host, database))
        kept = [server.save() for server in servers]
    output.result({"user": name, "password": secret, "kept": all(kept)})
    output.remark(f"user {name} may do what a {role} does; its password is shown this once:")
    output.say(secret)
    if not all(kept):
        output.warn("a server has no aclfile: it forgets the user when it restarts")


def _check_host(servers: list[ServerUsers], name: str, host: str) -> None:
    """
    Raises:
        SettingInvalid: a user of another host has names that could not be told from this one's.
    """
    users = {user for server in servers for user in server.names()} - {name}
    for user in sorted(users):
        other = next((user.removeprefix(begin) for begin in (HOST_USER, _WORKER_USER) if user.startswith(begin)), "")
        if other and names_overlap(host, other):
            raise SettingInvalid(name="--host", reason=f"names of its workers could not be told from those of user {user!r}")


def _put(server: ServerUsers, name: str, secret_hash: str, role: Role, scope: UserScope) -> None:
    server.check()
    server.put(name, secret_hash, role, scope)
