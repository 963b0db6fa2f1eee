"""Prompts for a master: what a script would post, with nodes that show what ran where and how long it takes."""
from __future__ import annotations

from typing import Any

from tests.prompts import node, out

Prompt = dict[str, Any]


def pictures(label: str, items: int = 4, *, seed: int = 100, steps: int = 1, side: int = 16, **collector: Any) -> Prompt:
    """seed -> a picture that shows it -> some steps of 20 ms -> collector -> the seeds that were collected, in a file."""
    return {
        "seed": node("DistributedSeed", seed=seed),
        "image": node("RuleImage", seed=out("seed"), width=side, height=side, batch_size=1, channels=3),
        "work": node("ProbeSteps", images=out("image"), steps=steps, stubborn=False, salt=0),
        "9": node("DistributedCollector", images=out("work"), items=items, **collector),
        "show": node("RuleRecord", images=out("9"), label=label),
    }


def plain_work(label: str, steps: int, salt: int = 1) -> Prompt:
    """A prompt without a collector that keeps ComfyUI busy; of the same salt and steps, once."""
    return {
        "image": node("RuleImage", seed=7, width=8, height=8, batch_size=1, channels=3),
        "work": node("ProbeSteps", images=out("image"), steps=steps, stubborn=False, salt=salt),
        "show": node("RuleRecord", images=out("work"), label=label),
    }
