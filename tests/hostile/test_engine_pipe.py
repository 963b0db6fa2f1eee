"""What the engine pipe does with bytes that no honest peer writes."""
from __future__ import annotations

import io
import os
import struct
import threading

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_comfy.engine.pipe import MessageReader, MessageWriter
from distributed_comfy.errors import PipeError, PipeMalformed, PipeMessageTooLarge, PipeTruncated


def _frame(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


def _read(data: bytes, limit_bytes: int = 1024) -> object:
    return MessageReader(io.BytesIO(data), limit_bytes=limit_bytes).read()


class TricklingStream(io.RawIOBase):
    """A pipe that takes and gives three bytes at a time."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        self.data += data[:3]
        return len(data[:3])

    def read(self, size: int = -1, /) -> bytes:
        part, self.data = bytes(self.data[: min(3, size)]), self.data[min(3, size) :]
        return part


def test_messages_come_out_as_they_went_in() -> None:
    stream = io.BytesIO()
    messages = [{"type": "run", "seed": 2**64 - 1, "bytes": b"\x00\xff", "nested": {"a": [1.5, None, True]}}, {"type": "close"}]
    writer = MessageWriter(stream)
    for message in messages:
        writer.write(message)
    stream.seek(0)
    reader = MessageReader(stream)
    assert [reader.read(), reader.read(), reader.read()] == [*messages, None]


def test_a_stream_that_takes_a_few_bytes_at_a_time_loses_nothing() -> None:
    stream = TricklingStream()
    MessageWriter(stream).write({"type": "beat", "text": "x" * 100})
    assert MessageReader(stream).read() == {"type": "beat", "text": "x" * 100}


def test_threads_do_not_mix_their_messages() -> None:
    read_fd, write_fd = os.pipe()
    with os.fdopen(read_fd, "rb") as source, os.fdopen(write_fd, "wb", buffering=0) as target:
        writer, reader = MessageWriter(target), MessageReader(source)
        threads = [
            threading.Thread(target=lambda n=n: [writer.write({"type": "m", "n": n, "fill": bytes([n]) * 5000}) for _ in range(50)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        seen = [reader.read() for _ in range(200)]
        for thread in threads:
            thread.join()
    assert all(message is not None and message["fill"] == bytes([message["n"]]) * 5000 for message in seen)


@pytest.mark.parametrize("kept", range(1, 12))
def test_a_pipe_cut_inside_a_message_says_how_much_is_missing(kept: int) -> None:
    whole = _frame(msgpack.packb({"type": "ready"}))
    with pytest.raises(PipeTruncated) as caught:
        _read(whole[:kept])
    assert caught.value.have_bytes < caught.value.need_bytes


def test_an_announced_length_over_the_limit_is_refused_before_anything_is_read() -> None:
    stream = io.BytesIO(struct.pack(">I", 2**32 - 1) + b"x" * 100)
    with pytest.raises(PipeMessageTooLarge) as caught:
        MessageReader(stream, limit_bytes=1024).read()
    assert (caught.value.size_bytes, stream.tell()) == (2**32 - 1, 4)


def test_a_message_over_the_limit_is_not_written_at_all() -> None:
    stream = io.BytesIO()
    with pytest.raises(PipeMessageTooLarge):
        MessageWriter(stream, limit_bytes=100).write({"type": "preview", "image": b"x" * 200})
    assert stream.getvalue() == b""


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"hello from print()",
        msgpack.packb([1, 2]),
        msgpack.packb({"claim": "no type"}),
        msgpack.packb({"type": 3}),
        msgpack.packb({"type": "ready"}) + b"\x00",
        b"\xa5\xff\xfe\xfd\xfc\xfb",
        b"\x91" * 900 + b"\x00",
        b"\xdf\xff\xff\xff\xff",
    ],
    ids=["empty", "reserved byte", "text", "list", "no type", "number as type", "trailing byte", "bad utf-8", "deep nesting", "huge map"],
)
def test_what_is_no_message_is_named_malformed(payload: bytes) -> None:
    with pytest.raises(PipeMalformed):
        _read(_frame(payload))


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_pipe_error(data: bytes) -> None:
    reader = MessageReader(io.BytesIO(data), limit_bytes=200)
    try:
        while reader.read() is not None:
            pass
    except PipeError:
        pass
