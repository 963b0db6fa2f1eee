"""Bytes out of a fuzzer, for the door and the relay: the same in any pieces, and nothing passes that is not allowed."""
from __future__ import annotations

import re
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from distributed_comfy.relay.gate import Gate, Refusals, Replies
from distributed_comfy.relay.requests import FirstRequest, NotARequest
from distributed_comfy.relay.rules import FormJudge, form, gather
from tests.relay_requests import ARGUMENTS, cuts, parsed, stream_of

PASSES = re.compile(rb"[^x]*", re.DOTALL)
JUDGE = FormJudge(gather([("GET", form(each=PASSES)), ("SET", form(PASSES, open_end=True)), ("PING", form())]))
ALLOWED = {
    b"GET": lambda rest: not any(b"x" in argument for argument in rest),
    b"SET": lambda rest: bool(rest) and b"x" not in rest[0],
    b"PING": lambda rest: not rest,
}
"""What JUDGE says, in other words."""
NAMES = st.sampled_from([b"GET", b"set", b"PING", b"FLUSHALL", b"EVAL", b"", b"*1\r\n$4\r\nPING"])
REQUESTS = st.builds(lambda name, rest: [name, *rest], NAMES, st.just([]) | ARGUMENTS)
MARKS = [b"+OK\r\n", b"$", b"*", b"*2\r\n", b"3\r\n", b"-1", b"-ERR\r\n", b"abc", b"\r\n"]
EDITS = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 3), st.binary(max_size=3) | st.sampled_from(MARKS)), max_size=4)


def damaged(requests: Sequence[Sequence[bytes]], edits: Sequence[tuple[int, int, bytes]]) -> bytes:
    stream = bytearray(stream_of(requests))
    for at, length, content in edits:
        stream[at : at + length] = content
    return bytes(stream)


STREAMS = st.builds(damaged, st.lists(REQUESTS, max_size=4), EDITS) | st.binary(max_size=80)


def understood(pieces: Sequence[bytes]) -> list[list[bytes]] | None:
    try:
        return parsed(pieces)
    except NotARequest:
        return None


def passed(pieces: Sequence[bytes], refusals: Refusals) -> bytes:
    """What goes on to the server before the first bytes that nobody understands."""
    gate, through = Gate(JUDGE, refusals), b""
    try:
        for piece in pieces:
            for part in gate.pass_on(piece):
                through += bytes(part)
    except NotARequest:
        pass
    return through


@given(st.data(), STREAMS)
def test_the_same_bytes_mean_the_same_in_any_pieces(data: st.DataObject, stream: bytes) -> None:
    assert understood(data.draw(cuts(stream))) == understood([stream])


@given(st.data(), STREAMS)
def test_whatever_comes_only_what_is_allowed_goes_on(data: st.DataObject, stream: bytes) -> None:
    refusals = Refusals(lambda name, reason: None)
    through = passed(data.draw(cuts(stream)), refusals)
    for name, *rest in complete(through):
        assert [name, *rest] == [refusals.token] or ALLOWED[name.upper()](rest), (name, rest)


def complete(through: bytes) -> list[list[bytes]]:
    """The requests in it that are whole; the last one may be cut off, but what is there of it must be one."""
    found = parsed([through])
    return found if not found or stream_of(found) == through else found[:-1]


@given(st.data(), STREAMS)
def test_a_first_request_is_one_or_is_refused(data: st.DataObject, stream: bytes) -> None:
    first = FirstRequest(60)
    try:
        over = any(first.feed(piece) for piece in data.draw(cuts(stream)))
    except NotARequest:
        return
    assert not over or sum(map(len, first.arguments)) <= 60


@given(st.data(), st.binary(max_size=80) | st.lists(st.sampled_from(MARKS)).map(b"".join))
def test_replies_without_refusals_stay_as_they_are_whatever_they_are(data: st.DataObject, said: bytes) -> None:
    replies = Replies(Refusals(lambda name, reason: None))
    heard = b""
    try:
        for piece in data.draw(cuts(said)):
            for part in replies.pass_on(piece):
                heard += bytes(part)
    except NotARequest:
        return
    assert said.startswith(heard)
