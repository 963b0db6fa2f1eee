"""How a ComfyUI tree is started inside this process: where it is, its arguments, and the commit it is at."""
from __future__ import annotations

import re
from pathlib import Path

from distributed_comfy.engine.flags import PARTNER_NODES
from distributed_comfy.engine.folders import WorkFolders
from distributed_comfy.engine.options import EngineOptions
from distributed_comfy.errors import EngineStartFailed


def tree_arguments(options: EngineOptions) -> list[str]:
    """The command line that ComfyUI sees, without its first word; the user's own arguments come last and win.

    Flags that the tree does not know are left out, since ComfyUI exits on unknown ones.

    Raises:
        EngineStartFailed: no ComfyUI in the folder.
    """
    root = tree_root(options)
    known = root.joinpath("comfy", "cli_args.py").read_text(encoding="utf-8")
    wanted = [*_folder_arguments(options), *_headless_arguments(options, known)]
    user = [argument for argument in options.comfyui_args if argument != PARTNER_NODES]
    return [word for words in wanted if f'"{words[0]}"' in known for word in words] + user


def _folder_arguments(options: EngineOptions) -> list[list[str]]:
    folders = WorkFolders(options.folder)
    arguments = [
        ["--output-directory", str(folders.output)],
        ["--input-directory", str(folders.input)],
        ["--temp-directory", str(folders.temp.parent)],  # ComfyUI appends "temp"
        # Without it PromptServer insists on the frontend package, or asks GitHub for one.
        ["--front-end-root", str(web_folder(options))],
        ["--database-url", f"sqlite:///{(folders.root / 'comfyui.db').as_posix()}"],
    ]
    if options.comfyui_base_directory is not None:
        arguments.append(["--base-directory", str(options.comfyui_base_directory)])
    return arguments


def _headless_arguments(options: EngineOptions, known: str) -> list[list[str]]:
    arguments = [["--disable-auto-launch"], ["--disable-assets"], ["--disable-assets-autoscan"]]
    if PARTNER_NODES not in options.comfyui_args:
        arguments.append(["--disable-partner-nodes" if '"--disable-partner-nodes"' in known else "--disable-api-nodes"])
    if options.device == "cpu":
        arguments.append(["--cpu"])
    return arguments


def web_folder(options: EngineOptions) -> Path:
    """An empty folder in the place of ComfyUI's web interface."""
    return options.folder / "web"


def tree_root(options: EngineOptions) -> Path:
    """ComfyUI's folder.

    Raises:
        EngineStartFailed: not set, or no ComfyUI in it.
    """
    root = options.comfyui_path
    if root is None or not (root / "main.py").is_file() or not (root / "comfy" / "cli_args.py").is_file():
        raise EngineStartFailed(reason=f"no ComfyUI in {root}; set COMFYUI_PATH or --comfyui to the folder that holds its main.py")
    return root.resolve()


def tree_commit(root: Path) -> str:
    """First 10 digits of the commit that is checked out, read without git; empty where there is none."""
    git = root / ".git"
    head = _first_line(git / "HEAD")
    if not head.startswith("ref: "):
        return head[:10]
    ref = head.removeprefix("ref: ")
    packed = git / "packed-refs"
    found = re.search(rf"^([0-9a-f]{{40}}) {re.escape(ref)}$", packed.read_text(), re.MULTILINE) if packed.is_file() else None
    return (_first_line(git / ref) or (found[1] if found else ""))[:10]


def _first_line(path: Path) -> str:
    return path.read_text().split("\n", 1)[0].strip() if path.is_file() else ""
