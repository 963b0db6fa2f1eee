"""Two fields: one for each length, and the table of what was measured at the end of the run."""
from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.smoke.field import LONG, SHORT, Field, Timing
from tests.smoke.measured import ROWS, Measured, as_json, markdown

REPORT = os.environ.get("SMOKE_REPORT", "")
"""File for the table as JSON; none without."""


@pytest.fixture(scope="session")
def measured() -> list[Measured]:
    """Rows of the table, to be added to."""
    return ROWS


def _field(timing: Timing, servers: Any, folder: Path, names: tuple[str, ...], *, shared_memory: bool = False) -> Iterator[Field]:
    field = Field(folder, servers.program, timing, shared_memory=shared_memory)
    try:
        field.start(*names)
        yield field
    finally:
        field.close()


@pytest.fixture(scope="session")
def short_field(redis_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """Three workers, and leases of a second and a half."""
    yield from _field(SHORT, redis_server, tmp_path_factory.mktemp("short"), ("one", "two", "three"))


@pytest.fixture(scope="module")
def memory_field(redis_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """As `short_field`, with results that go through the memory of this host, as they do by default."""
    yield from _field(SHORT, redis_server, tmp_path_factory.mktemp("memory"), ("one", "two", "three"), shared_memory=True)


@pytest.fixture(scope="session")
def long_field(redis_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """Four workers, and times as they are by default."""
    yield from _field(LONG, redis_server, tmp_path_factory.mktemp("long"), ("one", "two", "three", "four"))


@pytest.fixture
def long_soak(redis_server: Any, tmp_path: Path) -> Iterator[Field]:
    """As `long_field`, with items of half a second."""
    yield from _field(replace(LONG, steps=5, attempts=20), redis_server, tmp_path, ("one", "two", "three", "four"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table, and for a program the same as JSON."""
    if ROWS:
        terminalreporter.write_line(markdown(row.cells for row in ROWS))
    if ROWS and REPORT:
        Path(REPORT).write_text(as_json(ROWS, system=platform.platform(), cores=os.cpu_count()), encoding="utf-8")
