"""What comes with a request: a JSON object of bounded length, texts and numbers in it, numbers of the query."""
from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

LONGEST_BODY_BYTES = 2**20


class BadRequest(Exception):
    """What was sent makes no sense; says why.

    Args:
        reason: for people.
        fields: of the body, what is wrong with each.
    """

    def __init__(self, reason: str, fields: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.fields = dict(fields or {})


async def body_of(request: web.Request, limit_bytes: int = LONGEST_BODY_BYTES) -> dict[str, Any]:
    """The JSON object in a request; an empty body counts as an empty one.

    Raises:
        BadRequest: it is none, or too long.
    """
    content = await _read(request, limit_bytes)
    try:
        found = json.loads(content.decode(request.charset or "utf-8")) if content else {}
    except (ValueError, LookupError, RecursionError) as error:  # not JSON, in no known encoding, or too deep
        raise BadRequest("the body is no JSON") from error
    if not isinstance(found, dict):
        raise BadRequest("the body must be a JSON object")
    return found


async def _read(request: web.Request, limit_bytes: int) -> bytes:
    """The body; no more of it is taken than may be, whatever length it claims to have, or none."""
    if (request.content_length or 0) > limit_bytes:
        raise BadRequest(f"the body has more than {limit_bytes} bytes")
    if request.content.at_eof():  # there is none, or somebody before us has read it
        return await request.read()
    content = bytearray()
    async for part in request.content.iter_any():
        content += part
        if len(content) > limit_bytes:
            raise BadRequest(f"the body has more than {limit_bytes} bytes")
    return bytes(content)


def text_of(body: dict[str, Any], name: str) -> str:
    """A text in a body; empty where it is absent or null.

    Raises:
        BadRequest: it is something else.
    """
    value = body.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRequest(f"{name} must be text")
    return value


def number_of(request: web.Request, name: str, otherwise: int) -> int:
    """A whole number of the query.

    Raises:
        BadRequest: it is none.
    """
    try:
        return int(request.query.get(name, otherwise))
    except ValueError as error:
        raise BadRequest(f"{name} must be a whole number") from error
