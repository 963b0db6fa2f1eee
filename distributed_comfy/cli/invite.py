"""``distributed-comfy invite``."""
from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from distributed_comfy.access.invites import Invite
from distributed_comfy.access.token import JoinToken
from distributed_comfy.cli.cluster import ago
from distributed_comfy.cli.commands import interruptibly, json_option
from distributed_comfy.cli.logs import set_up_logging
from distributed_comfy.cli.output import Output
from distributed_comfy.errors import SettingInvalid
from distributed_comfy.orchestrator.inviting import InviteOptions, invites_of
from distributed_comfy.orchestrator.inviting import invite as invite_host
from distributed_comfy.orchestrator.inviting import revoke as revoke_host
from distributed_comfy.serve.application import ServeOptions
from distributed_comfy.serve.server import Serving, serve_relay
from distributed_comfy.settings import Settings, read_settings

_UNITS_S = {"m": 60, "h": 3600, "d": 86_400}


@click.group(invoke_without_command=True, short_help="Let one more host work for this cluster.")
@click.option("--name", metavar="HOST", default="", help="Name of the host; its workers are called HOST-something [host1, host2, ...].")
@click.option("--lan", is_flag=True, help="Open the embedded Redis at this host's address on its network; the default without --url.")
@click.option("--bind", metavar="ADDRESS", default="", help="The same, at another address of this host.")
@click.option("--port", type=click.IntRange(0, 65_534), help="Of the door, and the next one; 0: free ones [47380].")
@click.option("--url", default="", help="rediss:// or wss:// URL by which the other host reaches a Redis or relay of your own.")
@click.option("--tunnel", is_flag=True, help="Serve it by a public address of cloudflared, for as long as this command runs.")
@click.option("--blob-url", default="", help="The same for the blob server, where it is another one.")
@click.option("--ca", "ca_file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="That signed its certificate.")
@click.option("--check/--no-check", default=True, help="Try --url from here first; not where only the other host reaches it [--check].")
@click.option("--expires", default="24h", show_default=True, metavar="TIME", help="The host must have joined by then: 30m, 24h, 7d.")
@json_option
@click.pass_context
def invite(context: click.Context, /, lan: bool, tunnel: bool, expires: str, **place: Any) -> None:
    """Let one more host work for this cluster, and print the one command to run there.

    The host gets a user of its own on both servers, with the rights of a worker and no more (SECURITY.md). It listens on no port. Where no
    Redis is configured, the embedded one gets a door: TLS with a certificate of your own authority, which the token brings.

    --tunnel is for a host that reaches this one by no address: it runs `serve --tunnel` (docs/relay.md) until Ctrl-C, and the token leads
    there. The address is a new one each time; for a lasting one run `serve` behind a proxy or a named tunnel, and invite with --url.

    The token is a password. Once the host has joined it is let in until `invite revoke`.

    \b
    Examples:
      distributed-comfy invite --name pc2                          a second PC in this network
      distributed-comfy invite --name pod1 --tunnel                a pod somewhere, by cloudflared
      distributed-comfy invite --name pod1 --url rediss://redis.example.org:6380/0
      distributed-comfy invite list
      distributed-comfy invite revoke pc2
    """
    if context.invoked_subcommand:
        return
    output: Output = context.obj
    options = InviteOptions(expires_s=_seconds(expires), **place)
    if options.url and (lan or options.bind or options.port is not None):
        raise SettingInvalid(name="--url", reason="another server's URL needs neither --lan, --bind nor --port")
    if tunnel and (options.url or lan or options.bind or options.port is not None):
        raise SettingInvalid(name="--tunnel", reason="its address needs neither --url, --lan, --bind nor --port")
    settings = _settings(output)
    if tunnel:
        _by_tunnel(output, settings, options, expires)
    else:
        _show(output, invite_host(settings, options), expires)


@invite.command("list")
@json_option
@click.pass_obj
def list_invites(output: Output, /) -> None:
    """Invited hosts: who has joined, who is connected now."""
    with invites_of(_settings(output)) as (invites, _):
        found, now_ms = invites.all(), invites.now_ms()
    output.result([_as_json(each) for each in found])
    if not found:
        output.say("no host was invited; `distributed-comfy invite` lets one in")
        return
    output.table(("HOST", "STATE", "CONNECTIONS", "LAST JOINED", "URL"), [_row(each, now_ms) for each in found])


@invite.command()
@click.argument("name")
@json_option
@click.pass_obj
def revoke(output: Output, /, name: str) -> None:
    """Shut an invited host out: its connections end now, and its items run elsewhere within a few seconds."""
    revoke_host(_settings(output), name)
    output.result({"host": name, "revoked": True})
    output.say(f"host {name} is shut out; its token is of no use any more")


def _by_tunnel(output: Output, settings: Settings, options: InviteOptions, expires: str) -> None:
    """Invite through a tunnel, and keep it open until somebody ends it."""

    def ready(serving: Serving) -> None:  # the server answers when this has ended, so the way cannot be tried here
        _show(output, invite_host(settings, replace(options, url=serving.join_url, check=False)), expires)
        output.remark("the tunnel is open for as long as this command runs; Ctrl-C shuts it")

    interruptibly(output, lambda stop: serve_relay(settings, ServeOptions(port=0, tunnel=True, only_tunnel=True), ready, stop))


def _settings(output: Output) -> Settings:
    settings = read_settings()
    set_up_logging(settings, output, audience="person")
    return settings


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", text)
    if match is None or not float(match[1]):
        raise SettingInvalid(name="--expires", reason=f"must be like 30m, 24h or 7d (it is {text!r})")
    return float(match[1]) * _UNITS_S[match[2]]


def _show(output: Output, token: JoinToken, expires: str) -> None:
    command = f"distributed-comfy up --join {token.text}"
    shown = {"host": token.host, "url": token.url, "user": token.user, "expires_ms": token.expires_ms, "fingerprint": token.fingerprint}
    output.result({**shown, "token": token.text, "command": command})
    output.remark(f"host {token.host} may join within {expires} by {token.url}; run this there, and show it to nobody else:")
    output.say(command)
    if token.fingerprint:
        output.remark(f"authority of the certificate (SHA-256): {token.fingerprint}")
    output.remark(f"`distributed-comfy invite revoke {token.host}` shuts it out again")


def _row(invite: Invite, now_ms: int) -> tuple[str, ...]:
    seen = f"{ago(now_ms, invite.seen_ms)} ago" if invite.seen_ms else "never"
    left_min = max(0, invite.expires_ms - now_ms) // 60_000
    state = ("connected" if invite.connections else "joined") if invite.joined_ms else f"open for {left_min} min"
    return (invite.name, state, str(invite.connections), seen, invite.url)


def _as_json(invite: Invite) -> dict[str, object]:
    names = ("name", "user", "url", "created_ms", "expires_ms", "joined_ms", "seen_ms", "connections")
    return {name: getattr(invite, name) for name in names}
