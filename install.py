"""What ComfyUI-Manager runs after it has cloned the repository into custom_nodes, by ComfyUI's own interpreter.

It installs the package from this folder, editable: so there is one copy of it, an update of the repository is one of the package, and
workers, engines and `distributed-comfy` find it too.
"""
from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))


def command() -> list[str]:
    """The installer of this interpreter: pip, or uv where the environment was made without pip."""
    uv = shutil.which("uv")
    if importlib.util.find_spec("pip") is None and uv:
        return [uv, "pip", "install", "--python", sys.executable, "--editable", FOLDER]
    return [sys.executable, "-m", "pip", "install", "--editable", FOLDER]


def main() -> int:
    """Exit status: that of the installer."""
    status = subprocess.run(command(), check=False).returncode
    if status:
        sys.stderr.write(f"distributed-comfy is not installed; run: {subprocess.list2cmdline(command())}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
