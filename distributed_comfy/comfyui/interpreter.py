"""Whether ComfyUI's interpreter can import this package, in this version, and the command that mends it where it cannot."""
from __future__ import annotations

import importlib.metadata
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from distributed_comfy import __version__
from distributed_comfy.comfyui.installing import Place
from distributed_comfy.engine.locate import find_interpreter
from distributed_comfy.errors import PackNotImportable
from distributed_comfy.settings import Settings, changed

_TIMEOUT_S = 120.0
"""The first import from a slow disk takes long."""
_PROJECT = "distributed-comfy"
_ROOT = Path(__file__).resolve().parents[2]
_ASK = """
import json, sys
version = path = why = ""
try:
    import distributed_comfy
    version, path = distributed_comfy.__version__, distributed_comfy.__file__
    from distributed_comfy.orchestrator.doctor.packages import refuse_foreign_packages
    refuse_foreign_packages()
    import distributed_comfy.comfyui.pack, distributed_comfy.comfyui.all_routes
except Exception as error:
    why = f"{type(error).__name__}: {error}"
print("ANSWER", json.dumps([version, path, why]))
"""


@dataclass(frozen=True)
class Importable:
    """What an interpreter says about this package."""

    python: str
    version: str
    """Empty where it does not find the package."""
    path: str
    reason: str
    """Why it cannot be used, as the end of a sentence; empty where it can."""

    @property
    def remedy(self) -> str:
        """The command that installs this version there."""
        return command_line([self.python, "-m", "pip", "install", package_source()])

    def require(self) -> None:
        """
        Raises:
            PackNotImportable: it cannot be used.
        """
        if self.reason:
            raise PackNotImportable(python=self.python, reason=self.reason, remedy=self.remedy)


def comfyui_python(settings: Settings, place: Place, named: str = "") -> str:
    """The interpreter of a ComfyUI: the one that was named, else the setting, else its own, else this one.

    Args:
        settings: of this command.
        place: where ComfyUI is; the desktop app has its interpreter in the base directory.
        named: by the user.
    Raises:
        SettingInvalid: the setting names no program.
    """
    if named:
        settings = changed(settings, comfyui_python=named)
    folders = (place.custom_nodes.parent, place.tree or place.custom_nodes.parent)
    found = (find_interpreter(settings, folder) for folder in folders)
    return next((python for python in found if python != sys.executable), sys.executable)


def ask(python: str, folder: Path) -> Importable:
    """Ask an interpreter.

    Args:
        python: the program.
        folder: in which ComfyUI runs, because Python looks there too.
    """
    try:
        done = subprocess.run(
            [python, "-c", _ASK], capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False, cwd=folder,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return Importable(python, "", "", f"cannot be asked for the package ({error})")
    answer = next((line for line in reversed(done.stdout.splitlines()) if line.startswith("ANSWER ")), "")
    if not answer:
        last = (done.stderr.strip().splitlines() or ["no words"])[-1]
        return Importable(python, "", "", f"ended with status {done.returncode} when it was asked for the package ({last})")
    version, path, why = json.loads(answer.removeprefix("ANSWER "))
    if why:
        return Importable(python, version, path, f"cannot import distributed-comfy {__version__} ({why})")
    if version != __version__:
        return Importable(python, version, path, f"has distributed-comfy {version} in {path}, and this command is {__version__}")
    return Importable(python, version, path, "")


def package_source() -> str:
    """What this copy of the package was installed from, as pip takes it."""
    if (_ROOT / "setup.cfg").is_file() and (_ROOT / "distributed_comfy").is_dir():
        return str(_ROOT)
    try:
        text = importlib.metadata.distribution(_PROJECT).read_text("direct_url.json") or ""
    except importlib.metadata.PackageNotFoundError:
        text = ""
    if text:
        facts = json.loads(text)
        commit = facts.get("vcs_info", {})
        return f"{commit['vcs']}+{facts['url']}@{commit['commit_id']}" if commit else str(facts["url"])
    return f"{_PROJECT}=={__version__}"


def command_line(words: list[str]) -> str:
    """Words as the shell of this system takes them."""
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)
