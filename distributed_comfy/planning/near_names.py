"""What a misspelt node class or model most likely was meant to be, for messages."""
from __future__ import annotations

from collections.abc import Iterable

from distributed_comfy.config_file import nearest
from distributed_comfy.messages import Capability, Requirement


def meant(requirement: Requirement, capabilities: Iterable[Capability]) -> list[str]:
    """Of what no worker has, what is called much the same on one of them: ``KSampler instead of KSampelr``, in a stable order.

    Args:
        requirement: of a stage.
        capabilities: of all live workers.
    """
    workers = list(capabilities)
    classes = {name for worker in workers for name in worker.node_classes}
    asked = [(name, classes) for name in requirement.node_classes if name not in classes]
    for class_type, name, value in requirement.choices:
        known = {choice for worker in workers for choice in _choices(worker, class_type, name)}
        if known and value not in known:
            asked.append((value, known))
    return [f"{found} instead of {name}" for name, names in asked if (found := nearest(name, sorted(names)))]


def _choices(worker: Capability, class_type: str, name: str) -> tuple[str, ...]:
    index = worker.choices.get(class_type, {}).get(name)
    return () if index is None else worker.choice_lists[index]
