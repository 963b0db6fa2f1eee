"""Requests of Redis' protocol for tests of the relay, in any pieces."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

from distributed_comfy.relay.requests import Argument, ArgumentEnd, Begin, End, Piece, RequestParser, make_request

ARGUMENTS = st.lists(st.binary(max_size=40) | st.sampled_from([b"\r\n", b"*1\r\n$4\r\nPING\r\n", b"$-1\r\n"]), min_size=1, max_size=6)
REQUESTS = st.lists(ARGUMENTS, max_size=6)


def stream_of(requests: Sequence[Sequence[bytes]]) -> bytes:
    """All of them, one after the other."""
    return b"".join(make_request(*arguments) for arguments in requests)


@st.composite
def cuts(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    """The stream in pieces, some of them empty."""
    places = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    return [stream[start:end] for start, end in zip([0, *places], [*places, len(stream)], strict=True)]


def parsed(pieces: Sequence[bytes]) -> list[list[bytes]]:
    """The requests in the pieces, put together again; checks what each event says about those that follow."""
    parser, found = RequestParser(), list[list[bytes]]()
    expected = room = 0
    for event in events(parser, pieces):
        if isinstance(event, Begin):
            expected = event.arguments
            found.append([])
        elif isinstance(event, Argument):
            room = event.size_bytes
            found[-1].append(b"")
        elif isinstance(event, Piece):
            found[-1][-1] += bytes(event.content)
        elif isinstance(event, ArgumentEnd):
            assert len(found[-1][-1]) == room
        else:
            assert isinstance(event, End) and len(found[-1]) == expected
    return found


def events(parser: RequestParser, pieces: Sequence[bytes]) -> Iterator[Any]:
    """All events of some pieces."""
    for piece in pieces:
        yield from parser.feed(piece)
