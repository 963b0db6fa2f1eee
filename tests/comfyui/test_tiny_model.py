"""The script that makes the tiny model, as a user runs it."""
from __future__ import annotations

import subprocess
from pathlib import Path

from tests.comfyui.comfy_process import Comfy
from tests.command_line import PROJECT

SCRIPT = PROJECT / "examples" / "tiny_model.py"


def test_it_says_what_it_wrote_and_what_to_do_next(comfy: Comfy, tmp_path: Path) -> None:
    done = subprocess.run([comfy.python, SCRIPT, tmp_path / "tiny"], capture_output=True, text=True, check=True, timeout=100)
    wrote = [line.removeprefix("wrote ").partition(" (")[0] for line in done.stdout.splitlines() if line.startswith("wrote ")]
    assert len(wrote) == 5 and all(Path(path).is_file() for path in wrote)
    assert f'DC_COMFYUI_BASE_DIRECTORY="{tmp_path / "tiny"}"' in done.stdout and "txt2img_tiny.json --items 8" in done.stdout
    assert f'--base-directory "{tmp_path / "tiny"}"' in done.stdout and "parallel_txt2img" in done.stdout


def test_without_a_folder_it_says_how_it_is_used(comfy: Comfy) -> None:
    done = subprocess.run([comfy.python, SCRIPT], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 1 and done.stderr.startswith("usage: python examples/tiny_model.py FOLDER")
