"""A node pack whose one route lists all routes of its ComfyUI; it is copied into custom_nodes, nothing here imports it."""
from __future__ import annotations

from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}


@PromptServer.instance.routes.get("/probe/routes")
async def listed(request):
    """Method, path and the module of the handler."""
    return web.json_response([
        [route.method, route.resource.canonical, getattr(route.handler, "__module__", "")] for route in request.app.router.routes()
    ])
