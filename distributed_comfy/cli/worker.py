"""``distributed-comfy worker``."""
from __future__ import annotations

from pathlib import Path

import click

from distributed_comfy.cli.commands import naming_options
from distributed_comfy.cli.join_option import token_text
from distributed_comfy.cli.joined import say_where
from distributed_comfy.cli.logs import set_up_logging
from distributed_comfy.cli.output import Output
from distributed_comfy.orchestrator.arguments import join_arguments
from distributed_comfy.orchestrator.worker import serve
from distributed_comfy.settings import read_settings

comfyui_option = click.option(
    "--comfyui", type=click.Path(path_type=Path), metavar="DIR", help="ComfyUI's folder [COMFYUI_PATH, else ~/comfy/ComfyUI]."
)


def refuse_words(arguments: tuple[str, ...]) -> None:
    """ComfyUI's arguments begin with an option; a word in its place is a slip (``worker list``), and a worker is not what it asks for.

    Raises:
        click.UsageError: it names the command that may have been meant.
    """
    if arguments and not arguments[0].startswith("-"):
        word = arguments[0]
        raise click.UsageError(f"{word!r} is no option of ComfyUI; did you mean `distributed-comfy workers {word}`?")


@click.command(context_settings={"ignore_unknown_options": False})
@click.option("--device", help="cuda:0, cuda:0,1 (for nodes that use several), xpu:0, mps or cpu [DC_DEVICE, else the first GPU].")
@click.option("--name", help="Name in listings and results [DC_WORKER_NAME, else host, device and a free number].")
@click.option("--engine", type=click.Choice(["comfyui", "builtin", "attach"]), help="[DC_ENGINE, else comfyui where a ComfyUI is found]")
@click.option("--comfyui-url", metavar="URL", help="Of the running ComfyUI that --engine attach drives [DC_COMFYUI_URL, else http://127.0.0.1:8188].")
@click.option("--comfyui-token", metavar="TOKEN", help="Of its node pack; @FILE keeps it secret [DC_COMFYUI_TOKEN, else your own].")
@comfyui_option
@click.option("--join", metavar="TOKEN", help="Serve the cluster that invited this host; @FILE and - (standard input) keep it secret.")
@click.option("--end-with-stdin", is_flag=True, hidden=True, help="End when standard input closes.")
@click.argument("comfyui_arguments", nargs=-1, metavar="[-- COMFYUI ARGUMENTS]")
@click.pass_obj
def worker(output: Output, /, end_with_stdin: bool, comfyui: Path | None, comfyui_arguments: tuple[str, ...], **options: str | None) -> int:
    """Serve one GPU (or the CPU) until it is stopped.

    The worker connects to DC_REDIS_URL (without it to this user's embedded Redis) and listens on no port. Start one for each GPU. Ctrl-C or
    SIGTERM lets the running item finish for up to DC_DRAIN_TIMEOUT_S (60 s); a second one gives it back at once.

    \b
    Examples:
      distributed-comfy worker                                   the first GPU with the ComfyUI that is found
      distributed-comfy worker --device cuda:1 --comfyui /srv/ComfyUI
      distributed-comfy worker --device cuda:0 -- --fp8_e4m3fn-text-enc --cache-lru 20
      distributed-comfy worker --engine builtin --device cpu     no ComfyUI: for trying things out
      distributed-comfy worker --engine attach --comfyui-url http://127.0.0.1:8188     a ComfyUI that runs already

    `python worker_entry.py` does the same with settings alone, for supervisors and containers.
    """
    refuse_words(comfyui_arguments)
    given = {
        "device": ("--device", options["device"]),
        "worker_name": ("--name", options["name"]),
        "engine": ("--engine", options["engine"]),
        "comfyui_url": ("--comfyui-url", options["comfyui_url"]),
        "comfyui_token": ("--comfyui-token", token_text(options["comfyui_token"] or "", "--comfyui-token").strip() or None),
        "comfyui_path": ("--comfyui", comfyui),
        "comfyui_args": ("what follows --", join_arguments(comfyui_arguments) or None),
    }
    with naming_options(**given):
        settings = read_settings(**{field: value for field, (_, value) in given.items()})
        set_up_logging(settings, output, audience="supervisor", child=end_with_stdin)
        if not options["join"]:
            say_where(output, settings)
        return serve(settings, join=token_text(options["join"] or ""), end_with_stdin=end_with_stdin)
