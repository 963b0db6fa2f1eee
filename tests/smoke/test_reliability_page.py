"""docs/reliability.md says what the suite plays, and each of its promises names a test that exists."""
from __future__ import annotations

import pytest

from tests.smoke import every_scenario  # noqa: F401 - fills the list
from tests.smoke.mutations import ROOT
from tests.smoke.page import PAGE, all_scenarios, faults_of, named_tests, part, promises_table
from tests.smoke.promises import PROMISES


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_the_measured_table_has_every_scenario_and_nothing_lost_or_doubled(page: str) -> None:
    assert faults_of(part(page, "measured")) == [], "run make smoke, then python -m tests.smoke.page smoke-report.json"


def test_the_promises_of_the_page_are_those_that_are_tested(page: str) -> None:
    assert part(page, "promises") == promises_table(), "run python -m tests.smoke.page"


def test_each_promise_names_a_test_that_exists(page: str) -> None:
    named = named_tests(part(page, "promises"))
    assert len(named) == len(PROMISES)
    for name, file in named:
        function = name.partition("[")[0]
        assert (ROOT / file).is_file(), file
        assert function == (ROOT / file).stem or f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), name


def test_a_scenario_exercises_promises_that_are_made() -> None:
    for scenario in all_scenarios().values():
        assert set(scenario.promises) <= PROMISES.keys(), scenario.name


def test_each_protection_is_there_to_be_taken_out_or_it_is_said_why_none_can_be() -> None:
    for name, promise in PROMISES.items():
        assert bool(promise.why) is (promise.mutation is None), name
        if promise.mutation is not None:
            assert (ROOT / promise.mutation.file).read_text(encoding="utf-8").count(promise.mutation.old) == 1, name
