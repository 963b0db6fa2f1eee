"""What the GPU benchmark reads out of a trace."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu_trace import Event, Trace, work


def item(begin: float) -> list[Event]:
    """Two steps of 0.5 s and a decode of 1 s; 2 s in all."""
    times = [("sample:begin", -0.1), ("step", 0.0), ("step", 0.5), ("sample:end", 1.0), ("decode:begin", 1.0), ("decode:end", 2.0)]
    return [Event(begin + after, name, {}) for name, after in times]


def test_the_gap_is_from_the_end_of_a_decode_to_the_next_model_call() -> None:
    found = work([*item(10.0), *item(12.25), *item(14.75)])
    assert found.gaps == pytest.approx([0.25, 0.5])
    assert found.periods == pytest.approx([2.25, 2.5])
    assert found.steps == pytest.approx([0.5, 0.5, 0.5])
    assert found.decodes == pytest.approx([1.0, 1.0, 1.0])
    assert found.busy == pytest.approx(6.0 / 6.75)


def test_loads_are_counted_and_the_highest_peak_is_kept() -> None:
    events = [Event(0, "read", {}), Event(0, "read", {}), Event(0, "to_device", {"bytes": 3})]
    events += [Event(0, "prompt:end", {"peak": peak}) for peak in (5, 9, 7)]
    found = work(events)
    assert (found.reads, found.moves, found.peak_bytes) == (2, 1, 9)


def test_a_line_that_is_still_being_written_is_read_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "1"
    line = json.dumps({"at": 1.0, "event": "sample", "phase": "end"}) + "\n"
    path.write_text(line + line[:10])
    trace = Trace(path)
    assert [event.name for event in trace.events()] == ["sample:end"]
    path.write_text(line + line)
    assert [event.name for event in trace.events()] == ["sample:end", "sample:end"]
