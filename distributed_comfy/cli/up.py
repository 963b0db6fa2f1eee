"""``distributed-comfy up``."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from distributed_comfy.access.join import (
    WrittenConfiguration,
    forget_token,
    keep_token,
    note_configuration,
    open_join,
    stored_token,
    written_configuration,
)
from distributed_comfy.access.token import JoinToken, read_token
from distributed_comfy.agent.agent import Agent
from distributed_comfy.agent.up import UpOptions, agent_runs, run_agent, take_back
from distributed_comfy.cli.commands import interruptibly, naming_options
from distributed_comfy.cli.join_option import token_text
from distributed_comfy.cli.logs import set_up_logging
from distributed_comfy.cli.output import Output
from distributed_comfy.cli.worker import comfyui_option
from distributed_comfy.errors import SettingInvalid, TokenUnreadable
from distributed_comfy.settings import Settings, changed, read_settings


@click.command()
@click.option("--engine", type=click.Choice(["comfyui", "builtin"]), help="For workers that name none [DC_ENGINE, else comfyui if found].")
@comfyui_option
@click.option("--join", metavar="TOKEN", default="", help="Work for the cluster that invited this host; @FILE and - keep it secret.")
@click.option("--leave", is_flag=True, help="Forget the cluster that this host has joined; nothing is started.")
@click.option(
    "--remote-configuration/--no-remote-configuration", default=None,
    help="Write down whether other hosts may add, edit and remove workers here; see docs/agent.md.",
)  # fmt: skip
@click.pass_obj
def up(output: Output, /, join: str, leave: bool, remote_configuration: bool | None, **options: Any) -> int:
    """Run this host's workers: one on each GPU, started again when they end.

    The first start writes them to workers.json beside the user's settings (DC_WORKERS_FILE), one for each GPU, else one for the CPU. From
    then on that file says which workers run, and `distributed-comfy workers add, edit, remove, enable, disable, start, stop, restart`
    change it from any host. Ctrl-C or SIGTERM lets running items finish for up to DC_DRAIN_TIMEOUT_S (60 s) and ends all workers; a second
    one gives the items back at once.

    A host that was invited (`distributed-comfy invite`) joins once with --join; from then on `up` alone does, and other commands here ask
    that cluster, unless DC_REDIS_URL is set. --leave ends that. Where the cluster shuts this host out, `up` ends with status 4.

    With --join the cluster may also add and edit workers here; --no-remote-configuration keeps that to this host.
    """
    given = {"engine": ("--engine", options["engine"]), "comfyui_path": ("--comfyui", options["comfyui"])}
    with naming_options(**given):
        settings = read_settings(**{field: value for field, (_, value) in given.items()})
        set_up_logging(settings, output, audience="supervisor")
        if leave:
            return _leave(output, settings, join)
        agents: list[Agent] = []

        def at_once() -> None:
            for agent in agents:
                agent.end_at_once()

        # Whoever follows an invitation lets that cluster use this host: what it may run here it may also set up here.
        remote = True if join and remote_configuration is None else remote_configuration
        text = token_text(join) or ("" if settings.redis_url else stored_token(settings))
        token = read_token(text) if text else None
        how = _options(settings, token, remote, joining=bool(join))
        with _joined(settings, token) as mine:
            return interruptibly(output, lambda stop: run_agent(mine, how, stop, agents.append), at_once)


def _options(settings: Settings, token: JoinToken | None, remote: bool | None, *, joining: bool) -> UpOptions:
    """What the agent is told; what it writes into the workers' file because this host joins is noted, so that leaving takes it back."""

    def keep() -> None:
        if token is not None:
            keep_token(token, settings)

    def note(path: Path, before: bool | None) -> None:
        if not joining or remote is None:
            note_configuration(settings, None)
        elif remote != before:
            note_configuration(settings, WrittenConfiguration(str(path), remote, before))

    return UpOptions(remote, joined=token.url if token else "", on_place=keep, on_written=note)


def _leave(output: Output, settings: Settings, join: str) -> int:
    if join:
        raise SettingInvalid(name="--leave", reason="cannot be used with --join, which leaves the cluster of before by itself")
    wrote, runs = written_configuration(settings), _agent_runs(settings)
    left = forget_token(settings, agent_runs=runs)
    output.say(f"this host has left {left}" if left else "this host has joined no cluster")
    if not left:
        return 0
    if wrote is not None and take_back(Path(wrote.file), wrote.written, wrote.before):
        output.remark(f"remote_configuration in {wrote.file} is as it was before")
    if runs:
        output.remark("the `up` that still runs here works on for that cluster until it ends")
    output.remark("the invitation itself ends with `distributed-comfy invite revoke` on the host that gave it")
    return 0


def _agent_runs(settings: Settings) -> bool:
    """Whether an agent works for the joined cluster."""
    try:
        return agent_runs(changed(settings, host=read_token(stored_token(settings)).host))
    except TokenUnreadable:
        return False


@contextmanager
def _joined(settings: Settings, token: JoinToken | None) -> Iterator[Settings]:
    """The settings as they are in the cluster of the token; without one as they are."""
    if token is None:
        yield settings
        return
    with open_join(token.text, settings, keep=False) as joined:
        yield joined.settings
