"""What Celery says of its tries to connect is told once for each reason."""
from __future__ import annotations

import logging

from celery.worker.consumer import consumer

from tasks.reconnect import Repeats


def told(repeats: Repeats, message: str, *args: object) -> bool:
    return repeats.filter(logging.LogRecord("celery.worker.consumer.consumer", logging.ERROR, "", 0, message, args, None))


def test_the_same_reason_is_told_once_and_another_one_again() -> None:
    repeats, words = Repeats(), consumer.CONNECTION_ERROR
    tries = [("redis://here", OSError("refused"), f"Trying again in {number} seconds") for number in range(3)]
    assert [told(repeats, words, *each) for each in tries] == [True, False, False]
    assert told(repeats, words, "redis://here", OSError("no route"), "Trying again")
    assert told(repeats, "anything else", "redis://here") and told(repeats, "anything else", "redis://here")
