"""When a host that was invited takes itself for shut out: not before its user has been refused long enough, and nobody else ever."""
from __future__ import annotations

import pytest
import redis
from redis.exceptions import BusyLoadingError, NoPermissionError

from distributed_comfy.errors import RedisRefused, RedisUnreachable
from tasks.admission import Admission

URL = "rediss://dc-host-pc2:secret@10.0.0.1:47380/0?ssl_cert_reqs=required"
WRONG = redis.AuthenticationError("invalid username-password pair or user is disabled.")
AWAY = RedisUnreachable(url="u", reason="Connection refused", setting="s")


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def admission(clock: Clock) -> Admission:
    return Admission(URL, 60.0, now_s=clock)


def test_a_refusal_that_lasts_is_a_verdict_that_says_what_to_do_and_shows_no_secret(admission: Admission, clock: Clock) -> None:
    assert admission.failed(WRONG)
    clock.now += 59
    assert admission.verdict is None
    clock.now += 1
    verdict = admission.verdict
    assert verdict is not None and verdict.exit_code == 4
    assert "`distributed-comfy invite --name pc2`" in str(verdict) and "revoked" in str(verdict) and "secret" not in str(verdict)
    admission.accepted()
    assert admission.verdict is verdict, "whoever ends because of it does not change its mind"


def test_a_server_that_gets_its_users_back_in_time_has_shut_nobody_out(admission: Admission, clock: Clock) -> None:
    admission.failed(WRONG)
    clock.now += 50
    admission.accepted()
    admission.failed(WRONG)
    clock.now += 50
    assert admission.verdict is None


def test_a_door_that_is_shut_after_the_refusal_changes_nothing(admission: Admission, clock: Clock) -> None:
    admission.failed(WRONG)
    clock.now += 60
    assert not admission.failed(AWAY), "that is another thing, and told as such"
    assert admission.verdict is not None


@pytest.mark.parametrize("error", [AWAY, BusyLoadingError("loading"), NoPermissionError("no"), redis.TimeoutError()])
def test_a_server_that_is_away_loads_or_forbids_something_has_shut_nobody_out(admission: Admission, clock: Clock, error: Exception) -> None:
    for _ in range(3):
        assert not admission.failed(error)
        clock.now += 600
    assert admission.verdict is None


def test_a_refusal_is_known_in_each_of_its_forms_and_is_warned_of_once(admission: Admission, caplog: pytest.LogCaptureFixture) -> None:
    behind = RedisUnreachable(url="u", reason="WRONGPASS", setting="s")
    behind.__cause__ = WRONG
    for error in (behind, WRONG, RedisRefused(url="u", reason="WRONGPASS", setting="s")):
        assert admission.failed(error)
    assert caplog.text.count("does not know the user of host pc2") == 1 and "secret" not in caplog.text


@pytest.mark.parametrize("url", ["redis://:secret@10.0.0.1/0", "redis://dc-worker-pc2:secret@10.0.0.1/0", "unix:///run/redis.sock"])
def test_whoever_was_not_invited_is_not_judged(clock: Clock, url: str) -> None:
    admission = Admission(url, 0.0, now_s=clock)
    assert not admission.failed(WRONG)
    assert admission.verdict is None


def test_the_way_through_a_relay_is_that_of_an_invited_host_too(clock: Clock) -> None:
    admission = Admission("unix://dc-host-pc2:s%40cret@/tmp/dc-relay-x/state?db=0", 0.0, now_s=clock)
    assert admission.failed(WRONG)
    assert "the cluster does not let host 'pc2' in" in str(admission.verdict) and "cret" not in str(admission.verdict)
