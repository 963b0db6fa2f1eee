"""What goes with an image besides its pixels, cut to one tile: areas, masks, control hints, latents, boxes and pictures in patches;
and pixels filled up to what a VAE needs.

Nothing here imports ComfyUI or torch when it is loaded: it works on the objects that ComfyUI's nodes made, and copies what it changes,
because ComfyUI keeps those objects for the next tile.
"""
from distributed_comfy.engine.comfyui.crops.cropper import ComfyTileCropper

__all__ = ["ComfyTileCropper"]
