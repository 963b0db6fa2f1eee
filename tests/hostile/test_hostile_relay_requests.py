"""What a client of the relay may send that is no request, or one made to cost memory."""
from __future__ import annotations

import tracemalloc

import pytest

from distributed_comfy.errors import SettingInvalid
from distributed_comfy.relay.gate import Gate, Refusals, Replies
from distributed_comfy.relay.requests import LARGEST_ARGUMENT_BYTES, FirstRequest, NotARequest, RequestParser, make_request
from distributed_comfy.relay.rules import LARGEST_LOOK_BYTES, FormJudge, form, gather
from distributed_comfy.settings import read_settings
from tests.relay_requests import events

JUDGE = FormJudge(gather([("SET", form(b"key", open_end=True)), ("EXISTS", form(each=None, last=None)), ("UNLINK", form(open_end=False))]))
MIB = 2**20


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"PING\r\n", id="inline command"),
        pytest.param(b"\r\n", id="empty line"),
        pytest.param(b"*0\r\n", id="no arguments"),
        pytest.param(b"*-1\r\n", id="negative count"),
        pytest.param(b"*1048577\r\n", id="too many arguments"),
        pytest.param(b"*99999999999999999999\r\n", id="a count beyond 64 bits"),
        pytest.param(b"*+1\r\n$4\r\nPING\r\n", id="plus sign"),
        pytest.param(b"*01\r\n", id="leading zero"),
        pytest.param(b"* 1\r\n", id="blank"),
        pytest.param(b"*1\n$4\nPING\n", id="bare line feeds"),
        pytest.param(b"*1\r\n$-1\r\n", id="null argument"),
        pytest.param(b"*1\r\n$536870913\r\n", id="argument larger than the server takes"),
        pytest.param(b"*1\r\n$9999999999\r\n", id="huge argument"),
        pytest.param(b"*1\r\n*1\r\n$4\r\nPING\r\n", id="nested array"),
        pytest.param(b"*1\r\n:5\r\n", id="number for an argument"),
        pytest.param(b"*1\r\n$4\r\nPINGPING\r\n", id="argument longer than it says"),
        pytest.param(b"*1\r\n$4\r\nPING\n\r", id="wrong end of line"),
        pytest.param(b"*1" + b"0" * 100, id="header without end"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01", id="a TLS handshake"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="an HTTP request"),
        pytest.param("*１\r\n".encode(), id="digits of another script"),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_no_request_is_refused(sent: bytes, at_once: bool) -> None:
    pieces = [sent + b"\r\n" * 20] if at_once else [bytes([byte]) for byte in sent + b"\r\n" * 20]
    with pytest.raises(NotARequest):
        list(events(RequestParser(), pieces))


def test_a_request_cut_short_gives_nothing_to_redis() -> None:
    whole = make_request(b"GET", b"key")
    for length in range(len(whole)):
        gate = Gate(FormJudge(gather([("GET", form(b"key"))])), Refusals(lambda name, reason: None))
        assert gate.pass_on(whole[:length]) == []


def test_a_blob_of_8_GiB_in_pieces_needs_little_memory() -> None:
    refusals = Refusals(lambda name, reason: None)
    gate = Gate(JUDGE, refusals)
    chunk = bytes(MIB)
    message = make_request(b"SET", b"key", chunk, b"EX", b"60")
    quarters = [message[start : start + MIB // 4] for start in range(0, len(message), MIB // 4)]
    passed = 0
    tracemalloc.start()
    try:
        for _ in range(8 * 1024):
            for quarter in quarters:
                passed += sum(map(len, gate.pass_on(quarter)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert passed == 8 * 1024 * len(message)
    assert refusals.count == 0
    assert peak < MIB


def test_a_refused_request_is_swallowed_and_not_held() -> None:
    refusals = Refusals(lambda name, reason: None)
    gate = Gate(JUDGE, refusals)
    tracemalloc.start()
    try:
        passed = b"".join(bytes(part) for part in gate.pass_on(b"*3\r\n$3\r\nSET\r\n$5\r\nother\r\n$%d\r\n" % (64 * MIB)))
        quarter = bytes(MIB // 4)
        for _ in range(4 * 64):
            assert gate.pass_on(quarter) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert gate.pass_on(b"\r\n") == []
    assert passed == make_request(refusals.token)
    assert peak < MIB
    assert b"".join(bytes(part) for part in gate.pass_on(make_request(b"SET", b"key", b"1"))) == make_request(b"SET", b"key", b"1")


def test_arguments_that_must_be_looked_at_are_bounded() -> None:
    refusals = Refusals(lambda name, reason: None)
    gate = Gate(FormJudge(gather([("UNLINK", form())])), refusals)
    held = b"*100\r\n$6\r\nUNLINK\r\n"
    passed = gate.pass_on(held + b"$%d\r\n" % (LARGEST_LOOK_BYTES + 1))
    assert b"".join(map(bytes, passed)) == make_request(refusals.token)
    assert b"more to look at" in refusals.answer()


def test_a_long_name_of_a_command_is_not_collected() -> None:
    refusals = Refusals(lambda name, reason: None)
    gate = Gate(JUDGE, refusals)
    assert b"".join(map(bytes, gate.pass_on(b"*1\r\n$50000000\r\n"))) == make_request(refusals.token)


def test_an_argument_for_which_a_server_would_make_too_much_room_ends_the_connection_before_it_is_announced() -> None:
    gate = Gate(FormJudge(gather([("SET", form(open_end=True))])), Refusals(lambda name, reason: None))
    with pytest.raises(NotARequest, match="an argument of 536870912 bytes"):
        gate.pass_on(b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$536870912\r\n")
    with pytest.raises(SettingInvalid):
        read_settings(chunk_bytes=LARGEST_ARGUMENT_BYTES)


def test_the_first_request_must_be_short() -> None:
    with pytest.raises(NotARequest):
        FirstRequest(1000).feed(b"*3\r\n$4\r\nAUTH\r\n$4\r\nuser\r\n$5000\r\n")
    with pytest.raises(NotARequest):
        FirstRequest(1000).feed(b"*1000000\r\n")


def test_a_reason_cannot_break_out_of_its_line() -> None:
    refusals = Refusals(lambda name, reason: None)
    gate = Gate(JUDGE, refusals)
    gate.pass_on(make_request(b"X\r\n+OK\r\n$0", b"y"))
    assert refusals.answer().count(b"\r\n") == 1


def test_redis_cannot_be_made_to_send_a_line_without_end() -> None:
    replies = Replies(Refusals(lambda name, reason: None))
    with pytest.raises(NotARequest):
        for _ in range(200):
            replies.pass_on(b"+" * 1000)
