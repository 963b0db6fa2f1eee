"""Imports without the garbage collector: what they make stays, and its looks through all of that are a quarter of a command's time."""
from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting_imports() -> Iterator[None]:
    """Collect no garbage while modules are imported, and leave what is there then out of every later collection."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if running:
            gc.enable()


def end_without_collection() -> None:
    """Let Python end this process without the collection that it makes for itself, of what the system takes back anyway.

    Whatever has to be ended is ended by its owner, or by `atexit`, whose calls come before this one.
    """
    atexit.register(gc.freeze)
