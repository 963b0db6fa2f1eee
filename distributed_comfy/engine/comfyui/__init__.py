"""The engine that runs a real ComfyUI tree in this process; the only package, with the node pack, that imports ComfyUI."""
from distributed_comfy.engine.comfyui.engine import ComfyUIEngine as create_engine

__all__ = ["create_engine"]
