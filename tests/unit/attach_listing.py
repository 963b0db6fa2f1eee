"""What ``/object_info`` of a small ComfyUI says, for the tests of engine ``attach``."""
from __future__ import annotations

from typing import Any

from distributed_comfy.engine.attach.capability import NodeListing


def about(inputs: dict[str, Any], *outputs: str, output_node: bool = False, module: str = "nodes") -> dict[str, Any]:
    """One class."""
    return {"input": {"required": inputs}, "output": list(outputs), "output_node": output_node, "python_module": module}


INFO: dict[str, Any] = {
    "PreviewImage": about({"images": ["IMAGE"]}, output_node=True),
    "SaveImage": about({"images": ["IMAGE"], "filename_prefix": ["STRING", {"default": "ComfyUI"}]}, output_node=True),
    "PreviewAny": about({"source": ["*", {}]}, output_node=True, module="comfy_extras.nodes_preview_any"),
    "SaveLatent": about({"samples": ["LATENT"], "filename_prefix": ["STRING", {}]}, output_node=True),
    "GetImageSize": about({"image": ["IMAGE"]}, "INT", "INT", "INT", module="comfy_extras.nodes_images"),
    "MaskToImage": about({"mask": ["MASK"]}, "IMAGE", module="comfy_extras.nodes_mask"),
    "ImageToMask": about({"image": ["IMAGE"], "channel": [["red", "green"]]}, "MASK", module="comfy_extras.nodes_mask"),
    "ImageBatch": about({"image1": ["IMAGE"], "image2": ["IMAGE"]}, "IMAGE"),
    "ImageInvert": about({"image": ["IMAGE"]}, "IMAGE"),
    "LoadImage": about({"image": [["a.png"], {"image_upload": True}]}, "IMAGE", "MASK"),
    "LoadLatent": about({"latent": [[]]}, "LATENT"),
    "VAELoader": about({"vae_name": [["sub\\a.safetensors", "b.safetensors"]]}, "VAE"),
    "KSampler": about({"seed": ["INT", {"max": 2**64 - 1}], "latent_image": ["LATENT"]}, "LATENT"),
    "VAEDecode": about({"samples": ["LATENT"], "vae": ["VAE"]}, "IMAGE"),
    "PackSaver": about({"images": ["IMAGE"]}, output_node=True, module="custom_nodes.pack"),
    "PackAudio": about({}, "AUDIO", module="custom_nodes.pack"),
}


def listing(*without: str, **extra: Any) -> NodeListing:
    """The listing, without some classes and with others."""
    return NodeListing({name: entry for name, entry in {**INFO, **extra}.items() if name not in without})
