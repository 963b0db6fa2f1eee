"""Runs inside a real ComfyUI tree (its folder is the working directory): the node classes with links of many types.

Prints one JSON object on the last line; the test beside it starts this and looks at that.
"""
from __future__ import annotations

import asyncio
import importlib
import json
import sys
import tempfile
from collections.abc import Callable
from typing import Any

sys.path.insert(0, "")
FOLDER = tempfile.mkdtemp()
sys.argv = ["main.py", "--cpu", "--output-directory", FOLDER, "--temp-directory", FOLDER]
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
importlib.import_module("utils.extra_config")  # before server, which hides this package
import execution  # noqa: E402
import nodes  # noqa: E402
import server  # noqa: E402
import torch  # noqa: E402
from comfy_execution.graph import ExecutionBlocker  # noqa: E402

from distributed_comfy.nodes.registry import DISPLAY_NAMES, node_classes  # noqa: E402

CAPTURED: dict[str, dict[str, list[Any]]] = {}
FEED: dict[tuple[str, str], list[Any]] = {}


class Board:
    """Context that keeps everything in this process."""

    def capture(self, node_id: str, slot: str, values: list[Any]) -> None:
        """Keep."""
        CAPTURED.setdefault(node_id, {})[slot] = values

    def supply(self, node_id: str, slot: str) -> list[Any]:
        """Give."""
        return FEED.get((node_id, slot), [])


class ListMaker:
    """A list of three images with two frames each, a blocked value, and how often it ran."""

    RETURN_TYPES = ("IMAGE", "IMAGE", ["a", "b"])
    OUTPUT_IS_LIST = (True, False, False)
    FUNCTION = "make"
    CATEGORY = "test"
    runs = 0

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration."""
        return {"required": {"seed": ("INT", {"max": 2**64 - 1})}}

    def make(self, seed: int) -> tuple[Any, Any, str]:
        """Values that tell the list position."""
        ListMaker.runs += 1
        return [torch.full((2, 4, 4, 3), float(position)) for position in range(3)], ExecutionBlocker(None), "a"


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """One node."""
    return {"class_type": class_type, "inputs": inputs}


FEEDERS = {
    "IMAGE": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
    "MASK": node("SolidMask", value=1.0, width=8, height=8),
    "LATENT": node("EmptyLatentImage", width=64, height=64, batch_size=1),
    "INT": node("PrimitiveInt", value=5),
    "FLOAT": node("PrimitiveFloat", value=0.5),
    "STRING": node("PrimitiveString", value="hi"),
    "BOOLEAN": node("PrimitiveBoolean", value=True),
    "SIGMAS": node("KarrasScheduler", steps=2, sigma_max=1.0, sigma_min=0.1, rho=7.0),
    "SAMPLER": node("KSamplerSelect", sampler_name="euler"),
    "NOISE": node("RandomNoise", noise_seed=2**64 - 1),
}
CONSUMERS: dict[str, Callable[[list[Any]], dict[str, Any]]] = {
    "IMAGE": lambda link: node("ImageInvert", image=link),
    "MASK": lambda link: node("InvertMask", mask=link),
    "LATENT": lambda link: node("LatentUpscaleBy", samples=link, upscale_method="bilinear", scale_by=1.0),
    "INT": lambda link: node("EmptyImage", width=link, height=8, batch_size=1, color=0),
    "FLOAT": lambda link: node("SolidMask", value=link, width=8, height=8),
    "STRING": lambda link: node("StringLength", string=link),
    "COMBO": lambda link: node("ImageScaleBy", image=["feed", 0], upscale_method=link, scale_by=1.0),
}


def valid(prompt: dict[str, Any], targets: list[str]) -> bool:
    """True where ComfyUI accepts every target."""
    accepted, error, good, errors = asyncio.run(execution.validate_prompt("p", prompt, targets))
    if not accepted or sorted(good) != sorted(targets):
        sys.stderr.write(f"{error} {errors}\n")
        return False
    return True


def validated_sinks() -> dict[str, bool]:
    """Type -> whether a sink takes a link of it."""
    found = {}
    for kind, feeder in FEEDERS.items():
        found[kind] = valid({"feed": feeder, "feed~0": node("DistributedSink", claim_id="c", value=["feed", 0])}, ["feed~0"])
    lists = {"feed": node("ListMaker", seed=1), "sink": node("DistributedSink", claim_id="c", images=["feed", 0], value=["feed", 2])}
    found["COMBO"] = valid(lists, ["sink"])
    return found


def validated_sources() -> dict[str, bool]:
    """Type -> whether an input of it takes an edge's source."""
    found = {}
    for kind, make in CONSUMERS.items():
        prompt = {
            "x~0": node("DistributedSource", claim_id="c", slots="value"),
            "feed": FEEDERS["IMAGE"],
            "use": make(["x~0", 0]),
            "sink": node("DistributedSink", claim_id="c", value=["use", 0]),
        }
        found[kind] = valid(prompt, ["sink"])
    return found


