"""Which file of this host a server runs from, by its process: what the server says of itself may not exist."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PROCESSES = Path("/proc")


def local_programs(info: Mapping[str, Any]) -> tuple[Path, ...]:
    """Names of the server's program on this host, likeliest first; empty where it cannot be seen, as that of a container.

    Started from a shell, a server tells its current folder and the word that was typed, which together name nothing; and the file that
    its process does name may be one of several names of one program (redis-server, redis-check-rdb).

    Args:
        info: the server's answer to INFO.
    """
    said, process = Path(str(info.get("executable", ""))), _PROCESSES / str(info.get("process_id", 0))
    try:
        command = (process / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace").split(" ")[0]
        if not said.name or Path(command).name != said.name:  # another host's or container's process id
            return ()
        running = (process / "exe").readlink()
        here = running.exists() and running.samefile(process / "exe")
    except PermissionError:  # another user's process: there is only its word
        return (said,) if said.is_file() else ()
    except OSError:
        return ()
    return _names(running, said) if here else ()


def _names(running: Path, said: Path) -> tuple[Path, ...]:
    """All names of one file: those that are called as the server says first."""
    names = {running, *(path for path in running.parent.iterdir() if path.exists() and path.samefile(running))}
    if said.is_file() and said.samefile(running):
        names.add(said)
    return tuple(sorted(names, key=lambda path: (path.name != said.name, path)))
