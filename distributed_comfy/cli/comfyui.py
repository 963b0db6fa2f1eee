"""``distributed-comfy comfyui``: the node pack in a ComfyUI."""
from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from distributed_comfy import __version__
from distributed_comfy.cli.commands import json_option
from distributed_comfy.cli.logs import set_up_logging
from distributed_comfy.cli.output import Output
from distributed_comfy.comfyui.installing import (
    Place,
    door_state,
    find_place,
    install_door,
    nearby_folder,
    other_packs,
    remove_door,
    repositories,
)
from distributed_comfy.comfyui.interpreter import Importable, ask, comfyui_python, package_source
from distributed_comfy.engine.locate import find_comfyui
from distributed_comfy.errors import ComfyUINotFound
from distributed_comfy.panel.token import HEADER, read_token, token_path
from distributed_comfy.settings import Settings, read_settings

_DONE = {
    "installed": "installed in {door}; start ComfyUI (again)",
    "updated": "updated in {door}; start ComfyUI again",
    "unchanged": "is installed already, in {door}",
    "removed": "removed from {door}; start ComfyUI again",
    "absent": "is not installed in {custom_nodes}",
}
_folder = click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
_python = click.option(
    "--python", metavar="PROGRAM", default="", help="Interpreter of that ComfyUI [DC_COMFYUI_PYTHON, else its own, else this one]."
)


@click.group()
def comfyui() -> None:
    """Make a ComfyUI the master: press Run there, and all workers work.

    DIR is ComfyUI's folder, its base directory or its custom_nodes folder; without it COMFYUI_PATH, else the ComfyUI of this
    interpreter, else that of the current directory, else ~/comfy/ComfyUI.
    """


def _command(function: Callable[..., Any]) -> Any:
    for decorate in (click.pass_obj, json_option, _folder):
        function = decorate(function)
    return function


@comfyui.command(short_help="Write the small door into custom_nodes.")
@_python
@_command
def install(output: Output, /, folder: Path | None, python: str) -> None:
    """Write the small door into custom_nodes, which loads this package; nothing else is changed there.

    The package itself must be importable by ComfyUI's interpreter; where it is not, the command that installs it is shown.
    """
    settings, place = _place(output, folder)
    found = ask(comfyui_python(settings, place, python), place.tree or place.custom_nodes)
    found.require()
    change = install_door(place, package_source())
    _show(output, place, change)
    output.say(f"{found.python} can load it; where another one runs that ComfyUI, name it with --python")
    _warn(output, place)


@comfyui.command(short_help="Remove the door again.")
@_command
def uninstall(output: Output, /, folder: Path | None) -> None:
    """Remove the door from custom_nodes; options, workers.json and the package stay."""
    _, place = _place(output, folder)
    _show(output, place, remove_door(place))


@comfyui.command(short_help="Say whether the pack is installed and can be loaded.")
@_python
@_command
def status(output: Output, /, folder: Path | None, python: str) -> int:
    """Say whether the pack is installed and can be loaded; status 1 where it is not."""
    settings, place = _place(output, folder)
    found = ask(comfyui_python(settings, place, python), place.tree or place.custom_nodes)
    state, clones = door_state(place, package_source()), repositories(place)
    installed = state in ("current", "outdated") or bool(clones)
    output.result(
        {
            "custom_nodes": str(place.custom_nodes), "door": state, "repositories": list(map(str, clones)),
            "other_packs": list(map(str, other_packs(place))), "installed": installed, "loadable": not found.reason,
            "python": found.python, "version": found.version, "package": found.path, "reason": found.reason,
        }
    )  # fmt: skip
    _say(output, place, state, clones)
    _say_importable(output, found)
    _warn(output, place)
    return 0 if installed and not found.reason else 1


@comfyui.command(short_help="Print the token of the pack's routes.")
@json_option
@click.pass_obj
def token(output: Output, /) -> None:
    """Print the token that the pack's routes ask for: scripts send it as X-Distributed-Comfy-Token, a browser on another host asks for it.

    Whoever has it can start programs as this user. It lies beside workers.json; remove that file and start ComfyUI again for a new one.
    """
    settings = read_settings()
    set_up_logging(settings, output, audience="person")
    path = token_path(settings)
    text = read_token(path)
    output.result({"token": text, "header": HEADER, "file": str(path)})
    output.say(text)


def _place(output: Output, folder: Path | None) -> tuple[Settings, Place]:
    settings = read_settings()
    set_up_logging(settings, output, audience="person")
    tree = find_comfyui(settings)
    if folder is None and settings.comfyui_path is None:
        folder = settings.comfyui_base_directory or nearby_folder()
    if folder is not None:
        return settings, find_place(folder, tree)
    if tree is None:
        raise ComfyUINotFound(folder=f"{Path.cwd()}, round {sys.prefix} or in ~/comfy/ComfyUI, and COMFYUI_PATH is not set")
    return settings, find_place(settings.comfyui_base_directory or tree, tree)


def _show(output: Output, place: Place, change: str) -> None:
    output.result({"change": change, "door": str(place.door)})
    output.say(f"the node pack {_DONE[change].format(door=place.door, custom_nodes=place.custom_nodes)}")


def _say(output: Output, place: Place, state: str, clones: list[Path]) -> None:
    words = {"absent": "no door", "current": "the door", "outdated": "a door of another version (install writes it anew)"}
    if state in words:
        output.say(f"custom_nodes: {words[state]} in {place.custom_nodes}")
    elif state == "foreign":
        output.say(f"custom_nodes: {place.door} is there and not ours")
    for clone in clones:
        output.say(f"custom_nodes: the repository in {clone}")


def _say_importable(output: Output, found: Importable) -> None:
    if found.reason:
        output.say(f"interpreter: {found.python} {found.reason}; run: {found.remedy}")
    else:
        output.say(f"interpreter: {found.python} has distributed-comfy {__version__} in {Path(found.path).parent}")


def _warn(output: Output, place: Place) -> None:
    clones = repositories(place)
    if clones and door_state(place, package_source()) in ("current", "outdated"):
        output.warn(f"the repository lies in {clones[0]} too; ComfyUI loads one of the two, so one is enough")
    for other in other_packs(place):
        output.warn(f"{other} has the same node classes; ComfyUI uses those of the pack that it loads first, so disable one of the two")
