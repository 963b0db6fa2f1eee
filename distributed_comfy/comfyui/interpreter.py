"""Whether ComfyUI's interpreter can import this package, in this version, and the command that mends it where it cannot."""
from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from distributed_comfy import __version__
from distributed_comfy.comfyui.installing import Place
from distributed_comfy.engine.locate import find_interpreter
from distributed_comfy.errors import PackNotImportable, SettingInvalid
from distributed_comfy.settings import Settings

_TIMEOUT_S = 120.0
"""The first import from a slow disk takes long."""
_COMFYUI_NEEDS = ("torch", "torchsde")
"""Packages that ComfyUI asks for, and nothing of ours asks for all of them."""
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
    """The interpreter of a ComfyUI.

    The one that was named, else the setting; else this one, where it lies in ComfyUI's folders or beside them; else the one in the folder
    that the user gave; else this one, where it has what ComfyUI needs; else that of the ComfyUI which is known otherwise; else this one.

    Args:
        settings: of this command.
        place: where ComfyUI is; the desktop app has its interpreter in the base directory.
        named: by the user.
    Raises:
        SettingInvalid: what was named, or the setting, is no Python.
    """
    for name, program in (("--python", named), ("DC_COMFYUI_PYTHON", settings.comfyui_python)):
        if program:
            return _checked(program, name)
    base = place.custom_nodes.parent
    tree = place.tree or base
    if _lies_at(base) or _lies_at(tree):
        return sys.executable
    known = [find_interpreter(settings, base)]
    if not _has(*_COMFYUI_NEEDS):
        known.append(find_interpreter(settings, tree))
    return next((python for python in known if python != sys.executable), sys.executable)


def _checked(program: str, name: str) -> str:
    """The absolute path of a Python; ``name`` is what the user gave it by."""
    found = shutil.which(os.path.expanduser(program))
    if found is None:
        raise SettingInvalid(name=name, reason=f"{program} is not a program")
    try:  # not with -c: any shell would take our words for its own
        done = subprocess.run(
            [found, "-V"], capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SettingInvalid(name=name, reason=f"{program} cannot be asked whether it is a Python ({error})") from error
    if done.returncode or not (done.stdout + done.stderr).startswith("Python "):
        raise SettingInvalid(name=name, reason=f"{program} is no Python (it does not tell its version); name the one that runs ComfyUI")
    return os.path.abspath(found)


def _lies_at(folder: Path) -> bool:
    """Whether this interpreter is in a folder, as its own environment, or beside it, with what ComfyUI computes with."""
    home, folder = Path(sys.prefix), folder.absolute()
    return home.is_relative_to(folder) or (home.parent == folder.parent and _has("torch"))


def _has(*packages: str) -> bool:
    """Whether this interpreter has them; none is imported."""
    return all(importlib.util.find_spec(package) is not None for package in packages)


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
