"""`make compose-test`: builds the cpu profile of docker-compose.yml, runs it, and tests it from outside (tests/compose).

``python scripts/compose_test.py [--keep] [pytest arguments]``.  Ends after 15 minutes at the latest, then with the logs of the
containers.  Leaves no container, volume or network behind (``--keep``: leaves the stack running); podman's images and layers stay under
``build/compose-test`` for the next time.
"""
from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from compose_test_engine import ContainerEngine, EngineMissing, find_engine, forget_old_layers, provide_bases

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build/compose-test"
LIMIT_S = 900.0
CLEAN_UP_S = 120.0
PROJECT = "dc-compose-test"
PROFILES = ("--profile", "cpu", "--profile", "submit")
# What the test needs of the stack; .env of the user is not read.
SETTINGS = {
    "CPU_WORKERS": "2",
    "CPU_WORKER_THREADS": "1",
    "DC_DRAIN_TIMEOUT_S": "20",
    "WORKER_STOP_GRACE_PERIOD": "40s",
    "BLOB_MAXMEMORY": "256mb",
    "FLOWER_PORT": "25555",
}


class StepFailed(Exception):
    """A command failed or took too long."""


class Clock:
    """The time that is left."""

    def __init__(self, limit_s: float) -> None:
        self._started = time.monotonic()
        self._limit_s = limit_s

    @property
    def spent_s(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    @property
    def left_s(self) -> float:
        """Until the limit."""
        return max(1.0, self._limit_s - self.spent_s)


class Stack:
    """The stack under test."""

    def __init__(self, engine: ContainerEngine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        torch = {} if engine.name == "docker" else {"TORCH_INDEX": ""}  # podman builds with the index of this machine, see pip_mounts
        self.environment = {**os.environ, **SETTINGS, **torch}
        self._options = ["--project-name", PROJECT, "--env-file", os.devnull, "-f", str(ROOT / "docker-compose.yml"), *PROFILES]
        self.compose = [*engine.compose, *self._options]

    def build(self) -> None:
        """Build the images of the profile, one after the other: the second starts with the first one's layers."""
        for service in ("submit", "worker-cpu"):
            command = [*self._engine.compose, *self._engine.build_options, *self._options, "build", service]
            call(command, self._clock, self.environment, shown=f"build of the image of {service}")

    def test(self, arguments: Sequence[str]) -> int:
        """Pytest's exit status."""
        rig = {"engine": self._engine.name, "compose": self.compose, "container": self._engine.container, "project": PROJECT}
        environment = {**self.environment, "COMPOSE_TEST_RIG": json.dumps(rig)}
        command = [sys.executable, "-m", "pytest", "-v", "--timeout", "300", "--maxfail", "3", str(ROOT / "tests/compose"), *arguments]
        try:
            return subprocess.run(command, env=environment, cwd=ROOT, timeout=self._clock.left_s, check=False).returncode
        except subprocess.TimeoutExpired as error:
            raise StepFailed(f"the tests were not through after {self._clock.spent_s:.0f} s in all") from error

    def show_logs(self) -> None:
        """What every container wrote last."""
        listed = self._quietly([*self._engine.container, "ps", "-a", "--filter", f"label=com.docker.compose.project={PROJECT}"])
        say(listed)
        ids = self._quietly([*self._engine.container, "ps", "-aq", "--filter", f"label=com.docker.compose.project={PROJECT}"]).split()
        for container in ids:
            say(f"---- last lines of {container}")
            say(self._quietly([*self._engine.container, "logs", "--tail", "25", container]))

    def down(self) -> None:
        """Remove containers, networks and volumes."""
        self._quietly([*self.compose, "down", "--volumes", "--timeout", "20"])

    def _quietly(self, command: Sequence[str]) -> str:
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.environment, timeout=CLEAN_UP_S, check=False
            )
        except subprocess.TimeoutExpired:
            return f"{' '.join(command)} did not end within {CLEAN_UP_S:.0f} s"
        return done.stdout


def call(command: Sequence[str], clock: Clock, environment: dict[str, str] | None = None, *, shown: str = "") -> None:
    """Run a step; its output is shown only where it fails.

    Args:
        shown: what it is, for people; without it the beginning of the command.
    Raises:
        StepFailed: it did.
    """
    started = time.monotonic()
    log = WORK / "last-step.log"
    with log.open("wb") as output:
        try:
            status = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, timeout=clock.left_s, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = -1
    shown = shown or " ".join([part for part in command if "=" not in part and part != "env"][:4])
    if status != 0:
        say(log.read_text(encoding="utf-8", errors="replace")[-6000:])
        why = f"status {status}" if status >= 0 else f"it took longer than the {LIMIT_S:.0f} s of all steps together"
        raise StepFailed(f"{shown}: {why}; its output is above and in {log}")
    say(f"compose-test: {time.monotonic() - started:5.1f} s  {shown}")


def say(text: str) -> None:
    """A line for people."""
    print(text, flush=True)


def main() -> int:
    """Exit status 0 where every test passed."""
    parser = argparse.ArgumentParser(description="Build, run and test the cpu profile of docker-compose.yml.")
    parser.add_argument("--keep", action="store_true", help="leave the stack running")
    options, pytest_arguments = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that everything is taken down first
    WORK.mkdir(parents=True, exist_ok=True)
    clock = Clock(LIMIT_S)
    try:
        engine = find_engine(WORK, lambda command: call(command, clock))
        say(f"compose-test: with {engine.name}")
        stand_ins = provide_bases(engine, WORK, lambda command: call(command, clock))
        for name in stand_ins:
            say(f"compose-test: stand-in for {name}")
        stack = Stack(engine, clock)
        status = run_tests(stack, pytest_arguments, keep=options.keep)
        forget_old_layers(engine)
    except (EngineMissing, StepFailed) as error:
        say(f"compose-test: FAILED: {error}")
        return 1
    say(f"compose-test: {'ok' if status == 0 else 'FAILED'} after {clock.spent_s:.0f} s, with {engine.name}"
        + (", on stand-ins for the base images" if stand_ins else ""))
    return status


def run_tests(stack: Stack, pytest_arguments: Sequence[str], *, keep: bool) -> int:
    """Build, test, clean up; pytest's exit status."""
    stack.down()  # of a run that was killed
    try:
        stack.build()
        status = stack.test(pytest_arguments)
        if status != 0:
            stack.show_logs()
        return status
    except StepFailed:
        stack.show_logs()
        raise
    finally:
        if not keep:
            stack.down()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
