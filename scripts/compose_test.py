"""`make compose-test`: builds the cpu profile of docker-compose.yml, runs it, and tests it from outside (tests/compose).

``python scripts/compose_test.py [--keep] [pytest arguments]``.  Ends after 15 minutes at the latest, then with the logs of the
containers.  Leaves no container, volume, network or mount behind, also after Ctrl-C (``--keep``: leaves the stack running); podman's
images and layers stay under ``build/compose-test`` for the next time.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from compose_test_engine import ContainerEngine, EngineMissing, find_engine, forget_old_layers, left_behind, provide_bases, remove, unmount
from compose_test_process import Clock, StepFailed, Steps, end_by_exception, no_more_interruptions, run, say

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build/compose-test"
LIMIT_S = 900.0
CLEAN_UP_S = 120.0
PROJECT = "dc-compose-test"
# What the test needs of the stack; .env of the user is not read.
SETTINGS = {
    "CPU_WORKERS": "2",
    "CPU_WORKER_THREADS": "1",
    "DC_DRAIN_TIMEOUT_S": "20",
    "WORKER_STOP_GRACE_PERIOD": "40s",
    "BLOB_MAXMEMORY": "256mb",
    "FLOWER_PORT": "25555",
}
# Of the user's variables only these count, where they are set: they say what is built, not how it runs.
BUILD_VARIABLES = {"PYTHON_IMAGE", "TORCH_SPEC", "TORCH_INDEX"}


class Stack:
    """The stack under test."""

    def __init__(self, engine: ContainerEngine, clock: Clock, steps: Steps) -> None:
        self._engine = engine
        self._clock = clock
        self._steps = steps
        self.environment = {**dict(engine.build_settings), **without_stack_variables(os.environ), **SETTINGS}
        options = ["--project-name", PROJECT, "--env-file", os.devnull, "-f", str(ROOT / "docker-compose.yml")]
        self._up_options = [*options, "--profile", "cpu"]
        self._options = [*self._up_options, "--profile", "submit"]  # podman-compose knows no service of another profile
        self.compose = [*engine.compose, *self._options]

    def build(self) -> None:
        """Build the images of the profile, one after the other: the second starts with the first one's layers."""
        for service in ("submit", "worker-cpu"):
            command = [*self._engine.compose, *self._engine.build_options, *self._options, "build", service]
            self._steps.run(command, f"build of the image of {service}", self.environment)

    def test(self, arguments: Sequence[str]) -> int:
        """Pytest's exit status."""
        rig = {
            "engine": self._engine.name, "compose": self.compose, "up": [*self._engine.compose, *self._up_options, "up"],
            "container": self._engine.container, "project": PROJECT,
        }  # fmt: skip
        environment = {**self.environment, "COMPOSE_TEST_RIG": json.dumps(rig)}
        options = ("-v", "--timeout", "300", "--maxfail", "3", "--durations", "0", "--durations-min", "5")
        command = [sys.executable, "-m", "pytest", *options, str(ROOT / "tests/compose"), *arguments]
        status = run(command, self._clock.left_s, environment)
        if status is None:
            raise StepFailed(f"the tests were not through after {self._clock.spent_s:.0f} s in all")
        return status

    def show_logs(self) -> None:
        """What every container wrote last."""
        project = ("--filter", f"label=com.docker.compose.project={PROJECT}")
        say(self._quietly([*self._engine.container, "ps", "-a", *project]))
        for container in self._quietly([*self._engine.container, "ps", "-aq", *project]).split():
            say(f"---- last lines of {container}")
            say(self._quietly([*self._engine.container, "logs", "--tail", "25", container]))

    def down(self) -> None:
        """Remove containers, networks and volumes, also those of a run that was interrupted.

        Raises:
            StepFailed: something is still there.
        """
        started = time.monotonic()
        if not left_behind(self._engine, PROJECT):
            return
        self._quietly([*self.compose, "down", "--volumes", "--timeout", "5"])
        remove(self._engine, left_behind(self._engine, PROJECT))
        left = [f"{kind} {name}" for kind, names in left_behind(self._engine, PROJECT).items() for name in names]
        if left:
            raise StepFailed(f"left behind: {', '.join(left)}")
        say(f"compose-test: {time.monotonic() - started:5.1f} s  everything of the stack removed")

    def _quietly(self, command: Sequence[str]) -> str:
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.environment, timeout=CLEAN_UP_S, check=False,
                start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"{' '.join(command)} did not end within {CLEAN_UP_S:.0f} s"
        return done.stdout


def without_stack_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` without what .env.example names: values of the user's own stack are none of the test's."""
    named = set(re.findall(r"(?m)^([A-Z_]+)=", (ROOT / ".env.example").read_text(encoding="utf-8")))
    return {name: value for name, value in environment.items() if name not in named or (name in BUILD_VARIABLES and value)}


def main() -> int:
    """Exit status 0 where every test passed."""
    parser = argparse.ArgumentParser(description="Build, run and test the cpu profile of docker-compose.yml.")
    parser.add_argument("--keep", action="store_true", help="leave the stack running")
    options, pytest_arguments = parser.parse_known_args()
    end_by_exception()
    os.chdir(ROOT)
    WORK.mkdir(parents=True, exist_ok=True)
    clock = Clock(LIMIT_S)
    steps = Steps(WORK, clock)
    try:
        engine = find_engine(WORK, steps.run)
        say(f"compose-test: with {engine.name}")
        stand_ins = provide_bases(engine, WORK, steps.run)
        for name in stand_ins:
            say(f"compose-test: stand-in for {name}")
        status = run_tests(Stack(engine, clock, steps), pytest_arguments, keep=options.keep)
        forget_old_layers(engine)
    except (EngineMissing, StepFailed) as error:
        say(f"compose-test: FAILED: {error}")
        return 1
    finally:
        if not options.keep:
            no_more_interruptions()
            for place in unmount(WORK):
                say(f"compose-test: still mounted: {place}")
            shutil.rmtree(WORK / "tmp", ignore_errors=True)
    say(f"compose-test: {'ok' if status == 0 else 'FAILED'} after {clock.spent_s:.0f} s, with {engine.name}"
        + (", on stand-ins for the base images" if stand_ins else ""))
    return status


def run_tests(stack: Stack, pytest_arguments: Sequence[str], *, keep: bool) -> int:
    """Build, test, clean up; pytest's exit status."""
    try:
        stack.down()  # of a run that was killed
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
            no_more_interruptions()
            stack.down()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
