"""A node pack for the tests of tile crops: small real control models, and looks into conditionings; nothing here imports it."""
from __future__ import annotations

import sys
from unittest import mock

import comfy.controlnet
import comfy.ldm.wan.vae
import comfy.ldm.wan.vae2_2
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sample
import comfy.sd
import nodes
import torch
from comfy.t2i_adapter.adapter import Adapter_light


class Node:
    CATEGORY, FUNCTION, RETURN_TYPES = "testing", "run", ("IMAGE",)


def weighted(module):
    """The module with the same random weights each time."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module


class TileEdgePad(Node):
    """Images that repeat their last column and row up to a size."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "width": ("INT", {}), "height": ("INT", {})}}

    def run(self, images, width, height):
        pad = (0, width - images.shape[2], 0, height - images.shape[1])
        return (torch.nn.functional.pad(images.movedim(-1, 1), pad, mode="replicate").movedim(1, -1).contiguous(),)


class TileFact(Node):
    """One tensor of a conditioning's first entry; the first one of a list."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"conditioning": ("CONDITIONING",), "fact": ("STRING", {})}}

    def run(self, conditioning, fact):
        value = conditioning[0][1][fact]
        return (value[0] if isinstance(value, list) else value,)


class TileNoise(Node):
    """What ComfyUI's sampler would draw for a latent."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"latent": ("LATENT",), "seed": ("INT", {})}}

    def run(self, latent, seed):
        return (comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index")),)


class TileAdapter(Node):
    """A real T2I adapter of few channels."""

    RETURN_TYPES = ("CONTROL_NET",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        model = weighted(Adapter_light(channels=[8, 8, 8, 8], nums_rb=1, cin=192))
        return (comfy.controlnet.T2IAdapter(model, model.input_channels, 8, "nearest-exact"),)


class TileControlLora(Node):
    """A control LoRA; it is never run, because it needs a U-Net."""

    RETURN_TYPES = ("CONTROL_NET",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        return (comfy.controlnet.ControlLora({"lora_controlnet": torch.zeros(0)}),)


class TileControlOutput(Node):
    """What the control chain of a conditioning gives for a latent of zeros."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"conditioning": ("CONDITIONING",), "width": ("INT", {}), "height": ("INT", {})}}

    def run(self, conditioning, width, height):
        control = conditioning[0][1]["control"]
        latent = torch.zeros(1, 4, height // 8, width // 8)
        given = control.get_control(latent, torch.ones(1), {}, 1, {})
        control.cleanup()
        return (torch.cat([part.flatten() for part in given["input"] if part is not None])[None, None, :, None],)


class TileControlHint(Node):
    """The hint at the end of a control chain, and the names of all classes in it."""

    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"conditioning": ("CONDITIONING",)}}

    def run(self, conditioning):
        control, names = conditioning[0][1]["control"], []
        while control is not None:
            names.append(type(control).__name__)
            control = control.previous_controlnet
        return {"ui": {"names": names}, "result": (conditioning[0][1]["control"].cond_hint_original.movedim(1, -1),)}


class VideoVae:
    """A VAE whose latents have an axis of time, as Qwen's have."""

    def __init__(self, vae):
        self._vae = vae

    def encode(self, images):
        return self._vae.encode(images).unsqueeze(2)

    def spacial_compression_encode(self):
        return self._vae.spacial_compression_encode()


class Packing(torch.nn.Module):
    """Frames as a causal video VAE counts them, four to a latent after the first, with every pixel kept as a channel of its latent."""

    def __init__(self, factor):
        super().__init__()
        self.factor, self.weight = factor, torch.nn.Parameter(torch.zeros(1))

    def encode(self, clip):
        first, rest = clip[:, :, :1].repeat(1, 1, 4, 1, 1), clip[:, :, 1:]
        clip = torch.cat([first, rest[:, :, : rest.shape[2] // 4 * 4]], 2)
        batch, channels, frames, height, width = clip.shape
        parts = clip.reshape(batch, channels, frames // 4, 4, height // self.factor, self.factor, width // self.factor, self.factor)
        return parts.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, -1, frames // 4, height // self.factor, width // self.factor)

    def decode(self, latents):
        batch, _, count, rows, columns = latents.shape
        parts = latents.reshape(batch, 3, 4, self.factor, self.factor, count, rows, columns).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return parts.reshape(batch, 3, count * 4, rows * self.factor, columns * self.factor)[:, :, 3:]


class TileVideoVae(Node):
    """Wan 2.1's VAE (8 pixels per latent) or 2.2's (16) as ComfyUI makes it: its own class with few channels, or one that keeps pixels."""

    RETURN_TYPES = ("VAE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"factor": ("INT", {}), "packing": ("BOOLEAN", {})}}

    def run(self, factor, packing):
        module, channels, few = {
            8: (comfy.ldm.wan.vae, 16, {"dim": 8}),
            16: (comfy.ldm.wan.vae2_2, 48, {"dim": 8, "dec_dim": 8}),
        }[factor]
        own = module.WanVAE
        sizes = {"z_dim": channels, "dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]}
        weights = weighted(own(**sizes, **few)).state_dict()
        with mock.patch.object(module, "WanVAE", lambda **facts: own(**{**facts, **few})):
            vae = comfy.sd.VAE(sd=weights)
        if packing:
            vae.first_stage_model = Packing(factor)
            vae.patcher = comfy.model_patcher.ModelPatcher(vae.first_stage_model, load_device=vae.device, offload_device=vae.device)
        return (vae,)


class TileModelPatch(Node):
    """A model with ComfyUI's own patch that carries an image and a mask, on a control net of few channels."""

    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "vae": ("VAE",), "image": ("IMAGE",), "mask": ("MASK",)}}

    def run(self, model, vae, image, mask):
        node_class = nodes.NODE_CLASS_MAPPINGS["QwenImageDiffsynthControlnet"]
        net = sys.modules[node_class.__module__].QwenImageBlockWiseControlNet(1, 64, 4, 128, operations=comfy.ops.manual_cast)
        device = comfy.model_management.get_torch_device()
        patch = comfy.model_patcher.ModelPatcher(weighted(net), load_device=device, offload_device=device)
        return node_class().diffsynth_controlnet(model, patch, VideoVae(vae), image, 0.5, mask)


class TilePatchImage(Node):
    """What the patch of a model encoded, and that model and weights are those of another model."""

    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "other": ("MODEL",)}}

    def run(self, model, other):
        patch, before = (each.model_options["transformer_options"]["patches"]["double_block"][0] for each in (model, other))
        shared = [model.model is other.model, patch.model_patch is before.model_patch, patch is before]
        return {"ui": {"shared": shared, "other": list(before.image.shape)}, "result": (patch.encoded_image[..., None],)}


NODE_CLASS_MAPPINGS = {
    cls.__name__: cls
    for cls in (
        TileEdgePad, TileFact, TileNoise, TileAdapter, TileControlLora, TileControlOutput, TileControlHint, TileVideoVae,
        TileModelPatch, TilePatchImage,
    )
}  # fmt: skip
