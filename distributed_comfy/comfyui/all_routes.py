"""Puts every route of the pack, and the scripts of ComfyUI's page, into ComfyUI's server."""
from __future__ import annotations

from pathlib import Path

from distributed_comfy.comfyui.compat import add_compatible_routes
from distributed_comfy.comfyui.pack import Pack
from distributed_comfy.comfyui.panel_host import add_panel
from distributed_comfy.comfyui.relay_port import add_relay
from distributed_comfy.comfyui.routes import Routes, add_pack_routes
from distributed_comfy.comfyui.visit_routes import add_visit_routes

WEB_FOLDER = Path(__file__).parent / "web"


def install_routes(pack: Pack) -> None:
    """Add all of them."""
    routes = Routes(pack)
    add_pack_routes(routes)
    add_compatible_routes(routes)
    add_relay(pack)
    add_visit_routes(routes)
    add_panel(pack, routes.callers)
    pack.web_directory = str(WEB_FOLDER)
