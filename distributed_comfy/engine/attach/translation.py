"""An item's prompt as one that a ComfyUI runs beside those of others: stock nodes in the place of ours, files in the claim's own folder.

A ComfyUI with the node pack of this project has our nodes; there only those are replaced that make jobs of prompts.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from distributed_comfy.engine.attach.capability import NodeListing
from distributed_comfy.engine.attach.captures import CLAIM_MARK, CapturePlan, claim_prefix, plan_capture
from distributed_comfy.engine.attach.supplies import Supply
from distributed_comfy.engine.catalogue import listed_choices, path_literals, spelled
from distributed_comfy.engine.refusals import refusal_of
from distributed_comfy.errors import WorkerLacks
from distributed_comfy.messages import Prompt, RunRequest
from distributed_comfy.workflow.classes import (
    CLAIM_INPUT,
    COLLECTOR_CLASS,
    COLLECTOR_SLOTS,
    EDGE_SLOT,
    MODEL_NAME_CLASS,
    OWN_CLASSES,
    SINK_CLASS,
    SLOTS_INPUT,
    SOURCE_CLASS,
    UPSCALE_CLASS,
)
from distributed_comfy.workflow.graph import Graph, Link, as_link
from distributed_comfy.workflow.services import (
    SLOT_TYPES,
    capturing,
    needed_services,
    running,
    supplying_nothing,
    wired_slots_of,
)

PREFIX_INPUT = "filename_prefix"

SupplyOf = Callable[[str, str], Supply]
"""Source and slot -> what stands for it; asked once for each slot that is used."""


@dataclass
class Translation:
    """What is queued in ComfyUI, and how its outcome is read."""

    prompt: Prompt
    captures: list[CapturePlan] = field(default_factory=list)
    origin: dict[str, str] = field(default_factory=dict)
    """Node of this prompt -> node of the item's prompt that it stands for; itself where it is not named."""
    targets: tuple[str, ...] = ()
    """Output nodes that must run."""


def translate(request: RunRequest, listing: NodeListing, supply_of: SupplyOf | None, worker: str) -> Translation:
    """Args:
        request: its prompt has the input files and the claim in place.
        listing: of ComfyUI's node classes.
        supply_of: brings what sources give into ComfyUI's input folder; None where ComfyUI has our nodes.
        worker: its name, for messages.
    Raises:
        WorkerLacks: something that stock nodes cannot do.
        ValidationRefused: a target that is no output node.
    """
    prompt = {node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in Graph(request.prompt).prune(request.targets).items()}
    work = _Work(request, listing, worker, prompt)
    work.require_outputs()
    if supply_of is None:
        work.require_no_job()
        work.pass_through(made_up=True)
    else:
        work.require_services()
        work.pass_through()
        work.replace_sources(supply_of)
        work.replace_sinks()
        work.show_names()
    work.free_outputs()
    work.spell_choices()
    return work.translation()


