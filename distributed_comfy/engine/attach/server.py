"""A running ComfyUI by its HTTP surface: requests from any thread, all over one session in a thread of its own."""
from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import aiohttp

from distributed_comfy.engine.catalogue import NO_MODELS
from distributed_comfy.errors import ComfyUIUnreachable, FrameTooLarge
from distributed_comfy.settings import redact_url
from distributed_comfy.transport.frames import BytesLike

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 60.0
"""Longest silence of a request: a ComfyUI that loads a model may answer late."""

HEARTBEAT_S = 30.0
"""A web socket whose other side does not answer a ping within half of it is closed."""

_PIECE_BYTES = 2**20
_GOOD = 200
_UNKNOWN_USER = (401, 403)
TOO_LARGE = 413
"""Field ``status`` of `ComfyUIUnreachable` where a file is over ComfyUI's ``--max-upload-size``."""
NOT_FOUND = 404
BAD_GATEWAY = 502
"""From here on it is a proxy that answers, for a ComfyUI that does not."""

REFUSED, SILENT = "refused", "silent"
"""How the connection is lost (field ``lost`` of `ComfyUIUnreachable`): nobody listens, or anything else; empty where it stands, but what
was asked for is refused."""

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    body: Any
    """Parsed JSON; text where it is none."""


