"""The arithmetic and the report of the benchmarks, without running any."""
from __future__ import annotations

import json

import pytest

from benchmarks.fairness import list_schedule
from benchmarks.report import Measured, as_json, as_markdown, summary
from benchmarks.rows import Row, Section, percentile, shown

FACTS = {"CPU": "an abacus"}


def measured(*rows: Row) -> list[Measured]:
    return [Measured("luck", Section("Luck", "Dice were thrown.", rows, "The dice."), 1.0, "0.5", "0.7")]


def test_a_target_is_met_up_to_and_with_its_value() -> None:
    verdicts = [Row("x", value, "ms", target).verdict for value, target in ((5.0, 5.0), (5.1, 5.0), (5.0, None))]
    assert verdicts == ["met", "missed", ""]


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, share) for share in (0.01, 0.5, 0.95, 0.99, 1.0)] == [1, 50, 95, 99, 100]
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([1.0, 2.0, 3.0], 0.95) == 3.0


@pytest.mark.parametrize(
    ("item_seconds", "items", "bound"),
    [
        ({"a": 1.0}, 5, 5.0),
        ({"a": 1.0, "b": 1.0}, 5, 3.0),
        ({"a": 0.5, "b": 0.5, "c": 0.5, "slow": 2.15}, 38, 6.45),
        ({"a": 1.0, "slow": 10.0}, 2, 10.0),  # list scheduling does not know that waiting would be better
    ],
)
def test_list_scheduling_gives_each_item_to_whom_is_free_first(item_seconds: dict[str, float], items: int, bound: float) -> None:
    assert list_schedule(item_seconds, items) == pytest.approx(bound)


@pytest.mark.parametrize(("value", "text"), [(0.12345, "0.123"), (6.0, "6"), (12.34, "12.3"), (1234.5, "1234"), (0.0, "0")])
def test_numbers_are_shown_with_three_digits(value: float, text: str) -> None:
    assert shown(value, "ms") == f"{text} ms"


def test_the_report_holds_every_row_what_was_missed_and_where_it_ran() -> None:
    text = as_markdown(measured(Row("fast", 1.0, "ms", 2.0), Row("slow|er", 3.0, "ms", 2.0, "cold"), Row("free", 4.0)), FACTS, quick=False)
    assert "| fast | 1 ms | <= 2 ms | met |  |" in text
    assert "| slow\\|er | 3 ms | <= 2 ms | **missed** | cold |" in text
    assert "1 of 2 targets are met." in text
    assert "an abacus" in text and "Dice were thrown." in text and "The dice." in text and "load 0.5 before" in text
    assert "quick run" not in text
    assert "quick run" in as_markdown(measured(), FACTS, quick=True)


def test_the_json_holds_every_number_with_its_verdict() -> None:
    found = json.loads(as_json(measured(Row("fast", 1.25, "ms", 2.0), Row("free", 4.0)), FACTS, quick=True))
    assert found["quick"] is True and found["facts"] == FACTS
    assert [(row["value"], row["target"], row["met"]) for row in found["sections"][0]["rows"]] == [(1.25, 2.0, True), (4.0, None, None)]


def test_the_summary_counts_rows_with_a_target_only() -> None:
    assert summary(measured(Row("a", 1, target=2), Row("b", 3, target=2), Row("c", 1))) == "1 of 2 targets are met."
