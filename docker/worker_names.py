"""Names of the workers of this container: written by ``start_workers.py``, read by the health check."""
from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

NAMES_FILE = Path(tempfile.gettempdir()) / "dc-worker-names"


def write_names(names: Sequence[str]) -> None:
    """Replace the list."""
    NAMES_FILE.write_text("\n".join(names), encoding="utf-8")


def read_names() -> list[str]:
    """The list; empty before it was written."""
    return NAMES_FILE.read_text(encoding="utf-8").split() if NAMES_FILE.is_file() else []