class _LeadsElsewhere(aiohttp.ClientError):
    """An answer sends the request to another origin, which must not learn what this one is given."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.target = target


class ComfyServer:
    """One ComfyUI; `close` ends the thread.

    Every method that talks to it raises `ComfyUIUnreachable` where it does not answer, or refuses.
    """

    def __init__(self, url: str, headers: tuple[tuple[str, str], ...], client_id: str) -> None:
        """Args:
        url: without a slash at its end; may hold user and password.
        headers: of every request.
        client_id: by which ComfyUI knows whom to tell about a prompt.
        """
        self.shown = redact_url(url)
        """The address without its password, for messages."""
        self.client_id = client_id
        self._url = url
        self._headers = headers
        self._loop = asyncio.new_event_loop()
        self._session: aiohttp.ClientSession | None = None
        threading.Thread(target=self._loop.run_forever, name="comfyui-http", daemon=True).start()

    def close(self) -> None:
        """End all connections."""
        if self._session is not None:
            self._wait(self._session.close())
        self._loop.call_soon_threadsafe(self._loop.stop)

    # -- questions ------------------------------------------------------------------------------------------------------
    def ask(self, path: str, **query: str) -> Any:
        """The JSON of a GET.

        Raises:
            ComfyUIUnreachable: no answer, or one that is not JSON with status 200.
        """
        answer = self._talk("GET", path, params=query)
        if answer.status != _GOOD or isinstance(answer.body, str):
            raise self._refused(path, answer.status)
        return answer.body

    def model_files(self) -> dict[str, list[str]]:
        """Model folder -> names of its files; empty where this version of ComfyUI does not tell, or a proxy does not let us ask."""
        folders = self._ask_for_names("/models")
        return {name: self._ask_for_names(f"/models/{quote(name, safe='')}") for name in folders if name not in NO_MODELS}

    def _ask_for_names(self, path: str) -> list[str]:
        try:
            names = self.ask(path)
        except ComfyUIUnreachable as error:
            if error.lost:
                raise
            return []
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def order(self, path: str, body: Mapping[str, Any]) -> Answer:
        """POST some JSON; a refusal is an answer like any other, but for one that a proxy gives."""
        answer = self._talk("POST", path, json=body)
        if answer.status in _UNKNOWN_USER or answer.status >= BAD_GATEWAY:
            raise self._refused(path, answer.status)
        return answer

    def exchange(self, method: str, path: str, **options: Any) -> Answer:
        """Any request; the answer as it is, unless a proxy gives it for a ComfyUI that does not.

        Args:
            options: as those of aiohttp's requests: headers, params, json.
        """
        answer = self._talk(method, path, **options)
        if answer.status >= BAD_GATEWAY:
            raise self._refused(path, answer.status)
        return answer

    def put(self, path: str, content: BytesLike, **options: Any) -> Answer:
        """PUT bytes, piece by piece."""

        async def pieces() -> AsyncIterator[memoryview]:
            view = memoryview(content).cast("B")
            for start in range(0, len(view), _PIECE_BYTES):
                yield view[start : start + _PIECE_BYTES]

        return self.exchange("PUT", path, data=pieces(), **options)

    def fetch(self, path: str, limit_bytes: int, **options: Any) -> bytearray | None:
        """The bytes that a GET gives; None where there is nothing (any more).

        Raises:
            FrameTooLarge: there are more of them.
        """

        async def fetch(session: aiohttp.ClientSession) -> tuple[int, bytearray]:
            async with session.get(self._url + path, timeout=_patient(), **options) as response:
                content = bytearray()
                if response.status == _GOOD:
                    async for piece in response.content.iter_chunked(_PIECE_BYTES):
                        content += piece
                        if len(content) > limit_bytes:
                            raise FrameTooLarge(size_bytes=len(content), limit_bytes=limit_bytes)
                return response.status, content

        status, content = self._run(fetch, path)
        if status >= BAD_GATEWAY:
            raise self._refused(path, status)
        return content if status == _GOOD else None

    def upload(self, content: Path, name: str, subfolder: str) -> str:
        """Put a file into ComfyUI's input folder, over one of the same name; its name as loaders take it.

        Args:
            content: the file; an empty one empties what is there.
        """

        async def send(session: aiohttp.ClientSession) -> Answer:
            form = aiohttp.FormData({"subfolder": subfolder, "type": "input", "overwrite": "true"})
            with content.open("rb") as file:
                form.add_field("image", file, filename=name)
                async with session.post(self._url + "/upload/image", data=form, timeout=_patient()) as response:
                    return await _read(response)

        answer = self._run(send, "/upload/image")
        if answer.status != _GOOD or not isinstance(answer.body, dict):
            raise self._refused("/upload/image", answer.status)
        stored = answer.body
        return f"{stored['subfolder']}/{stored['name']}".replace("\\", "/").lstrip("/")

    def download(self, entry: Mapping[str, Any], target: Path) -> bool:
        """Fetch a file that a node named in its ui result; False where it is not there any more.

        Args:
            entry: ``{"filename", "subfolder", "type"}``.
        """
        query = {name: str(entry.get(name) or "") for name in ("filename", "subfolder", "type")}

        async def fetch(session: aiohttp.ClientSession) -> int:
            async with session.get(self._url + "/view", params=query, timeout=_patient()) as response:
                if response.status == _GOOD:
                    with target.open("wb") as file:
                        async for piece in response.content.iter_chunked(_PIECE_BYTES):
                            file.write(piece)
                return response.status

        status = self._run(fetch, "/view")
        if status == 404:
            return False
        if status != _GOOD:
            raise self._refused("/view", status)
        return True

    # -- events ---------------------------------------------------------------------------------------------------------
    def listen(self, hear: Callable[[Any], None], connected: Callable[[], None]) -> None:
        """Take ComfyUI's messages for this client until the connection ends.

        Args:
            hear: takes each message, text or bytes, in the session's thread.
            connected: called once the connection stands.
        Raises:
            ComfyUIUnreachable: it cannot be made.
        """

        async def take(session: aiohttp.ClientSession) -> None:
            query = {"clientId": self.client_id}
            # Previews may be larger than aiohttp's limit of 4 MiB for a message.
            async with session.ws_connect(self._url + "/ws", params=query, heartbeat=HEARTBEAT_S, max_msg_size=2**26) as socket:
                await socket.send_str(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
                connected()
                async for message in socket:
                    if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                        hear(message.data)

        self._run(take, "/ws")

    # -- the session ----------------------------------------------------------------------------------------------------
    def _talk(self, method: str, path: str, **options: Any) -> Answer:
        async def talk(session: aiohttp.ClientSession) -> Answer:
            async with session.request(method, self._url + path, timeout=_patient(), **options) as response:
                return await _read(response)

        return self._run(talk, path)

    def _run(self, talk: Callable[[aiohttp.ClientSession], Awaitable[T]], path: str) -> T:
        async def with_session() -> T:
            if self._session is None:
                # A proxy may close idle connections at any time; aiohttp then makes a new one by itself for what can be repeated.
                self._session = aiohttp.ClientSession(headers=self._headers, trace_configs=[_stays_with_its_origin()])
            return await talk(self._session)

        try:
            return self._wait(with_session())
        except asyncio.TimeoutError as error:
            raise ComfyUIUnreachable(url=self.shown, reason=f"no answer to {path} in time", lost=SILENT) from error
        except _LeadsElsewhere as error:
            reason = f"it sends {path} on to {error.target}, another address, which is given neither key nor headers of this worker"
            raise ComfyUIUnreachable(url=self.shown, reason=reason, lost="") from error
        except (aiohttp.ClientError, OSError) as error:
            refused = isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ConnectionRefusedError)
            raise ComfyUIUnreachable(url=self.shown, reason=_words(error), lost=REFUSED if refused else SILENT) from error

    def _wait(self, talk: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(talk, self._loop).result()

    def _refused(self, path: str, status: int) -> ComfyUIUnreachable:
        remedy = ", so DC_COMFYUI_HEADERS must say who asks" if status in _UNKNOWN_USER else ""
        lost = SILENT if status >= BAD_GATEWAY else ""
        who = "what listens there is no ComfyUI: " if (path, status) == ("/system_stats", NOT_FOUND) else ""
        return ComfyUIUnreachable(url=self.shown, reason=f"{who}{path} gives status {status}{remedy}", lost=lost, status=status)


def _stays_with_its_origin() -> aiohttp.TraceConfig:
    """Follows no redirect to another origin: aiohttp would take headers along, such as the key of ComfyUI's node pack."""

    async def look(_session: aiohttp.ClientSession, _context: object, found: aiohttp.TraceRequestRedirectParams) -> None:
        here, location = str(found.url), found.response.headers.get("Location", "")
        try:
            target = urlsplit(urljoin(here, location))
            same = target[:2] == urlsplit(here)[:2]
        except ValueError:
            raise _LeadsElsewhere("what is no address") from None
        if not same:
            raise _LeadsElsewhere(redact_url(target._replace(query="", fragment="").geturl()))

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(look)
    return trace


def _patient() -> aiohttp.ClientTimeout:
    """No limit on the whole, for files may be large; only on silence."""
    return aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=ANSWER_TIMEOUT_S)


async def _read(response: aiohttp.ClientResponse) -> Answer:
    text = await response.text()
    try:
        return Answer(response.status, json.loads(text))
    except ValueError:
        return Answer(response.status, text)


def _words(error: Exception) -> str:
    """An error without the address that it holds, which may have a password."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"{type(error.os_error).__name__}: {error.os_error.strerror or error.os_error}"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not trusted ({error.certificate_error})"
    if isinstance(error, aiohttp.WSServerHandshakeError):
        return f"the web socket gives status {error.status}"
    return type(error).__name__