class _Work:
    """A prompt under translation."""

    def __init__(self, request: RunRequest, listing: NodeListing, worker: str, prompt: Prompt) -> None:
        self._request = request
        self._listing = listing
        self._worker = worker
        self._prompt = prompt
        self._captures: list[CapturePlan] = []
        self._origin: dict[str, str] = {}
        self._dropped: set[str] = set()

    def translation(self) -> Translation:
        own = [node for node in self._request.targets if node in self._prompt]
        targets = (*own, *(node for plan in self._captures for node in plan.tellers))
        return Translation(Graph(self._prompt).prune(targets), self._captures, self._origin, targets)

    def require_outputs(self) -> None:
        """ComfyUI would leave such a target out without a word."""
        outputs = {*self._listing.output_classes, *OWN_CLASSES}
        wrong = [node for node in self._request.targets if self._prompt[node]["class_type"] not in outputs]
        if wrong:
            raise refusal_of(None, {}, self._prompt, wrong)

    def require_services(self) -> None:
        """Sources are asked for by what they are fed with, which `supply_of` looks at."""
        needed = [one for one in needed_services(self._prompt, self._type_of) if not one.startswith("supplying")]
        missing = [service for service in needed if service not in self._listing.services()]
        if missing:
            raise WorkerLacks(worker=self._worker, lacks=", ".join(f"a way of {service}" for service in missing))

    def require_no_job(self) -> None:
        """A prompt with such a node would become a job of that ComfyUI."""
        if self._of_class(UPSCALE_CLASS):
            raise WorkerLacks(worker=self._worker, lacks=f"a way of {running(UPSCALE_CLASS)}")

    def pass_through(self, *, made_up: bool = False) -> None:
        """A collector that collects nothing gives what it gets.

        Args:
            made_up: whether a source of ours can make what such a collector gives at an output that nothing feeds.
        """
        for node_id in self._of_class(COLLECTOR_CLASS):
            inputs = self._prompt[node_id]["inputs"]
            for user, name, output in self._users(node_id):
                slot = COLLECTOR_SLOTS[output]
                if as_link(inputs.get(slot)) is None and made_up:
                    nothing = f"{node_id}~nothing"
                    self._add({nothing: {"class_type": SOURCE_CLASS, "inputs": {CLAIM_INPUT: "", SLOTS_INPUT: ""}}}, node_id)
                    self._prompt[user]["inputs"][name] = [nothing, output]
                    continue
                if as_link(inputs.get(slot)) is None:
                    raise WorkerLacks(worker=self._worker, lacks=f"a way of {supplying_nothing(SLOT_TYPES[slot])} (node {node_id})")
                self._prompt[user]["inputs"][name] = inputs[slot]
            del self._prompt[node_id]

    def replace_sources(self, supply_of: SupplyOf) -> None:
        """Nothing behind a source without values is run."""
        for node_id in self._of_class(SOURCE_CLASS):
            wired = wired_slots_of(self._prompt[node_id]["inputs"])
            made: dict[str, Supply] = {}
            for user, name, output in self._users(node_id):
                slot = EDGE_SLOT if EDGE_SLOT in wired else COLLECTOR_SLOTS[output]
                if slot not in wired:
                    raise WorkerLacks(worker=self._worker, lacks=f"a way of {supplying_nothing(SLOT_TYPES[slot])} (node {node_id})")
                if slot not in made:
                    made[slot] = supply_of(node_id, slot)
                    self._add(made[slot].nodes, node_id)
                self._feed(user, name, made[slot])
            del self._prompt[node_id]
        for node_id in Graph(self._prompt).downstream(self._dropped & self._prompt.keys()):
            del self._prompt[node_id]

    def replace_sinks(self) -> None:
        """A sink behind which nothing can arrive went with what feeds it."""
        counted = "GetImageSize" in self._listing.info and "PreviewAny" in self._listing.info
        for node_id in self._of_class(SINK_CLASS):
            for slot, value in self._prompt.pop(node_id)["inputs"].items():
                link = as_link(value)
                if slot == CLAIM_INPUT or link is None:
                    continue
                kind = SLOT_TYPES.get(slot) or self._type_of(link)
                if capturing(kind) not in self._listing.services():
                    raise WorkerLacks(worker=self._worker, lacks=f"a way of {capturing(kind)} (node {node_id})")
                plan, nodes = plan_capture((node_id, slot), kind, list(link), self._request.claim_id, counted=counted)
                self._captures.append(plan)
                self._add(nodes, node_id)

    def show_names(self) -> None:
        """DistributedModelName shows its text, and gives it to whoever is linked to it still."""
        for node_id in self._of_class(MODEL_NAME_CLASS):
            text = self._prompt[node_id]["inputs"].get("text", "")
            for user, name, _ in self._users(node_id):
                self._prompt[user]["inputs"][name] = text
            self._prompt[node_id] = {"class_type": "PreviewAny", "inputs": {"source": text}}

    def free_outputs(self) -> None:
        """Let each target write in this claim, into a folder of its own.

        Targets that take no prefix get a mark that makes them new to ComfyUI's cache, but for those of node packs: they may take any
        input.  Those are served from the cache with the files that they wrote before, which are there still.
        """
        for node_id in self._request.targets:
            node = self._prompt.get(node_id)
            if node is None or node["class_type"] not in self._listing.output_classes:
                continue
            prefix = node["inputs"].get(PREFIX_INPUT)
            if isinstance(prefix, str):
                node["inputs"][PREFIX_INPUT] = claim_prefix(self._request.claim_id, prefix)
            elif self._listing.is_stock(node["class_type"]):
                node["inputs"][CLAIM_MARK] = self._request.claim_id

    def spell_choices(self) -> None:
        """Write model names as ComfyUI's system lists them."""
        for node, name, value in path_literals(self._prompt):
            declared = self._listing.declared(node["class_type"]).get(name) if node["class_type"] in self._listing.info else None
            options = listed_choices(declared) if declared is not None else None
            if options is not None and value not in options:
                node["inputs"][name] = spelled(value, options)

    # -- the prompt -----------------------------------------------------------------------------------------------------
    def _feed(self, user: str, name: str, supply: Supply) -> None:
        if supply.empty:
            self._dropped.add(user)
        elif supply.link is not None:
            self._prompt[user]["inputs"][name] = list(supply.link)
        else:
            self._prompt[user]["inputs"][name] = supply.literal

    def _add(self, nodes: Prompt, origin: str) -> None:
        self._prompt.update(nodes)
        self._origin.update(dict.fromkeys(nodes, origin))

    def _of_class(self, class_type: str) -> tuple[str, ...]:
        return Graph(self._prompt).of_class(class_type)

    def _users(self, node_id: str) -> Iterator[tuple[str, str, int]]:
        return iter(Graph(self._prompt).consumers[node_id])

    def _type_of(self, link: Link) -> str:
        node = self._prompt.get(link.node_id)
        return self._listing.output_type(node["class_type"], link.slot) if node else ""


def placed_in(request: RunRequest, names: Mapping[str, str]) -> RunRequest:
    """The request with input files under the names that they have in ComfyUI's input folder.

    Args:
        names: name in this worker's input folder -> name there.
    """
    prompt = {node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in request.prompt.items()}
    for entry in request.input_files:
        value: Any = prompt[entry.node_id]["inputs"][entry.input]
        prompt[entry.node_id]["inputs"][entry.input] = names.get(value, value)
    return replace(request, prompt=prompt)
