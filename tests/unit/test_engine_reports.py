"""What a running item tells, and how often."""
from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from distributed_comfy.engine.pipe import MessageWriter
from distributed_comfy.engine.protocol import Beat, Finished, Preview, Progress
from distributed_comfy.engine.reports import PREVIEW_LIMIT_BYTES, WAITING_LIMIT, ClaimSink, Outbox
from distributed_comfy.errors import PipeMessageTooLarge
from distributed_comfy.messages import ItemResult


class StuckPipe:
    """A pipe whose reader sleeps until `wake`."""

    def __init__(self) -> None:
        self.awake = threading.Event()
        self.written = 0

    def write(self, data: bytes, /) -> int:
        self.awake.wait(10)
        self.written += 1
        return len(data)

    def flush(self) -> None:
        pass


def test_a_thousand_steps_become_few_messages_and_the_last_is_one_of_them() -> None:
    sent: list[Any] = []
    touches: list[int] = []
    sink = ClaimSink("c", sent.append, lambda: touches.append(1))
    for step in range(1, 1001):
        sink.progress("3", step, 1000)
    assert len(sent) < 20
    assert sent[-1] == Progress("c", "3", 1000, 1000)
    assert len(touches) == 1000  # each step is a sign of life all the same


def test_two_nodes_do_not_hide_each_others_progress() -> None:
    sent: list[Any] = []
    sink = ClaimSink("c", sent.append, lambda: None)
    sink.progress("3", 1, 10)
    sink.progress("4", 1, 10)
    assert [event.node_id for event in sent] == ["3", "4"]


def test_a_preview_that_is_too_large_or_too_soon_is_left_out() -> None:
    sent: list[Any] = []
    sink = ClaimSink("c", sent.append, lambda: None)
    sink.preview("3", b"x")
    sink.preview("3", b"y")
    assert sent == [Preview("c", "3", b"x")]
    big = ClaimSink("c", sent.append, lambda: None)
    big.preview("3", b"x" * (PREVIEW_LIMIT_BYTES + 1))
    assert len(sent) == 1


def test_nobody_waits_for_a_consumer_that_does_not_read() -> None:
    pipe = StuckPipe()
    outbox = Outbox(MessageWriter(pipe))
    began = time.monotonic()
    for step in range(WAITING_LIMIT + 500):
        outbox.send(Progress("c", "3", step, 10_000))
    outbox.send(Finished("c", ItemResult()))
    assert time.monotonic() - began < 2
    pipe.awake.set()
    outbox.close()
    assert WAITING_LIMIT < pipe.written < WAITING_LIMIT + 10  # progress was left out, the result was not


def test_an_event_too_large_for_the_pipe_is_the_senders_error() -> None:
    outbox = Outbox(MessageWriter(StuckPipe()))
    with pytest.raises(PipeMessageTooLarge):
        outbox.send(Finished("c", ItemResult(outputs={"1": {"text": ["x" * 70_000_000]}})))
    outbox.send(Beat(0.0))
