"""Programs that `make compose-test` runs end with it, and with everything that they started."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from compose_test_process import Clock, StepFailed, Steps, run

from tests.command_line import until

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sessions and signals of Unix")

# Starts a program that starts another, which does not end at SIGTERM at once but tidies up first.  That one tells of itself after a
# moment, so that the signal does not find the parent still in the start of its child.
PARENT = """
import sys
CHILD = 'trap "echo tidied > $0/tidied; exit" TERM; sleep 0.5; echo $$ > $0/pid; while :; do sleep 0.05; done'
sys.path.insert(0, sys.argv[1])
from compose_test_process import end_by_exception, run
end_by_exception()
try:
    run(["sh", "-c", f"sh -c '{CHILD}' $0 & wait", sys.argv[2]], 60)
finally:
    open(sys.argv[2] + "/taken-down", "w").close()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_what_runs_and_what_that_started_and_then_everything_is_taken_down(tmp_path: Path, number: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", PARENT, str(ROOT / "scripts"), str(tmp_path)], stderr=subprocess.DEVNULL)
    until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text().strip())
    process.send_signal(number)
    assert process.wait(30) != 0
    assert (tmp_path / "tidied").is_file() and (tmp_path / "taken-down").is_file()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_program_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    started = time.monotonic()
    assert run(["sleep", "60"], 0.2) is None
    assert time.monotonic() - started < 10


def test_a_step_that_fails_shows_its_output_and_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    steps = Steps(tmp_path, Clock(30))
    steps.run(["sh", "-c", "echo all is well"], "a good step")
    with pytest.raises(StepFailed, match="a bad step: status 3"):
        steps.run(["sh", "-c", "echo what went wrong >&2; exit 3"], "a bad step")
    shown = capfd.readouterr().out
    assert "a good step" in shown and "all is well" not in shown and "what went wrong" in shown
