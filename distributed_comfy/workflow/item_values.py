"""What a DistributedValue says: one literal for each item, from a default and a JSON map; the same for planning and the node class."""
from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

_KINDS = ("STRING", "COMBO", "INT", "FLOAT")


@dataclass(frozen=True)
class ItemValues:
    """A literal for each item."""

    default: Any
    """Item 0's, and that of every item without one of its own."""
    own: Mapping[int, Any] = field(default_factory=dict)
    """Item (from 1) -> its literal."""
    faults: tuple[str, ...] = ()
    """What could not be read, in words; the default stands in for it."""

    def of(self, index: int) -> Any:
        """Item ``index``'s literal."""
        return self.own.get(index, self.default)

    def mapped(self, change: Callable[[Any], Any]) -> ItemValues:
        """Every literal changed in the same way."""
        return replace(self, default=change(self.default), own={index: change(value) for index, value in self.own.items()})


def read_item_values(default_value: Any, worker_values: Any) -> ItemValues:
    """Read the two inputs of a DistributedValue.

    Args:
        default_value: a literal; with ``_type`` INT or FLOAT it is converted where that works.
        worker_values: JSON object, or a dict: ``"1"``, ``"2"``... -> the literal of item 1, 2...; ``_type`` is STRING, COMBO, INT or
            FLOAT, without it that of the default. An empty text counts as no value.
    """
    given, faults = _object(worker_values)
    kind = given.get("_type")
    kind = kind if kind in _KINDS else _kind_of(default_value)
    convert = _CONVERSIONS.get(kind, _as_it_is)
    own: dict[int, Any] = {}
    for key, value in given.items():
        if key.startswith("_") or value is None or value == "":
            continue
        if not (key.isdecimal() and key.isascii() and int(key) > 0):
            faults.append(f"{key!r} is no item number from 1")
            continue
        try:
            own[int(key)] = convert(value)
        except (TypeError, ValueError, OverflowError):
            faults.append(f"{value!r} of item {key} is no {kind}")
    try:
        default_value = convert(default_value)
    except (TypeError, ValueError, OverflowError):  # as in ComfyUI-Distributed: it goes on as it is
        pass
    return ItemValues(default_value, own, tuple(faults))


def _object(worker_values: Any) -> tuple[dict[str, Any], list[str]]:
    try:
        given = json.loads(worker_values) if isinstance(worker_values, str) and worker_values.strip() else worker_values or {}
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        return {}, ["worker_values is no JSON object"]
    return given, []


def _kind_of(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "STRING"
    return "INT" if isinstance(value, int) else "FLOAT"


def _whole(value: Any) -> int:
    try:
        return int(value) if isinstance(value, (str, int)) else int(float(value))
    except ValueError:
        return int(float(value))  # "4.0"


def _real(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not a finite number")
    return number


def _as_it_is(value: Any) -> Any:
    if not isinstance(value, (str, int, float)):
        raise TypeError(f"{value!r} is no single value")
    return value


_CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {"INT": _whole, "FLOAT": _real}
