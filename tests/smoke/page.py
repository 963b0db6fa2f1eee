"""docs/reliability.md: ``python -m tests.smoke.page REPORT...`` puts what ``make smoke`` measured, and the promises, into it.
Rows that a report does not have stay as they are.

A test compares: the scenarios of the page are those of the suite, with the executions that each may cost, and its promises are these.
"""
from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.smoke.measured import COLUMNS, Costs, Measured, markdown
from tests.smoke.promises import PROMISES
from tests.smoke.scenario import IN_COMFYUI, SCENARIOS, Scenario

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
SOAK = "soak"
SOAK_ITEMS = 2000


def with_part(page: str, name: str, content: str) -> str:
    """The page with another content between the two marks of this name."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}{content}\n{end}{after}"


def part(page: str, name: str) -> str:
    """What is between these marks."""
    return page.partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- end of {name} -->")[0]


def promises_table() -> str:
    """Each promise with its test."""
    rows = []
    for promise in PROMISES.values():
        taken_out = f"`{promise.mutation.file}`" if promise.mutation else promise.why
        rows.append((promise.text, _reference(promise.test), taken_out))
    return markdown(rows, ("Promise", "Test", "Taken out in"))


def all_scenarios() -> dict[str, Scenario]:
    """In the order of the table."""
    return {**SCENARIOS, **IN_COMFYUI}


def measured_table(page: str, rows: Sequence[Measured]) -> str:
    """What the page has, each scenario that was measured again in place of what it had, in the order of the scenarios."""
    known = {cells[0]: cells for cells in cells_of(part(page, "measured"))} | {row.scenario: row.cells for row in rows}
    return markdown([known[name] for name in (*all_scenarios(), SOAK) if name in known])


def cells_of(table: str) -> list[list[str]]:
    """The rows of a table, without its head."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def rows_of(report: dict[str, Any]) -> list[Measured]:
    """What a report of ``make smoke`` holds."""
    return [Measured(**{**row, "costs": Costs(**row["costs"])}) for row in report["scenarios"]]


def faults_of(table: str) -> list[str]:
    """What of the page's table is not as the scenarios say."""
    rows, scenarios = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in cells_of(table)}, all_scenarios()
    missing = [f"{name}: not in the table" for name in [*scenarios, SOAK] if name not in rows]
    unknown = [f"{name}: no scenario" for name in rows if name not in scenarios and name != SOAK]
    bad = [f"{name}: not as promised" for name, row in rows.items() if not _is_kept(row)]
    dear = [f"{name}: not as many executions as expected" for name, row in rows.items() if not _is_within(row)]
    stale = [f"{name}: the scenario has changed" for name, row in rows.items() if name in scenarios and _is_stale(row, scenarios[name])]
    few = [f"{SOAK}: fewer than {SOAK_ITEMS} items"] if SOAK in rows and _items(rows[SOAK]) < SOAK_ITEMS else []
    return [*missing, *unknown, *bad, *dear, *stale, *few]


def _is_kept(row: Mapping[str, str]) -> bool:
    return row["Items lost"].startswith("0 of ") and (row["Counted twice"], row["Same bytes"]) == ("0", "yes")


def _items(row: Mapping[str, str]) -> int:
    return int(row["Items lost"].rpartition(" ")[2])


def _is_within(row: Mapping[str, str]) -> bool:
    least, _, most = row["Expected"].partition(" to ")
    return int(least) <= int(row["Executions"]) <= int(most or least)


def _is_stale(row: Mapping[str, str], scenario: Scenario) -> bool:
    """Some jobs are as long as their fault, but none is shorter than the scenario says."""
    items = _items(row)
    return items < scenario.items or (row["What is done"], row["Expected"]) != (scenario.fault, scenario.costs.of(items))


def _reference(test: str) -> str:
    file, _, name = test.partition("::")
    return f"[`{name or Path(file).stem}`](../{file})"


def named_tests(table: str) -> list[tuple[str, str]]:
    """File and test of each promise on the page."""
    return re.findall(r"\[`([^`]+)`\]\(\.\./([^)]+)\)", table)


def main(reports: list[str]) -> int:
    """Write the page; with no report only its promises."""
    page = PAGE.read_text(encoding="utf-8")
    page = with_part(page, "promises", promises_table())
    rows = [row for report in reports for row in rows_of(json.loads(Path(report).read_text(encoding="utf-8")))]
    if rows:
        page = with_part(page, "measured", measured_table(page, rows))
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    from tests.smoke import every_scenario  # noqa: F401 - fills the list

    sys.exit(main(sys.argv[1:]))
