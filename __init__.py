"""The repository as a node pack: ComfyUI runs this file when the repository lies in its custom_nodes folder, and nobody else does.

ComfyUI runs it under the folder's path as module name, so the package is imported by its absolute name, as `install.py` has installed it.
"""
import logging
import os
import sys

NODE_CLASS_MAPPINGS: dict[str, type] = {}

if hasattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS"):  # this process is a ComfyUI
    _FOLDER = os.path.dirname(os.path.abspath(__file__))
    try:
        from distributed_comfy.comfyui.door import load
    except ImportError as error:
        _RUN = f'"{sys.executable}" -m pip install -e "{_FOLDER}"'
        logging.error("[distributed-comfy] %s cannot import it: %s; run: %s", sys.executable, error, _RUN)
    else:
        NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, WEB_DIRECTORY, _PACK = load(_FOLDER)
