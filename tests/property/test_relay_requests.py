"""The relay takes requests and replies apart in whatever pieces they come: nothing is lost, doubled or moved."""
from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from distributed_comfy.relay.gate import Gate, Refusals, Replies
from distributed_comfy.relay.requests import FirstRequest, make_request
from distributed_comfy.relay.rules import FormJudge, form, gather
from tests.relay_requests import ARGUMENTS, REQUESTS, cuts, parsed, stream_of

PASSES = re.compile(rb"[^x]*", re.DOTALL)
JUDGE = FormJudge(gather([("GET", form(each=PASSES)), ("SET", form(PASSES, open_end=True)), ("PING", form())]))
NAMES = st.sampled_from([b"GET", b"get", b"SET", b"PING", b"FLUSHALL", b""])
VALUES = st.lists(st.binary(max_size=20) | st.just(b"x"), max_size=4)
COMMANDS = st.lists(st.builds(lambda name, rest: [name, *rest], NAMES, VALUES), max_size=8)


def may_pass(arguments: list[bytes]) -> bool:
    """What JUDGE says, in other words."""
    name, *rest = arguments
    if name.upper() == b"SET":
        return bool(rest) and b"x" not in rest[0]
    if name.upper() == b"GET":
        return not any(b"x" in argument for argument in rest)
    return name.upper() == b"PING" and not rest


@given(st.data(), REQUESTS)
def test_requests_are_the_same_in_any_pieces(data: st.DataObject, requests: list[list[bytes]]) -> None:
    assert parsed(data.draw(cuts(stream_of(requests)))) == requests


@given(st.data(), ARGUMENTS, st.binary(max_size=60))
def test_the_first_request_is_told_from_what_follows(data: st.DataObject, arguments: list[bytes], rest: bytes) -> None:
    first, given_bytes = FirstRequest(10_000), 0
    for piece in data.draw(cuts(make_request(*arguments) + rest)):
        given_bytes += len(piece)
        if first.feed(piece):
            break
    assert first.arguments == arguments
    assert first.rest == (make_request(*arguments) + rest)[:given_bytes][len(make_request(*arguments)) :]


@given(st.data(), COMMANDS)
def test_what_may_pass_goes_on_whole_and_each_other_request_has_one_placeholder(data: st.DataObject, commands: list[list[bytes]]) -> None:
    refusals = Refusals(lambda name, reason: None)
    gate = Gate(JUDGE, refusals)
    passed = b"".join(bytes(part) for piece in data.draw(cuts(stream_of(commands))) for part in gate.pass_on(piece))
    assert parsed([passed]) == [command if may_pass(command) else [refusals.token] for command in commands]
    assert refusals.count == sum(not may_pass(command) for command in commands)


@st.composite
def replies(draw: st.DrawFn, token: bytes) -> list[bytes]:
    """Replies as Redis gives them, some to a placeholder, values that look like such included."""
    value = st.binary(max_size=30) | st.just(b"-ERR unknown command '%b'\r\n" % token)
    bulk = value.map(lambda content: b"$%d\r\n%b\r\n" % (len(content), content))
    verbatim = value.map(lambda content: b"=%d\r\ntxt:%b\r\n" % (len(content) + 4, content))
    simple = st.sampled_from([b"+OK", b":17", b"$-1", b"*-1", b"_", b"#t", b",1.5", b"-ERR other", b"%0"]).map(lambda line: line + b"\r\n")
    one = bulk | verbatim | simple
    many = st.lists(one, max_size=4).map(lambda parts: b"*%d\r\n" % len(parts) + b"".join(parts))
    return draw(st.lists(one | many | st.just(b"PLACEHOLDER"), max_size=10))


@given(st.data())
def test_replies_stay_as_they_are_but_for_those_to_placeholders(data: st.DataObject) -> None:
    refusals = Refusals(lambda name, reason: None)
    drawn = data.draw(replies(refusals.token))
    said, expected = b"", b""
    for number, reply in enumerate(drawn):
        if reply == b"PLACEHOLDER":
            refusals.add(b"X", f"reason {number}")
            said += b"-ERR unknown command '%b', with args beginning with: \r\n" % refusals.token
            expected += b"-NOPERM relay: reason %d\r\n" % number
        else:
            said += reply
            expected += reply
    scanner = Replies(refusals)
    assert b"".join(bytes(part) for piece in data.draw(cuts(said)) for part in scanner.pass_on(piece)) == expected