def run(executor: Any, prompt: dict[str, Any], targets: list[str]) -> bool:
    """Execute; True where ComfyUI reports success."""
    CAPTURED.clear()
    assert valid(prompt, targets)
    executor.execute(prompt, "p", {}, targets)
    return [event for event, _ in executor.status_messages][-1] == "execution_success"


def item(claim_id: str, slot: int = 0) -> dict[str, Any]:
    """An item's prompt."""
    return {"feed": node("ListMaker", seed=1), "9": node("DistributedSink", claim_id=claim_id, images=["feed", slot])}


def last(claim_id: str) -> dict[str, Any]:
    """A last stage's prompt: a collector, a list on an edge, and one passing collector."""
    return {
        "9": node("DistributedSource", claim_id=claim_id, slots="images"),
        "feed~0": node("DistributedSource", claim_id=claim_id, slots="value"),
        "flip": node("ImageInvert", image=["9", 0]),
        "again": node("DistributedCollector", images=["flip", 0], load_balance=False, pass_through=True),
        "batch": node("ImageBatch", image1=["9", 0], image2=["feed~0", 0]),
        "a": node("DistributedSink", claim_id=claim_id, images=["again", 0], audio=["9", 1]),
        "b": node("DistributedSink", claim_id=claim_id, value=["batch", 0]),
        "c": node("DistributedSink", claim_id=claim_id, audio=["again", 1]),
    }


def executed() -> dict[str, Any]:
    """What running items and a last stage gives."""
    executor = execution.PromptExecutor(server.PromptServer.instance)
    report: dict[str, Any] = {"item": run(executor, item("1"), ["9"])}
    report["list"] = [(list(value.shape), value.mean().item()) for value in CAPTURED["9"]["images"]]
    report["again"] = run(executor, item("2"), ["9"]) and "9" in CAPTURED
    report["upstream_runs"] = ListMaker.runs
    report["blocked"] = (run(executor, item("3", 1), ["9"]), "9" in CAPTURED)
    FEED["9", "images"] = [torch.full((5, 4, 4, 3), 0.25)]
    FEED["feed~0", "value"] = [torch.full((1, 4, 4, 3), 0.5), torch.full((1, 4, 4, 3), 0.75)]
    report["last"] = run(executor, last("4"), ["a", "b", "c"])
    report["batch"] = [(list(value.shape), value.mean().item()) for value in CAPTURED["a"]["images"]]
    sounds = [CAPTURED[sink]["audio"][0] for sink in "ac"]
    report["silence"] = [(list(sound["waveform"].shape), sound["sample_rate"]) for sound in sounds]
    report["edge_list"] = [list(value.shape) for value in CAPTURED["b"]["value"]]
    FEED["9", "images"] = []
    report["nothing"] = (run(executor, last("5"), ["a", "b", "c"]), sorted(CAPTURED))
    return report


def main() -> None:
    """Load the tree and print what was found."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    server.PromptServer(loop).client_id = None
    loop.run_until_complete(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    nodes.NODE_CLASS_MAPPINGS.update(node_classes(Board(), nothing=[ExecutionBlocker(None)]))
    nodes.NODE_CLASS_MAPPINGS["ListMaker"] = ListMaker
    nodes.NODE_DISPLAY_NAME_MAPPINGS.update(DISPLAY_NAMES)
    shown = {name: json.loads(json.dumps(nodes.NODE_CLASS_MAPPINGS[name].INPUT_TYPES())) for name in DISPLAY_NAMES}
    report = {"shown": shown, "sinks": validated_sinks(), "sources": validated_sources(), **executed()}
    sys.stdout.write(f"\n{json.dumps(report)}\n")


main()
