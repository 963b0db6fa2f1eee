"""docs/workers.md as its readers follow it: the command blocks of the page by name, and hosts on which they are typed."""
from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed_comfy.settings import Settings, variable
from tests.command_line import PROJECT, until
from tests.hosts import Host

PAGE = PROJECT / "docs" / "workers.md"
_MARK = re.compile(r"<!-- (?:on (?P<host>\w+): (?P<name>[\w-]+)|not run: (?P<why>[\w-]+)) -->")
_RUN = 'mount --bind "$0" /etc/hosts && exec bash -c "$1"'
"""Names of this host alone: `ip netns exec` gives each command a view of the file system of its own."""


@dataclass(frozen=True)
class Block:
    """Commands that stand together."""

    host: str
    """Where they are typed; empty: they are not run by us."""
    commands: tuple[str, ...]


def read_blocks(text: str) -> dict[str, Block]:
    """The indented blocks of a page by the names in the comments on the lines before them.

    Raises:
        AssertionError: a block has no comment, or a comment no block.
    """
    blocks: dict[str, Block] = {}
    for part in re.split(r"\n\s*\n", text):
        first, _, commands = part.partition("\n")
        if mark := _MARK.fullmatch(first):
            assert commands.startswith("    "), f"no commands follow {first}"
            blocks[mark["name"] or mark["why"]] = Block(mark["host"] or "", tuple(line.strip() for line in commands.splitlines()))
        else:
            assert not part.startswith("    "), f"nothing says where this is run: {part}"
    return blocks


@dataclass
class Site:
    """A host with a user of its own, who types what the page says."""

    host: Host
    folder: Path
    names: Mapping[str, str] = field(default_factory=dict)
    """Names of other hosts that this one knows -> addresses."""
    trusts: Path | None = None
    """Certificate that its system trusts; None: only those that this machine's does."""
    terminals: int = 0

    def environment(self) -> dict[str, str]:
        """The built-in engine on the CPU; nothing else is set."""
        settings = {variable(field) for field in Settings.model_fields}
        kept = {name: value for name, value in os.environ.items() if name not in settings and not name.startswith("XDG_")}
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ours = {
            "HOME": str(self.folder), "PATH": programs, "PYTHONPATH": str(PROJECT), "COLUMNS": "200", "DC_HOST": self.host.name,
            "DC_ENGINE": "builtin", "DC_DEVICE": "cpu", "DC_THREADS": "1",
            **({"SSL_CERT_FILE": str(self.trusts)} if self.trusts else {}),
        }  # fmt: skip
        return {**kept, **ours}

    def type(self, command: str) -> tuple[subprocess.Popen[str], Path]:
        """Start a command in a terminal of its own; the process, and the file with what it prints."""
        self.terminals += 1
        said = self.folder / f"said-{self.terminals}"
        hosts = self.folder / "hosts"
        hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in self.names.items()))
        with said.open("w") as file:
            process = self.host.start(
                "sh", "-c", _RUN, str(hosts), command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=self.folder,
                env=self.environment(), start_new_session=True,
            )  # fmt: skip
        return process, said

    def run(self, command: str, timeout_s: float = 90.0) -> str:
        """Run a command to its end, which must be a good one; what it printed."""
        process, said = self.type(command)
        assert process.wait(timeout_s) == 0, f"{command} on {self.host.name}: {said.read_text()}"
        return said.read_text()

    def ask(self, command: str) -> Any:
        """Run one of our commands; what it says as JSON."""
        return json.loads([line for line in self.run(f"{command} --json").splitlines() if line[:1] in "[{"][-1])

    def end_all(self, number: signal.Signals) -> None:
        """Send a signal to every command that still runs."""
        for process in self.host.processes:
            if process.poll() is None:
                process.send_signal(number)

    def pids(self) -> list[int]:
        """Everything that runs on this host."""
        found = subprocess.run(["ip", "netns", "pids", self.host.namespace], check=True, capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]


def wait_for(said: Path, text: str, process: subprocess.Popen[str], timeout_s: float = 120.0) -> None:
    """Wait until a command that goes on has printed something."""

    def printed() -> bool:
        assert process.poll() is None or text in said.read_text(), said.read_text()
        return text in said.read_text()

    try:
        until(printed, timeout_s)
    except AssertionError as error:
        raise AssertionError(f"{text!r} was not printed: {said.read_text()}") from error


def press_ctrl_c(process: subprocess.Popen[str], timeout_s: float = 60.0) -> int:
    """As a terminal sends it, to the whole foreground group; the exit status."""
    os.killpg(process.pid, signal.SIGINT)
    return process.wait(timeout_s)
