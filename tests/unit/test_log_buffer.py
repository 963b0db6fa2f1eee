"""Lines on their way into Redis: so many a second, so long, so many at most, and no secret in them."""
from __future__ import annotations

import pytest

from distributed_comfy.settings import Settings, read_settings
from distributed_comfy.state.worker_log import LogLine
from tasks.log_buffer import BURST_LINES, LINE_LIMIT_BYTES, LINES_PER_S, WAITING_LINES, LogBuffer, RateLimit, Redactor, shortened
from tasks.log_stream import newest_within


@pytest.fixture
def settings() -> Settings:
    return read_settings(redis_url="redis://ann:s3cret%2Fword@h:1/0", flower_basic_auth="bob:flowerpass")


def buffer_of(settings: Settings) -> LogBuffer:
    return LogBuffer(Redactor(settings, ["redis://:embedded-pw@127.0.0.1:1/0"]))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at redis://u:other@h:1/0", "at redis://u:***@h:1/0"),
        ("it is s3cret%2Fword or s3cret/word", "it is *** or ***"),
        ("the server's own embedded-pw, too", "the server's own ***, too"),
        ("flowerpass", "***"),
        ("DC_FLOWER_BASIC_AUTH=x:y DC_JOIN_TOKEN: 'abc'", "DC_FLOWER_BASIC_AUTH=*** DC_JOIN_TOKEN: '***'"),
        ("{'DC_REDIS_PASSWORD': 'abc', 'DC_HOST': 'pc1'}", "{'DC_REDIS_PASSWORD': '***', 'DC_HOST': 'pc1'}"),
        ("nothing to hide, ann", "nothing to hide, ann"),
    ],
)
def test_secrets_go_wherever_they_stand(settings: Settings, text: str, shown: str) -> None:
    assert Redactor(settings, ["redis://:embedded-pw@127.0.0.1:1/0"])(text) == shown


def test_a_password_of_two_letters_does_not_eat_every_word() -> None:
    assert Redactor(read_settings(redis_url="redis://:in@h:1/0"))("in the beginning") == "in the beginning"


def test_lines_are_taken_once_in_order(settings: Settings) -> None:
    buffer = buffer_of(settings)
    buffer.add("worker", "INFO", "one")
    buffer.add("engine", "", "at redis://u:pw@h")
    assert buffer.take(1) == [LogLine("worker", "INFO", "one")]
    assert buffer.take(9) == [LogLine("engine", "", "at redis://u:***@h")] and buffer.take(9) == []


def test_a_rate_allows_a_burst_and_then_so_many_a_second() -> None:
    limit = RateLimit(10.0, 5)
    start = limit._at
    assert [limit.allows(start) for _ in range(7)] == [True] * 5 + [False] * 2
    assert [limit.allows(start + 0.25) for _ in range(3)] == [True, True, False]
    assert sum(limit.allows(start + 100) for _ in range(50)) == 5


def test_too_many_lines_are_dropped_and_counted_and_the_other_source_is_heard(settings: Settings) -> None:
    buffer = buffer_of(settings)
    now = buffer._limits["engine"]._at
    for number in range(BURST_LINES + 77):
        buffer.add("engine", "", f"spam {number}", now)
    buffer.add("worker", "ERROR", "the engine is mad", now)
    found = buffer.take(10_000)
    assert len(found) == BURST_LINES + 2
    assert found[-2].text == "the engine is mad"
    assert found[-1].text == f"… 77 lines were dropped: more than {LINES_PER_S:g} a second"
    buffer.add("engine", "", "calm again", now + 10)
    assert [line.text for line in buffer.take(10)] == ["calm again"], "said once"


def test_while_nobody_takes_them_the_oldest_go_and_are_counted(settings: Settings) -> None:
    buffer = buffer_of(settings)
    now = buffer._limits["worker"]._at
    for number in range(WAITING_LINES + 3):
        buffer.add("worker", "INFO", str(number), now + number)
    first, second, *_ = buffer.take(10_000)
    assert first.text == "… 3 lines were dropped: Redis did not answer" and second.text == "3"


def test_a_long_line_keeps_its_beginning_and_its_end() -> None:
    text = "Traceback: " + "ü" * 20_000 + " ValueError: no"
    short = shortened(text)
    assert len(short.encode()) <= LINE_LIMIT_BYTES
    assert short.startswith("Traceback: ü") and short.endswith("ü ValueError: no") and "bytes left out" in short
    assert shortened("ok") == "ok" and shortened("\ud800") == "?"


def test_a_stream_of_long_lines_is_shorter() -> None:
    assert newest_within([100] * 50, 2000, limit_bytes=10_000) == 2000, "what an earlier life left stays"
    assert newest_within([100] * 50 + [1000] * 50, 2000, limit_bytes=10_000) == 10
    assert newest_within([9999999], 2000, limit_bytes=10_000) == 1
