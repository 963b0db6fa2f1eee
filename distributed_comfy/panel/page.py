"""The page's own files, for everybody: they hold no secret, and nothing outside their folder is ever given."""
from __future__ import annotations

from mimetypes import guess_type
from pathlib import Path

from aiohttp import web

from distributed_comfy.panel.contract import PREFIX

UI_PATH = f"{PREFIX}/ui/"
WEB_FOLDER = Path(__file__).parent / "web"
_INDEX = "index.html"
_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; style-src 'self' 'unsafe-inline'; object-src 'none'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
}
_SCRIPT = "text/javascript"
"""What Windows' registry may say of .js makes browsers refuse modules."""


def page_routes(folder: Path = WEB_FOLDER) -> list[web.RouteDef]:
    """What to add to an application."""

    async def give(request: web.Request) -> web.StreamResponse:
        path = page_file(folder, request.match_info.get("name", "") or _INDEX)
        if path is None:
            raise web.HTTPNotFound(text="there is no such file of the panel")
        kind = _SCRIPT if path.suffix == ".js" else guess_type(path.name)[0] or "application/octet-stream"
        return web.FileResponse(path, headers={**_HEADERS, "Content-Type": kind})

    async def lead(_request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(UI_PATH)

    return [web.get(UI_PATH, give), web.get(UI_PATH + "{name:.+}", give), web.get(UI_PATH.rstrip("/"), lead)]


def page_file(folder: Path, name: str) -> Path | None:
    """One of the page's files; None where it is none of them."""
    if "\\" in name or "\0" in name or ":" in name or any(part in ("", ".", "..") for part in name.split("/")):
        return None
    path = folder / name
    found = path.is_file() and path.resolve().is_relative_to(folder.resolve())
    return path if found else None
