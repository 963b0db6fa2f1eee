"""Carries bytes between a WebSocket and a stream, both ways at once, until one of them ends; each end of the relay does this.

Nothing is read before what was read last has been taken, so a slow reader slows its writer down and memory stays small.
"""
from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import ClientWebSocketResponse, WSMsgType, web

from distributed_comfy.relay.requests import NotARequest
from distributed_comfy.relay.wire import MESSAGE_BYTES, PING_INTERVAL_S, SILENCE_S, CloseCode, reason_text

if TYPE_CHECKING:  # generic since aiohttp 3.14, and only for type checkers
    ClientSocket = ClientWebSocketResponse[bool]
else:
    ClientSocket = ClientWebSocketResponse
Socket = ClientSocket | web.WebSocketResponse
BytesLike = bytes | memoryview
Filter = Callable[[bytes], Sequence[BytesLike]]
"""Gives what of some bytes goes on; may raise `NotARequest`."""


@dataclass
class Traffic:
    """Bytes that went on."""

    into_stream: int = 0
    into_socket: int = 0


@dataclass(frozen=True)
class Ending:
    """Why a connection is over."""

    code: int
    reason: str


@dataclass(frozen=True)
class Stream:
    """The side that speaks Redis' protocol."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    name: str
    """For reasons: ``Redis``."""
    end_code: CloseCode = CloseCode.DONE
    """What it means to the other end of the socket that this side has ended."""

    def close(self) -> None:
        """End it at once; what could not be written is lost."""
        self.writer.transport.abort()


def unfiltered(data: bytes) -> Sequence[BytesLike]:
    """A `Filter` that lets everything pass."""
    return (data,)


async def carry(
    socket: Socket, stream: Stream, *, into_stream: Filter = unfiltered, into_socket: Filter = unfiltered, traffic: Traffic | None = None
) -> Ending:
    """Carry until one side ends; closes both.

    Args:
        socket: opened with ``autoping=False``.
        stream: the other side.
        into_stream: applied to each message of the socket.
        into_socket: applied to what the stream gives.
        traffic: counted into.
    Returns:
        What was, or would have been, told to the other end of the socket.
    """
    counted = traffic or Traffic()
    ways = [
        asyncio.create_task(_socket_to_stream(socket, stream, into_stream, counted)),
        asyncio.create_task(_stream_to_socket(socket, stream, into_socket, counted)),
        asyncio.create_task(_keep_alive(socket)),
    ]
    ending = Ending(CloseCode.RELAY_ENDS, "the relay ends")
    try:
        done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        ending = next(task.result() for task in ways if task in done)
    except NotARequest as error:
        ending = Ending(CloseCode.NOT_REDIS, str(error))
    finally:
        for task in ways:
            task.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        stream.close()
        await _close(socket, ending)
    return ending


async def _socket_to_stream(socket: Socket, stream: Stream, passes: Filter, traffic: Traffic) -> Ending:
    while True:
        try:
            message = await socket.receive(timeout=SILENCE_S)
        except (TimeoutError, asyncio.TimeoutError):
            return Ending(CloseCode.SILENT, f"nothing was heard for {SILENCE_S:.0f} s")
        if message.type is WSMsgType.BINARY:
            pieces = passes(message.data)
            if not pieces:
                continue
            traffic.into_stream += sum(map(len, pieces))
            try:
                stream.writer.writelines(pieces)
                await stream.writer.drain()
            except OSError as error:
                return Ending(stream.end_code, f"{stream.name}: {error}")
        elif message.type is WSMsgType.PING:
            await socket.pong(message.data)
        elif message.type is WSMsgType.TEXT:
            raise NotARequest("text came where bytes should")
        elif message.type is not WSMsgType.PONG:
            return _closed(socket, message.extra)


async def _stream_to_socket(socket: Socket, stream: Stream, passes: Filter, traffic: Traffic) -> Ending:
    while True:
        try:
            data = await stream.reader.read(MESSAGE_BYTES)
        except OSError as error:
            return Ending(stream.end_code, f"{stream.name}: {error}")
        if not data:
            return Ending(stream.end_code, f"{stream.name} has closed the connection")
        pieces = passes(data)
        if not pieces:
            continue
        traffic.into_socket += sum(map(len, pieces))
        try:
            await socket.send_bytes(b"".join(pieces))
        except (ConnectionError, RuntimeError):  # it closes; whoever receives says why
            return await _closing(socket)


async def _keep_alive(socket: Socket) -> Ending:
    while True:
        await asyncio.sleep(PING_INTERVAL_S)
        try:
            await socket.ping()
        except (ConnectionError, RuntimeError):
            return await _closing(socket)


async def _closing(socket: Socket) -> Ending:
    """What `_socket_to_stream` finds out in the same moment, if it does."""
    await asyncio.sleep(0.1)
    return _closed(socket, None)


def _closed(socket: Socket, reason: object) -> Ending:
    code = socket.close_code or CloseCode.REDIS_GONE
    return Ending(code, str(reason or "") or ("the connection broke" if code == 1006 else "the other end has closed it"))


async def _close(socket: Socket, ending: Ending) -> None:
    code = ending.code if ending.code in tuple(CloseCode) else CloseCode.DONE
    try:
        await asyncio.wait_for(socket.close(code=code, message=reason_text(ending.reason)), 2.0)
    except (ConnectionError, RuntimeError, TimeoutError, asyncio.TimeoutError):
        pass
