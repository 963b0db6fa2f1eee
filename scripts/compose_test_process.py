"""How `make compose-test` runs programs: each in a session of its own, so that a Ctrl-C ends it here, with all that it started."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

_END_S = 10.0
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class StepFailed(Exception):
    """A command failed or took too long."""


class Clock:
    """The time that is left."""

    def __init__(self, limit_s: float) -> None:
        self._started = time.monotonic()
        self.limit_s = limit_s

    @property
    def spent_s(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    @property
    def left_s(self) -> float:
        """Until the limit."""
        return max(1.0, self.limit_s - self.spent_s)


class Steps:
    """The steps before and after the tests: shown with their seconds, and with their output only where they fail.

    Args:
        work: folder; the output of the latest step is ``last-step.log`` in it.
        clock: of all steps together.
    """

    def __init__(self, work: Path, clock: Clock) -> None:
        self._log = work / "last-step.log"
        self._clock = clock

    def run(self, command: Sequence[str], shown: str, environment: dict[str, str] | None = None) -> None:
        """Run one.

        Args:
            command: what.
            shown: what it is, for people.
            environment: its variables; without it, ours.
        Raises:
            StepFailed: it ended with another status than 0, or the time was over.
        """
        started = time.monotonic()
        with self._log.open("wb") as output:
            status = run(command, self._clock.left_s, environment, output=output.fileno())
        if status == 0:
            say(f"compose-test: {time.monotonic() - started:5.1f} s  {shown}")
            return
        say(self._log.read_text(encoding="utf-8", errors="replace")[-6000:])
        why = f"status {status}" if status is not None else f"the {self._clock.limit_s:.0f} s for all steps together were over"
        raise StepFailed(f"{shown}: {why}; its output is above and in {self._log}")


def run(command: Sequence[str], timeout_s: float, environment: dict[str, str] | None = None, *, output: int | None = None) -> int | None:
    """Run a program to its end; its exit status, None where it took too long.

    An exception, such as that of a Ctrl-C, ends it and everything that it started, except for what has gone into a session of its own.

    Args:
        output: file descriptor for what it prints; without it, ours.
    """
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT if output is not None else None,
        start_new_session=True,
    )  # fmt: skip
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        _end_session(process)
        return None
    except BaseException:
        _end_session(process)
        raise


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """First with the signal that lets it put things in order."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        _signal_group(process.pid, number)
        deadline = time.monotonic() + _END_S
        while _signal_group(process.pid, 0) and time.monotonic() < deadline:
            process.poll()  # takes its exit status, without which its group stays
            time.sleep(0.05)
    process.wait()


def _signal_group(group: int, number: int) -> bool:
    """False where nobody is left in it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def end_by_exception() -> None:
    """From now on SIGTERM and the end of the terminal are exceptions, as Ctrl-C is, so that everything is taken down first."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in _ENDING_SIGNALS:
        signal.signal(number, leave)


def no_more_interruptions() -> None:
    """From now on none of these ends us: what is left to do is taking down, and each step of that has its limit."""
    for number in (signal.SIGINT, *_ENDING_SIGNALS):
        signal.signal(number, signal.SIG_IGN)


def say(text: str) -> None:
    """A line for people."""
    print(text, flush=True)
