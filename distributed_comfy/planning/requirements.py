"""What a stage needs from a worker, and which worker has it; each pair of signature and hash is compared once."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from distributed_comfy.messages import Capability, Patch, Prompt, Requirement, content_hash, to_plain
from distributed_comfy.planning.facts import ClassFacts
from distributed_comfy.workflow.classes import OWN_CLASSES

_LONGEST_CHOICE = 512
"""Characters; a longer literal of an unknown class is text, not the name of a file or a mode."""
_MODEL_SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".gguf", ".onnx", ".engine")


def requirement_of(
    prompt: Prompt, facts: ClassFacts, *, patches: Iterable[Patch] = (), engine: str = "", tags: Iterable[str] = ()
) -> Requirement:
    """What a worker must have to run every node of ``prompt``.

    Choices are the string literals of inputs that offer a list on some known worker, or whose class no known worker has. Inputs that
    name a file to bring along are never among them.

    Args:
        prompt: a stage's prompt, pruned to what runs.
        facts: about the node classes, see `ClassFacts`.
        patches: what single items have instead; a worker must be able to run every item of the stage.
        engine: ``comfyui``, ``builtin`` or empty for any.
        tags: what the worker must carry.
    """
    literals = [(node["class_type"], name, value) for node in prompt.values() for name, value in node["inputs"].items()]
    literals += [(prompt[patch.node_id]["class_type"], patch.input, patch.value) for patch in patches]
    choices = {
        (class_type, name, normalise(value))
        for class_type, name, value in literals
        if isinstance(value, str) and class_type not in OWN_CLASSES and _may_bind(facts, class_type, name, value)
    }
    classes = {node["class_type"] for node in prompt.values()} - OWN_CLASSES
    return Requirement(engine, tuple(sorted(classes)), tuple(sorted(choices)), tuple(sorted(set(tags))))


def united(requirements: Iterable[Requirement]) -> Requirement:
    """What a worker must have to run any of several stages of one job."""
    every = tuple(requirements)
    return replace(
        every[0],
        node_classes=tuple(sorted({name for one in every for name in one.node_classes})),
        choices=tuple(sorted({choice for one in every for choice in one.choices})),
    )


def _may_bind(facts: ClassFacts, class_type: str, name: str, value: str) -> bool:
    if not facts.offers_list(class_type, name):
        return False
    return facts.is_known(class_type) or (len(value) <= _LONGEST_CHOICE and "\n" not in value)


def normalise(value: str) -> str:
    """A model name as every system would write it: ``/`` between folders."""
    return value.replace("\\", "/")


def signature(requirement: Requirement) -> str:
    """Equal for equal requirements: 32 hexadecimal digits."""
    return content_hash(to_plain(requirement))


def capability_hash(capability: Capability) -> str:
    """Equal for workers that can run the same things, whichever of their devices they use: 32 hexadecimal digits."""
    return content_hash(to_plain(replace(capability, device="")))


def matches(requirement: Requirement, capability: Capability) -> bool:
    """True where a worker of this capability can run the stage."""
    return not lacks(requirement, capability)


def lacks(requirement: Requirement, capability: Capability) -> list[str]:
    """What this worker lacks, in words, in a stable order; empty where it can run the stage."""
    missing = []
    if requirement.engine and requirement.engine != capability.engine:
        missing.append(f"engine {requirement.engine} (it has {capability.engine})")
    if requirement.device_class and requirement.device_class != capability.device_class:
        missing.append(f"device class {requirement.device_class} (it has {capability.device_class})")
    missing += [f"tag {tag}" for tag in requirement.tags if tag not in capability.tags]
    has = set(capability.node_classes)
    missing += [f"node class {name}" for name in requirement.node_classes if name not in has]
    for class_type, name, value in requirement.choices:
        if not offers(capability, class_type, name, value):
            missing.append(f"{'model' if is_model_name(value) else 'value'} {value!r} for {class_type}.{name}")
    return missing


def common_class(requirement: Requirement, last: Requirement | None, live: Iterable[Capability]) -> str:
    """The device class to which a job is restricted that wants all its tiles from one.

    The one with the most workers that can run its items; one that can run its last stage, too, before others.

    Returns:
        Empty where no worker can run the items.
    """
    workers = list(live)
    capable = Counter(one.device_class for one in workers if matches(requirement, one))
    whole = {one.device_class for one in workers if last is None or matches(last, one)}
    ranked = sorted(capable, key=lambda name: (name not in whole, -capable[name], name))
    return ranked[0] if ranked else ""


def offers(capability: Capability, class_type: str, name: str, value: str) -> bool:
    """True where the value is in the list, and where there is no list to be in."""
    index = capability.choices.get(class_type, {}).get(name)
    if index is None or capability.file_inputs.get(class_type, {}).get(name):
        return True
    return value in capability.choice_lists[index]


def is_model_name(value: str) -> bool:
    """True for what is called like the file of a model."""
    return value.lower().endswith(_MODEL_SUFFIXES)
