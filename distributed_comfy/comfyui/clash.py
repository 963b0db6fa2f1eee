"""Two packs with the same node classes in one ComfyUI: the one that was loaded first has them, and the log says so in one line."""
from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from distributed_comfy.comfyui.host import ComfyHost
from distributed_comfy.nodes.registry import USER_CLASSES
from distributed_comfy.workflow.classes import COLLECTOR_CLASS, SEED_CLASS, UPSCALE_CLASS, VALUE_CLASS

log = logging.getLogger(__name__)

_ESSENTIAL = {COLLECTOR_CLASS, SEED_CLASS, UPSCALE_CLASS, VALUE_CLASS}
"""Without these the pack cannot work."""
_REMEDY = "keep one of the two packs: rename the folder of the other to something.disabled, and start ComfyUI again"


def others(host: ComfyHost, classes: Mapping[str, type]) -> dict[str, str]:
    """Those of our class names, as users know them, that another pack has, each with the pack."""
    there = host.nodes.NODE_CLASS_MAPPINGS
    return {name: _pack_of(there[name]) for name in classes if name in there and there[name] is not classes[name] and name in USER_CLASSES}


def must_yield(host: ComfyHost, classes: dict[str, type]) -> bool:
    """Leave to other packs what they have; true where that is so much that ours has to stay out.

    Args:
        host: in which our classes are not yet.
        classes: ours; those that others have are taken out.
    """
    taken = others(host, classes)
    if not taken:
        return False
    whose, names = ", ".join(sorted(set(taken.values()))), ", ".join(sorted(taken))
    if taken.keys() & _ESSENTIAL:
        log.warning("%s was loaded first and has %s: distributed-comfy stays out of this ComfyUI; %s", whose, names, _REMEDY)
        return True
    log.warning("%s was loaded first and keeps %s; all else is ours", whose, names)
    for name in taken:
        del classes[name]
    return False


def keep_classes(host: ComfyHost, classes: Mapping[str, type]) -> None:
    """When ComfyUI has loaded all packs: put ours back where one that came later has replaced them."""

    async def put_back(_application: Any) -> None:
        taken = others(host, classes)
        if taken:
            whose, names = ", ".join(sorted(set(taken.values()))), ", ".join(sorted(taken))
            log.warning("%s also has %s: distributed-comfy was loaded first and keeps them; %s", whose, names, _REMEDY)
        host.nodes.NODE_CLASS_MAPPINGS.update(classes)

    host.server.app.on_startup.append(put_back)


def _pack_of(node_class: type) -> str:
    """ComfyUI notes the folder at each class of a pack."""
    return str(getattr(node_class, "RELATIVE_PYTHON_MODULE", node_class.__module__)).removeprefix("custom_nodes.")
