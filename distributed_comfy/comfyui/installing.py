"""The door in ComfyUI's custom_nodes folder: a small package that loads the installed one by its absolute name."""
from __future__ import annotations

from pathlib import Path

DOOR_NAME = "distributed-comfy"
"""Folder in custom_nodes; no name that Python could import, so that it never hides the package itself."""
DOOR_TEXT = '''"""distributed-comfy in this ComfyUI; written by `distributed-comfy comfyui install`, removed by `uninstall`."""
from distributed_comfy.comfyui.door import load

NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, WEB_DIRECTORY, _PACK = load()
'''


def write_door(custom_nodes: Path) -> Path:
    """Write the door; gives its folder."""
    door = custom_nodes / DOOR_NAME
    door.mkdir(parents=True, exist_ok=True)
    (door / "__init__.py").write_text(DOOR_TEXT, encoding="utf-8")
    return door
