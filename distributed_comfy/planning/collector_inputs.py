"""What a collector's own inputs ask for: how many items, and what to do about those that fail."""
from __future__ import annotations

from typing import cast

from distributed_comfy.errors import PromptMalformed
from distributed_comfy.messages import OnMissing, Prompt
from distributed_comfy.planning.values import literal_behind
from distributed_comfy.workflow.classes import (
    ITEMS_INPUT,
    LOAD_BALANCE_INPUT,
    ON_MISSING_CHOICES,
    ON_MISSING_INPUT,
    SAVE_PREFIX_INPUT,
    SWITCHED_ON,
)
from distributed_comfy.workflow.graph import as_link


def items_input(prompt: Prompt, collector: str, warnings: list[str]) -> int:
    """The number of items, also from a node that gives a literal; 0 where it asks for none, or (with a warning) only the run tells it.

    Raises:
        PromptMalformed: it is no whole number.
    """
    value = literal_behind(prompt, prompt[collector]["inputs"].get(ITEMS_INPUT, 0))
    if as_link(value):
        warnings.append(f"items of collector {collector} comes from another node and is not known before the run; it is ignored")
        return 0
    if not isinstance(value, int):
        raise PromptMalformed(source="the prompt", reason=f"items of collector {collector} is {value!r}, not a whole number")
    return value


def load_balance_input(prompt: Prompt, collector: str) -> bool:
    """Whether it asks for one item, of whoever is free."""
    return literal_behind(prompt, prompt[collector]["inputs"].get(LOAD_BALANCE_INPUT)) in SWITCHED_ON


def on_missing_input(prompt: Prompt, collector: str) -> OnMissing:
    """What it makes of items that failed for good.

    Raises:
        PromptMalformed: it is none of the three words.
    """
    value = literal_behind(prompt, prompt[collector]["inputs"].get(ON_MISSING_INPUT, "error"))
    if value not in ON_MISSING_CHOICES:
        reason = f"on_missing of collector {collector} is {value!r}, not one of {', '.join(ON_MISSING_CHOICES)}"
        raise PromptMalformed(source="the prompt", reason=reason)
    return cast("OnMissing", value)


def save_prefix_input(prompt: Prompt, collector: str, warnings: list[str]) -> str:
    """First part of the names of files that it saves as its values arrive; empty: it saves none, or (with a warning) only the run tells it.

    Raises:
        PromptMalformed: it is no text.
    """
    value = literal_behind(prompt, prompt[collector]["inputs"].get(SAVE_PREFIX_INPUT, ""))
    if as_link(value):
        warnings.append(f"save_prefix of collector {collector} comes from another node and is not known before the run; it is ignored")
        return ""
    if not isinstance(value, str):
        raise PromptMalformed(source="the prompt", reason=f"save_prefix of collector {collector} is {value!r}, not a text")
    return value.strip()
