"""Redis' protocol as a client speaks it, taken apart as the bytes come; an argument is never held here, whatever its length.

A request is ``*<arguments>`` and for each argument ``$<bytes>``, the bytes and an end of line (the protocol's specification, "Sending
commands to a Redis server"); RESP 2 and 3 differ in replies only.  The other form, a line of words for people at a telnet, is refused: its
quoting rules would have to be those of the server to the letter.
"""
from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MOST_ARGUMENTS = 2**20
LARGEST_ARGUMENT_BYTES = 65 * 2**20
"""A little above the largest DC_CHUNK_BYTES.  A server makes room for an argument as soon as its length is announced."""
_LONGEST_HEADER_BYTES = 16
_HEADER = re.compile(rb"[*$](?:0|[1-9]\d{0,9})")


class NotARequest(Exception):
    """The bytes are no request; nothing that follows can be understood."""


class Begin(NamedTuple):
    """A request begins."""

    arguments: int
    """At least 1; the first is the name of the command."""


class Argument(NamedTuple):
    """An argument begins."""

    size_bytes: int


class Piece(NamedTuple):
    """Some bytes of an argument; a view of what was fed."""

    content: memoryview


class ArgumentEnd(NamedTuple):
    """All of an argument has come."""


class End(NamedTuple):
    """All of a request has come."""

    rest: memoryview
    """What was fed and comes after it."""


Event = Begin | Argument | Piece | ArgumentEnd | End


class RequestParser:
    """Takes a stream of requests apart; needs a few bytes of memory, however long they are."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._arguments_left = 0
        self._bytes_left = 0
        self._line_end = b""

    def feed(self, data: bytes | memoryview) -> Iterator[Event]:
        """The events that these bytes complete, in order; all of them must be taken before the next call.

        Raises:
            NotARequest: with what was found; the parser is of no use after it.
        """
        view = memoryview(data)
        while view:
            if self._bytes_left:
                piece = view[: self._bytes_left]
                self._bytes_left -= len(piece)
                view = view[len(piece) :]
                yield Piece(piece)
            elif self._line_end:
                view = self._end_of_line(view)
                if not self._line_end:
                    yield ArgumentEnd()
                    self._arguments_left -= 1
                    if not self._arguments_left:
                        yield End(view)
            else:
                view = self._read_header(view)
                if self._header.endswith(b"\n"):
                    yield self._event()

    def _read_header(self, view: memoryview) -> memoryview:
        near = bytes(view[:_LONGEST_HEADER_BYTES])
        taken = near.find(b"\n") + 1 or len(near)
        self._header += near[:taken]
        if len(self._header) > _LONGEST_HEADER_BYTES:
            raise NotARequest(f"{bytes(self._header[:_LONGEST_HEADER_BYTES])!r}... is no header")
        return view[taken:]

    def _event(self) -> Begin | Argument:
        header, wanted = bytes(self._header), b"$" if self._arguments_left else b"*"
        self._header.clear()
        if not header.endswith(b"\r\n") or not header.startswith(wanted) or not _HEADER.fullmatch(header[:-2]):
            raise NotARequest(f"{header!r} stands where {wanted.decode()}<number> should")
        number = int(header[1:-2])
        if wanted == b"*":
            if not 1 <= number <= MOST_ARGUMENTS:
                raise NotARequest(f"a request of {number} arguments")
            self._arguments_left = number
            return Begin(number)
        if number > LARGEST_ARGUMENT_BYTES:
            raise NotARequest(f"an argument of {number} bytes")
        self._bytes_left, self._line_end = number, b"\r\n"
        return Argument(number)

    def _end_of_line(self, view: memoryview) -> memoryview:
        found = bytes(view[: len(self._line_end)])
        if not self._line_end.startswith(found):
            raise NotARequest("an argument is longer than it says")
        self._line_end = self._line_end[len(found) :]
        return view[len(found) :]


class FirstRequest:
    """Collects the first request of a stream, which must be short, and keeps what comes after it as it is.

    Args:
        limit_bytes: of all its arguments.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._parser = RequestParser()
        self._room = limit_bytes
        self._argument = bytearray()
        self.arguments: list[bytes] = []
        self.rest = b""

    def feed(self, data: bytes) -> bool:
        """True as soon as it is complete.

        Raises:
            NotARequest: it is none, or too long.
        """
        for event in self._parser.feed(data):
            if isinstance(event, (Begin, Argument)):
                self._room -= event.arguments if isinstance(event, Begin) else event.size_bytes
                if self._room < 0:
                    raise NotARequest("the first request is too long")
            elif isinstance(event, Piece):
                self._argument += event.content
            elif isinstance(event, ArgumentEnd):
                self.arguments.append(bytes(self._argument))
                self._argument.clear()
            else:
                self.rest = bytes(event.rest)
                return True
        return False


def make_request(*arguments: bytes) -> bytes:
    """A request as bytes."""
    return b"*%d\r\n" % len(arguments) + b"".join(b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments)
