"""Installs torch into the environment of the Python that runs this: the CPU build where the machine has no NVIDIA GPU.

Says in one line what it is about to download, from where and why.  Reads TORCH_SPEC (a pip requirement) and TORCH_INDEX (a package
index, which wins over every rule here).  Standard library only.
"""
from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

DEFAULT_SPEC = "torch==2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_TIMEOUT_S = 5.0
CUDA_SIZE = "several GB with its CUDA packages"


@dataclass(frozen=True)
class Machine:
    """What decides which build of torch is of use here."""

    system: str
    """``Linux``, ``Darwin`` or ``Windows``."""
    has_nvidia: bool
    """True where ``nvidia-smi`` runs."""


@dataclass(frozen=True)
class Choice:
    """One way to get torch."""

    spec: str
    index: str
    """Index to take it from; empty: the one that pip is configured with."""
    build: str
    """What will come, for people."""
    why: str

    def line(self) -> str:
        """The one line that is shown before anything is downloaded."""
        return f"torch: downloading {self.spec} ({self.build}) from {self.index or 'the package index pip is set up with'}: {self.why}"


def choices(spec: str, index: str, machine: Machine, *, answers: Callable[[str], bool]) -> list[Choice]:
    """The ways to get torch on this machine, the best first; the next one is for when pip fails with the one before.

    Args:
        spec: pip requirement.
        index: what the user named, or empty.
        answers: tells whether an index can be reached; asked only where its answer matters.
    """
    if index:
        return [Choice(spec, index, "the build of that index", "TORCH_INDEX is set")]
    if machine.system != "Linux":
        return [Choice(spec, "", "the usual build for this system", f"{machine.system} gets its build from the default index")]
    if machine.has_nvidia:
        return [Choice(spec, "", CUDA_SIZE, "this machine has an NVIDIA GPU")]
    if answers(CPU_INDEX):
        why_not = "the CPU index has no such build"
        best = [Choice(spec, CPU_INDEX, "CPU build, about 200 MB", "this machine has no NVIDIA GPU")]
    else:
        why_not, best = f"this machine has no NVIDIA GPU, but {CPU_INDEX} does not answer", []
    return [*best, Choice(spec, "", f"a CPU build if that index has one, else {CUDA_SIZE}", why_not)]


def index_answers(url: str, timeout_s: float = PROBE_TIMEOUT_S) -> bool:
    """True if the package index lists torch; looked up in a thread, because a name lookup may hang longer than any timeout."""
    answered: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{url}/torch/", method="HEAD"), timeout=timeout_s) as reply:
                answered.append(reply.status == 200)
        except (OSError, ValueError):  # URLError is an OSError
            answered.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answered == [True]


def this_machine() -> Machine:
    """The machine this runs on."""
    return Machine(platform.system(), _nvidia_smi_works())


def _nvidia_smi_works() -> bool:
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        return subprocess.run([program, "-L"], capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def is_installed(spec: str) -> bool:
    """True if this environment already satisfies ``spec``: pip accepts it without any index to take it from."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", spec]
    return subprocess.run(command, env={**alone, "PIP_CONFIG_FILE": os.devnull}, capture_output=True, check=False).returncode == 0


def install(choice: Choice) -> bool:
    """Let pip do what ``choice`` says; False if it could not."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", choice.spec]
    command += ["--index-url", choice.index] if choice.index else []
    command += [] if sys.stdout.isatty() else ["-qq"]
    return subprocess.run(command, check=False).returncode == 0


def main() -> int:
    """Exit status 0 if torch is there afterwards."""
    spec = os.environ.get("TORCH_SPEC") or DEFAULT_SPEC
    if is_installed(spec):
        return 0
    for choice in choices(spec, os.environ.get("TORCH_INDEX", ""), this_machine(), answers=index_answers):
        print(choice.line(), flush=True)
        if install(choice):
            return 0
    print(f"torch: pip could not install {spec} (its reason is above); choose another with TORCH_SPEC=torch==VERSION, "
          "or another index with TORCH_INDEX=URL", file=sys.stderr)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
