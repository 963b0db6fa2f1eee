"""SeededModel, VAEEncode, KSampler, VAEDecode and VAEDecodeTiled: ComfyUI's way from image to image, over the seeded refiner.

All but SeededModel have ComfyUI's names and inputs. They take models of SeededModel only, and no other engine has that class, so a prompt
for a real ComfyUI never runs here, nor the other way round.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distributed_comfy.engine.builtin.workbench import WorkbenchNode
from distributed_comfy.workflow.samplers import UsualSamplers

if TYPE_CHECKING:
    import torch

    from distributed_comfy.engine.builtin.refiner import Refiner, Strength

LATENT_PX = 8
SEED_LIMIT = 2**64 - 1
_PREVIEWS = 6

Latent = dict[str, Any]
"""``{"samples": [B, C, h, w]}``; ``batch_index`` is the place of each frame in a larger batch, which decides its noise."""


@dataclass(frozen=True)
class SeededRefiner:
    """What a link of type MODEL carries in this engine."""

    edges: float
    strokes: float

    def strength(self, denoise: float) -> Strength:
        """As the refiner takes it."""
        from distributed_comfy.engine.builtin.refiner import Strength

        return Strength(denoise, self.edges, self.strokes)


@dataclass(frozen=True)
class FoldingVae:
    """What a link of type VAE carries in this engine: folds 8 x 8 pixels into one of a latent, and back; every bit is kept."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """[B, H, W, 3] as [B, 192, H/8, W/8]; what is no multiple of 8 is cut off at both sides, as a real VAE does."""
        from torch.nn.functional import pixel_unshuffle

        height, width = (side // LATENT_PX * LATENT_PX for side in images.shape[1:3])
        top, left = (side % LATENT_PX // 2 for side in images.shape[1:3])
        box = images[:, top : top + height, left : left + width, :3]
        return pixel_unshuffle(box.movedim(-1, 1).contiguous(), LATENT_PX)

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """[B, H, W, 3]."""
        from torch.nn.functional import pixel_shuffle

        return pixel_shuffle(samples, LATENT_PX).movedim(1, -1).contiguous()


class SeededModel(WorkbenchNode):
    """A refiner that needs no file: model, conditioning and VAE for the nodes of this engine."""

    RETURN_TYPES = ("MODEL", "CONDITIONING", "VAE")
    FUNCTION = "make"
    CATEGORY = "distributed"
    DESCRIPTION = "A stand-in for a checkpoint that sharpens and paints, for trying out a cluster without any model."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs, as ComfyUI's nodes declare theirs."""
        share = {"min": 0.0, "max": 1.0, "step": 0.05}
        return {
            "required": {
                "edges": ("FLOAT", {"default": 0.8, **share, "tooltip": "How steep blurred edges become."}),
                "strokes": ("FLOAT", {"default": 0.6, **share, "tooltip": "How much of a brush shows."}),
            }
        }

    def make(self, edges: float, strokes: float) -> tuple[SeededRefiner, list[Any], FoldingVae]:
        """Model, a conditioning that says nothing, and VAE."""
        return SeededRefiner(edges, strokes), [[None, {}]], FoldingVae()


class VAEEncode(WorkbenchNode):
    """Images as latents."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "encode"
    CATEGORY = "latent"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        return {"required": {"pixels": ("IMAGE",), "vae": ("VAE",)}}

    def encode(self, pixels: torch.Tensor, vae: FoldingVae) -> tuple[Latent]:
        """See `FoldingVae.encode`."""
        return ({"samples": vae.encode(pixels)},)


class VAEDecode(WorkbenchNode):
    """Latents as images."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "decode"
    CATEGORY = "latent"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        return {"required": {"samples": ("LATENT",), "vae": ("VAE",)}}

    def decode(self, samples: Latent, vae: FoldingVae) -> tuple[torch.Tensor]:
        """See `FoldingVae.decode`."""
        return (vae.decode(samples["samples"]),)


class VAEDecodeTiled(VAEDecode):
    """The same as VAEDecode, because here it takes no memory worth saving."""

    FUNCTION = "decode_tiled"
    CATEGORY = "_for_testing"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        return {
            "required": {
                **super().INPUT_TYPES()["required"],
                "tile_size": ("INT", {"default": 512, "min": 64, "max": 4096, "step": 32}),
                "overlap": ("INT", {"default": 64, "min": 0, "max": 4096, "step": 32}),
                "temporal_size": ("INT", {"default": 64, "min": 8, "max": 4096, "step": 4}),
                "temporal_overlap": ("INT", {"default": 8, "min": 4, "max": 4096, "step": 4}),
            }
        }

    def decode_tiled(self, samples: Latent, vae: FoldingVae, **tiling: int) -> tuple[torch.Tensor]:
        """See `FoldingVae.decode`."""
        return self.decode(samples, vae)


class KSampler(WorkbenchNode):
    """Refines latents in steps; the same bits for the same latents, seed, steps and denoise, on a CPU with any number of threads."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "sample"
    CATEGORY = "sampling"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        return {
            "required": {
                "model": ("MODEL",),
                "seed": ("INT", {"default": 0, "min": 0, "max": SEED_LIMIT, "control_after_generate": True}),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
                "cfg": ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}),
                "sampler_name": (list(UsualSamplers.SAMPLERS),),
                "scheduler": (list(UsualSamplers.SCHEDULERS),),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def sample(self, model: SeededRefiner, seed: int, steps: int, latent_image: Latent, **inputs: Any) -> tuple[Latent]:
        """The latents refined; those that came in where ``denoise`` is 0. Stops between two steps when the run is interrupted.

        Args:
            inputs: ``denoise``; the others, conditionings among them, have no meaning here.
        """
        import torch
        from torch.nn.functional import pixel_shuffle, pixel_unshuffle

        from distributed_comfy.engine.builtin.refiner import Refiner, seeded_noise

        denoise = inputs["denoise"]
        if denoise <= 0:
            return (latent_image,)
        images = pixel_shuffle(latent_image["samples"], LATENT_PX)
        places = latent_image.get("batch_index", range(len(images)))
        noise = seeded_noise(seed, places, (images.shape[-2], images.shape[-1]))
        refined = torch.empty_like(images)
        for frame, image in enumerate(images):
            refiner = Refiner(image.to(self.bench.device), noise[frame].to(self.bench.device), model.strength(denoise))
            self._watch(refiner, refiner.steps(steps), (frame * steps, len(images) * steps))
            refined[frame] = refiner.render().cpu()
        return ({**latent_image, "samples": pixel_unshuffle(refined, LATENT_PX)},)

    def _watch(self, refiner: Refiner, steps: Iterator[int], share: tuple[int, int]) -> None:
        """Let a picture's steps happen; ``share`` tells how many were done before and how many there are in all."""
        done, total = share
        for step in steps:
            self.bench.check()
            self.bench.progress(done + step, total)
            if (done + step) % max(1, total // _PREVIEWS) == 0 and done + step < total:
                self.bench.preview(refiner.render().movedim(0, -1).clamp(0, 1))
