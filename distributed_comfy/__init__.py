"""Every GPU you own works on one ComfyUI prompt: durable queues, exact results, nothing lost.

    import distributed_comfy

    job = distributed_comfy.submit("graph.json", out="pictures", items=8)
    delivery = job.wait()
    print(delivery.paths)

`submit`, `watch`, `cancel` and `celery_app` are loaded when they are first used, because this package is also imported where none of what
they need is there: in ComfyUI's own interpreter.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed_comfy.orchestrator.api import Delivery, Job, JobState, cancel, celery_app, submit, watch

__version__ = "0.1.0"
"""This release; `setup.cfg` takes it from here."""

__all__ = ["Delivery", "Job", "JobState", "cancel", "celery_app", "submit", "watch"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from distributed_comfy.orchestrator import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
