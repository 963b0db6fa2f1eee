"""What came by another door than ComfyUI's own is posted to that one, so that everything looks at it that looks at others."""
from __future__ import annotations

from typing import Any

import aiohttp
from aiohttp import web

from distributed_comfy.comfyui.host import ComfyHost

_PASSED_ON = ("Cookie", "Authorization", "Comfy-User")
"""What packs that ask for a login look at."""
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
_TIMEOUT = aiohttp.ClientTimeout(total=120.0, connect=5.0)


async def post_prompt(host: ComfyHost, posted: dict[str, Any], request: web.Request) -> tuple[int, Any]:
    """Let ComfyUI validate and queue a prompt.

    Args:
        host: which is listening.
        posted: the body of a ``POST /prompt``.
        request: the one that brought it.
    Returns:
        Status and JSON of ComfyUI's answer.
    Raises:
        aiohttp.ClientError: this ComfyUI does not reach its own port.
    """
    return await post_own(host, "/prompt", posted, request)


async def post_own(host: ComfyHost, path: str, posted: Any, request: web.Request) -> tuple[int, Any]:
    """Let ComfyUI answer what came with a request; arguments and answer as of `post_prompt`."""
    headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
    async with (
        aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=False) as session,
        session.post(own_url(host) + path, json=posted, headers=headers, ssl=_to_itself(host)) as answer,
    ):
        return answer.status, await answer.json(content_type=None)


def own_url(host: ComfyHost) -> str:
    """The address at which this ComfyUI reaches itself."""
    address = str(host.server.address)
    address = _ANY_ADDRESS.get(address, address)
    shown = f"[{address}]" if ":" in address else address
    return f"{'https' if getattr(host.args, 'tls_keyfile', None) else 'http'}://{shown}:{host.server.port}"


def _to_itself(host: ComfyHost) -> bool:
    """Whether the certificate is looked at: it names the host as others know it, and this connection never leaves the host."""
    return not getattr(host.args, "tls_keyfile", None)
