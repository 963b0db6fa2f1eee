"""What a worker sends, without the requests that may not pass; each of those is answered in its place, and the connection lives on.

Replies come in the order of requests, so an answer of our own must wait for its turn.  Redis keeps the turn: in place of a refused request
it gets one that no server knows, named after a token of this connection.  It answers that with an error, in order, inside a pipeline, a
transaction (which it thereby aborts, as it should) or a subscription; and `Replies` puts our words in the place of that error.
"""
from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator

from distributed_comfy.relay.requests import Argument, ArgumentEnd, Begin, Event, NotARequest, Piece, RequestParser, make_request
from distributed_comfy.relay.rules import LARGEST_LOOK_BYTES, Judge, shown

BytesLike = bytes | memoryview

_LONGEST_NAME_BYTES = 64
_LONGEST_LINE_BYTES = 2**16
_LOOK_BYTES = 2**10
_COUNTED = re.compile(rb"[$=!](\d{1,12})")
"""Replies whose bytes follow their line: bulk strings, verbatim strings, bulk errors."""


class Refusals:
    """Requests that were refused and whose turn to be answered has not come."""

    def __init__(self, on_refused: Callable[[str, str], None], place: str = "relay") -> None:
        """
        Args:
            on_refused: told the command's name and the reason.
            place: where it is refused, for the answers.
        """
        self._place = place
        self.token = b"relay:" + secrets.token_hex(16).encode()
        self.count = 0
        self._reasons: list[str] = []
        self._on_refused = on_refused

    def add(self, name: bytes, reason: str) -> bytes:
        """The request that takes the place of the refused one."""
        self.count += 1
        self._reasons.append(reason)
        self._on_refused(shown(name.upper()), reason)
        return make_request(self.token)

    def answer(self) -> bytes:
        """The reply whose turn it is."""
        return f"-NOPERM {self._place}: {self._reasons.pop(0)}\r\n".encode()


class Gate:
    """Judges a stream of requests, in any pieces; holds no more of one than the judge must look at.

    Args:
        judge: of this connection.
        refusals: shared with the `Replies` of this connection.
    """

    def __init__(self, judge: Judge, refusals: Refusals) -> None:
        self._judge = judge
        self._refusals = refusals
        self._parser = RequestParser()
        self._request: _Request | None = None

    def pass_on(self, data: BytesLike) -> list[BytesLike]:
        """What of these bytes goes to Redis, in order; no request goes in part before it has been judged.

        Raises:
            NotARequest: see `RequestParser.feed`.
        """
        return [piece for event in self._parser.feed(data) for piece in self._hear(event)]

    def _hear(self, event: Event) -> Iterator[BytesLike]:
        if isinstance(event, Begin):
            self._request = _Request(event.arguments, self._judge, self._refusals)
            return
        assert self._request is not None
        if isinstance(event, Argument):
            yield from self._request.begin_argument(event.size_bytes)
        elif isinstance(event, Piece):
            yield from self._request.add(event.content)
        elif isinstance(event, ArgumentEnd):
            yield from self._request.end_argument()


class _Request:
    """One request on its way through the gate."""

    def __init__(self, count: int, judge: Judge, refusals: Refusals) -> None:
        self._count = count
        self._judge = judge
        self._refusals = refusals
        self._look = 1
        self._seen: list[bytes] = []
        self._current = bytearray()
        self._room = _LONGEST_NAME_BYTES
        self._verdict: bool | None = None
        """None until it has been judged."""

    def begin_argument(self, size_bytes: int) -> Iterator[BytesLike]:
        if self._verdict is None:
            self._room -= size_bytes
            if self._room < 0:
                yield self._refuse(f"{shown(self._name.upper()) or 'a command'} has more to look at than passes")
        elif self._verdict:
            yield b"$%d\r\n" % size_bytes

    def add(self, content: memoryview) -> Iterator[BytesLike]:
        if self._verdict is None:
            self._current += content
        elif self._verdict:
            yield content

    def end_argument(self) -> Iterator[BytesLike]:
        if self._verdict is None:
            self._seen.append(bytes(self._current))
            self._current.clear()
            yield from self._decide()
        elif self._verdict:
            yield b"\r\n"

    @property
    def _name(self) -> bytes:
        return self._seen[0] if self._seen else b""

    def _decide(self) -> Iterator[BytesLike]:
        if len(self._seen) == 1:
            look = self._judge.look(self._name.upper())
            if look is None:
                yield self._refuse(f"{shown(self._name.upper())} does not pass")
                return
            self._look = min(look or self._count, self._count)
            self._room = LARGEST_LOOK_BYTES
        if len(self._seen) < self._look:
            return
        if reason := self._judge.refusal(self._seen):
            yield self._refuse(reason)
            return
        self._verdict = True
        yield b"*%d\r\n" % self._count + b"".join(b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in self._seen)

    def _refuse(self, reason: str) -> bytes:
        self._verdict = False
        return self._refusals.add(self._name or b"(too long)", reason)


class Replies:
    """What Redis answers, with our words where it answers a refused request.

    Only the lines between values are read: a value cannot be mistaken for an answer, whatever it holds.
    """

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals
        self._line = bytearray()
        self._bytes_left = 0

    def pass_on(self, data: BytesLike) -> list[BytesLike]:
        """What goes to the worker.

        Raises:
            NotARequest: Redis sends what is no reply.
        """
        passed: list[BytesLike] = []
        view = memoryview(data)
        while view:
            if self._bytes_left:
                piece = view[: self._bytes_left]
                self._bytes_left -= len(piece)
                passed.append(piece)
            else:
                piece = self._line_part(view)
                self._line += piece
                if self._line.endswith(b"\n"):
                    passed.append(self._end_line())
                elif len(self._line) > _LONGEST_LINE_BYTES:
                    raise NotARequest("Redis sends a line without end")
            view = view[len(piece) :]
        return passed

    @staticmethod
    def _line_part(view: memoryview) -> memoryview:
        near = bytes(view[:_LOOK_BYTES])
        return view[: near.find(b"\n") + 1 or len(near)]

    def _end_line(self) -> bytes:
        line = bytes(self._line)
        self._line.clear()
        if line.startswith(b"-") and self._refusals.token in line:
            return self._refusals.answer()
        if counted := _COUNTED.fullmatch(line, 0, len(line) - 2):
            self._bytes_left = int(counted[1]) + 2
        return line
