"""Which workers there are, for commands that take the name of one."""
from __future__ import annotations

from collections.abc import Collection

from distributed_comfy.config_file import nearest
from distributed_comfy.errors import WorkerUnknown

_SHOWN = 12


def unknown_worker(name: str, known: Collection[str]) -> WorkerUnknown:
    """The error for a name that no worker has, with the names that there are."""
    if not known:
        return WorkerUnknown(name=name, known=" (there is none)")
    near = nearest(name, known)
    listed = sorted(known)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    meant = f"; did you mean {near}?" if near else ""
    return WorkerUnknown(name=name, known=f" (there are {', '.join(listed[:_SHOWN])}{more}{meant})")
