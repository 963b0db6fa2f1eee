"""Tests of a running compose stack; `make compose-test` starts them, and `make test` does not even collect them."""
from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from tests.compose.stack import Stack

RIG = os.environ.get("COMPOSE_TEST_RIG", "")

collect_ignore_glob = [] if RIG else ["test_*.py"]


@pytest.fixture(scope="session")
def running_stack() -> Iterator[Stack]:
    """The cpu profile as docker-compose.yml has it, up; `make compose-test` takes it down."""
    stack = Stack(**json.loads(RIG))
    stack.start()
    yield stack


@pytest.fixture
def stack(running_stack: Stack) -> Stack:
    """The stack with all its workers there and idle, whatever the test before did to it."""
    running_stack.start_all()
    running_stack.wait_workers(2, state="idle")
    return running_stack
