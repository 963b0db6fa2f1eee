"""Messages between a consumer and its engine process: msgpack maps with a length in front, over a pair of pipes.

A message is a dict with a string under ``type``.  The length is 4 bytes, big endian, and is checked before anything is allocated.
"""
from __future__ import annotations

import struct
import threading
from typing import Any, Protocol

import msgpack

from distributed_comfy.errors import PipeMalformed, PipeMessageTooLarge, PipeTruncated

PIPE_LIMIT_BYTES = 64 * 2**20
"""Longest message: prompts and previews are far below, tensors never travel here."""

_LENGTH = struct.Struct(">I")


class ByteSource(Protocol):
    """A blocking binary stream to read from."""

    def read(self, size: int, /) -> bytes | None:
        """At most ``size`` bytes; none at the end."""


class ByteTarget(Protocol):
    """A blocking binary stream to write to."""

    def write(self, data: bytes, /) -> int | None:
        """Take some of ``data`` and tell how many bytes."""

    def flush(self) -> None:
        """Pass on what is buffered."""


def pack_message(message: dict[str, Any], *, limit_bytes: int = PIPE_LIMIT_BYTES) -> bytes:
    """A message as it goes over the pipe, length included.

    Raises:
        PipeMessageTooLarge: over the limit.
    """
    payload: bytes = msgpack.packb(message)
    if len(payload) > limit_bytes:
        raise PipeMessageTooLarge(size_bytes=len(payload), limit_bytes=limit_bytes)
    return _LENGTH.pack(len(payload)) + payload


class MessageWriter:
    """Writes messages from any number of threads, each one whole."""

    def __init__(self, stream: ByteTarget, *, limit_bytes: int = PIPE_LIMIT_BYTES) -> None:
        self._stream = stream
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()

    def write(self, message: dict[str, Any]) -> None:
        """Send one message.

        Args:
            message: ``type`` and any msgpack values.
        Raises:
            PipeMessageTooLarge: over the limit; nothing was written.
            OSError: the other side is gone.
        """
        self.write_packed(pack_message(message, limit_bytes=self._limit_bytes))

    def write_packed(self, packed: bytes) -> None:
        """Send one message that `pack_message` packed."""
        with self._lock:
            view = memoryview(packed)
            while view:  # an unbuffered pipe may take only a part
                view = view[self._stream.write(bytes(view)) or 0 :]
            self._stream.flush()


class MessageReader:
    """Reads messages, one thread only."""

    def __init__(self, stream: ByteSource, *, limit_bytes: int = PIPE_LIMIT_BYTES) -> None:
        self._stream = stream
        self._limit_bytes = limit_bytes

    def read(self) -> dict[str, Any] | None:
        """The next message; None when the pipe was closed between two messages.

        Raises:
            PipeTruncated: closed inside a message.
            PipeMessageTooLarge: the announced length is over the limit.
            PipeMalformed: not msgpack, or not a map with a string under ``type``.
        """
        head = self._take(_LENGTH.size)
        if not head:
            return None
        if len(head) < _LENGTH.size:
            raise PipeTruncated(have_bytes=len(head), need_bytes=_LENGTH.size)
        (size,) = _LENGTH.unpack(head)
        if size > self._limit_bytes:
            raise PipeMessageTooLarge(size_bytes=size, limit_bytes=self._limit_bytes)
        payload = self._take(size)
        if len(payload) < size:
            raise PipeTruncated(have_bytes=len(payload), need_bytes=size)
        return _decode(payload)

    def _take(self, size: int) -> bytes:
        """Exactly ``size`` bytes, or what came before the end."""
        parts = bytearray()
        while len(parts) < size:
            part = self._stream.read(size - len(parts))
            if not part:
                break
            parts += part
        return bytes(parts)


def _decode(payload: bytes) -> dict[str, Any]:
    try:
        message = msgpack.unpackb(payload)
    except (msgpack.exceptions.UnpackException, ValueError, RecursionError) as error:
        raise PipeMalformed(reason=f"{type(error).__name__}: {error}") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise PipeMalformed(reason=f"a {type(message).__name__} without a type")
    return message
