"""The example workflows in ComfyUI's template browser, out of the package: both ways of installing offer those of this version.

ComfyUI by itself looks into each folder in custom_nodes.  There the door has no examples, and those of the repository (`examples`) are
prompts, which ComfyUI's page does not open.
"""
from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from distributed_comfy.comfyui.installing import DOOR_NAME, Place, repositories
from distributed_comfy.comfyui.pack import Pack

EXAMPLES_FOLDER = Path(__file__).parent / "example_workflows"
"""Workflows, each with a picture of the same name."""
LISTING = ("/workflow_templates", "/api/workflow_templates")
"""Paths at which ComfyUI tells which pack has which examples."""
SHOWN_AS = DOOR_NAME
"""Name of the pack in the template browser."""

_FILES = f"/api/workflow_templates/{SHOWN_AS}/"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def install_templates(pack: Pack) -> None:
    """Answer for our examples, whatever folder the pack was loaded from."""
    folders = map(Path, pack.host.folder_paths.get_folder_paths("custom_nodes"))
    clones = [path.name for folder in folders for path in repositories(Place(folder, None))]
    pack.host.server.app.middlewares.append(templates(clones))


def example_names() -> list[str]:
    """Of all of them."""
    return sorted(path.stem for path in EXAMPLES_FOLDER.glob("*.json"))


def templates(clones: list[str]) -> Any:
    """The middleware.

    Args:
        clones: folders in custom_nodes in which our repository lies.
    """
    @web.middleware
    async def offer(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            return await handler(request)
        if (file := _file_at(request.path)) is not None:
            return web.FileResponse(file)
        answer = await handler(request)
        if request.path in LISTING and isinstance(answer, web.Response) and answer.status == web.HTTPOk.status_code and answer.text:
            return web.json_response(with_ours(json.loads(answer.text), clones))
        return answer

    return offer


def _file_at(path: str) -> Path | None:
    """The file of ours that a path names, which nothing but its own name can."""
    if not path.startswith(_FILES):
        return None
    return next((file for file in EXAMPLES_FOLDER.iterdir() if _FILES + file.name == path and file.suffix in (".json", ".jpg")), None)


def with_ours(listing: dict[str, Any], clones: list[str]) -> dict[str, Any]:
    """ComfyUI's listing with our examples, and without what it found in our repository."""
    others = {name: examples for name, examples in listing.items() if name not in clones}
    return {**others, SHOWN_AS: example_names()}
