"""The only place that prints: results on standard output, everything about how it goes on standard error."""
from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 200
"""Columns of a table that no terminal shows."""
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""What a terminal obeys instead of showing it, apart from tab and new line: names, reasons and logs come from other hosts."""
_UNESCAPED = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Of these what JSON may have as it is."""


class Output:
    """What one command prints.

    Args:
        as_json: standard output carries one JSON value and nothing else.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.results = _console(stderr=False)
        self.remarks = _console(stderr=True)
        self.spoke_at = time.monotonic()
        """When something was last said about how it goes."""
        self._formatter: logging.Formatter | None = None

    def write_remarks_as(self, formatter: logging.Formatter) -> None:
        """From here on standard error carries lines of the log only."""
        self._formatter = formatter

    def line(self, text: str) -> None:
        """A line of the log."""
        self.spoke_at = time.monotonic()
        self.remarks.print(Text(text), soft_wrap=True)

    def say(self, text: str = "", style: str = "") -> None:
        """A line of the result; nothing where the result is JSON."""
        if not self.as_json:
            self.results.print(Text(text, style), soft_wrap=True)

    def remark(self, text: str, style: str = "") -> None:
        """A line about how it goes."""
        self._remark("INFO", text, Text(text, style))

    def warn(self, text: str) -> None:
        """Something the user did not ask for and should know."""
        self._remark("WARNING", text, Text.assemble(("note: ", "yellow"), text))

    def complain(self, text: str) -> None:
        """Why the command failed."""
        self._remark("ERROR", text, Text.assemble(("error: ", "bold red"), text))

    def _remark(self, level: str, text: str, shown: Text) -> None:
        self.spoke_at = time.monotonic()
        if self._formatter is None:
            self.remarks.print(shown, soft_wrap=True)
        elif text:
            self.line(self._formatter.format(logging.makeLogRecord({"name": __name__, "levelname": level, "msg": text})))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
        """A table of the result.

        Args:
            columns: headings.
            rows: cells as text.
            right: headings of columns with numbers.
        """
        if not self.as_json:
            self.results.print(make_table(columns, rows, right=right))

    def result(self, value: Any) -> None:
        """The result as JSON; nothing where it is text."""
        if self.as_json:
            text = _UNESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
            self.results.print(Text(text), soft_wrap=True)


def make_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> Table:
    """A plain table; see `Output.table`."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def shown(text: str) -> str:
    """Text as it may be printed: what a terminal would obey has become a question mark."""
    return _CONTROL.sub("?", text)


class _Terminal(Console):
    """Prints no control characters but Rich's own, whatever is printed.

    Rich ends the thread that writes to a closed pipe, by SystemExit; whoever waits for that thread's work would wait for ever.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """All that is ever printed passes here, in pieces of one style."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=shown(segment.text))

    def on_broken_pipe(self) -> None:
        """Called while the error is handled."""
        raise  # the BrokenPipeError itself, for `Commands.main` and `OutputHandler.emit`


def _console(*, stderr: bool) -> Console:
    console = _Terminal(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console
