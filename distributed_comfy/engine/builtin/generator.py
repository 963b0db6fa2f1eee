"""SeededGenerator: pictures made of nothing but a seed, step by step, so that a cluster has something to do without any model."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distributed_comfy.engine.builtin.styles import STYLES
from distributed_comfy.engine.builtin.workbench import WorkbenchNode

if TYPE_CHECKING:
    import torch

    from distributed_comfy.engine.builtin.pictures import Picture

SEED_LIMIT = 2**64 - 1
_PREVIEWS = 6


class SeededGenerator(WorkbenchNode):
    """``batch_size`` pictures of one seed; the same bits for the same inputs on every CPU and with any number of threads."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "generate"
    CATEGORY = "distributed"
    DESCRIPTION = "Draws a picture from a seed without any model, for trying out a cluster."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of the inputs."""
        side = {"default": 512, "min": 16, "max": 4096, "step": 1}
        return {
            "required": {
                "seed": ("INT", {"default": 0, "min": 0, "max": SEED_LIMIT, "control_after_generate": True}),
                "steps": ("INT", {"default": 24, "min": 1, "max": 10000}),
                "width": ("INT", side),
                "height": ("INT", side),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
                "style": (["auto", *STYLES], {"default": "auto"}),
            }
        }

    def generate(self, seed: int, steps: int, **shape: Any) -> tuple[torch.Tensor]:
        """[batch_size, height, width, 3] float32 in [0, 1]; stops between two steps when the run is interrupted.

        Args:
            shape: ``width``, ``height``, ``batch_size``, ``style``.
        """
        import torch

        from distributed_comfy.engine.builtin.pictures import Picture, Subject

        width, height, batch_size = shape["width"], shape["height"], shape["batch_size"]
        images = torch.empty((batch_size, height, width, 3))
        for position in range(batch_size):
            picture = Picture(Subject(seed, position, width, height, shape["style"]), device=self.bench.device)
            self._draw(picture, steps, done=position * steps, total=batch_size * steps)
            images[position] = picture.render().cpu()
        return (images,)

    def _draw(self, picture: Picture, steps: int, *, done: int, total: int) -> None:
        for step in picture.steps(steps):
            self.bench.check()
            self.bench.progress(done + step, total)
            if step % max(1, steps // _PREVIEWS) == 0 and step < steps:
                self.bench.preview(picture.preview())
