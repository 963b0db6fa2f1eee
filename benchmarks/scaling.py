"""The demo's job on one worker and on two."""
from __future__ import annotations

import json
from importlib import resources
from typing import Any

from benchmarks.rig import Rig, open_rig
from benchmarks.rows import Row, Section, median, spread
from distributed_comfy.messages import Prompt
from distributed_comfy.orchestrator.delivery import Delivery
from distributed_comfy.orchestrator.run import RunOptions, SilentReporter, run_on
from distributed_comfy.orchestrator.submit import SubmitOptions, read_prompt

ITEMS = 16

HOW = f"""\
The prompt of `make demo` with {ITEMS} items, from submission to the last PNG in the output folder, on one worker and on two of the same
workers in turn; one CPU thread per worker. The share is (time on one) / (2 x time on two): 100 % is perfect. The workers, their
consumers, the collector and its PNG encoder share the cores of this machine, and whatever else runs on it."""


def run(*, quick: bool) -> Section:
    """See the module."""
    names = ["w0", "w1"]
    found: dict[int, list[Delivery]] = {1: [], 2: []}
    with open_rig(quick=quick) as rig:
        rig.start_workers(names)
        rig.use(names)
        _run(rig, 2 if quick else 4)  # the first item of each worker imports modules
        for _ in range(1 if quick else 5):
            for count, deliveries in found.items():
                rig.use(names[:count])
                deliveries.append(_run(rig, 2 if quick else ITEMS))
    one, two = ([delivery.seconds for delivery in found[count]] for count in (1, 2))
    busy = [sum(result.seconds for result in delivery.results.values()) / delivery.seconds / 2 for delivery in found[2]]
    rows = [
        Row("demo job on one worker, median", median(one), "s", note=spread(one, 2)),
        Row("demo job on two workers, median", median(two), "s", note=spread(two, 2)),
        Row("share of twice the speed", 100 * median(one) / (2 * median(two)), "%", note=f"engines busy {100 * median(busy):.0f} % on two"),
    ]
    return Section("Scaling", HOW, rows)


def _run(rig: Rig, items: int) -> Delivery:
    asked = SubmitOptions(items=items, engine="builtin")
    out = rig.folder / "out"
    delivery = run_on(rig.cluster, read_prompt(_demo_prompt(), asked), RunOptions(out, asked), SilentReporter())
    if delivery.error is not None:
        raise delivery.error
    return delivery


def _demo_prompt() -> Prompt:
    text = (resources.files("distributed_comfy.orchestrator") / "demo_prompt.json").read_text("utf-8")
    prompt: dict[str, Any] = json.loads(text)
    return prompt
