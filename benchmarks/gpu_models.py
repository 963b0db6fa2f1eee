"""Random models for gpu.py, in the files and names that ComfyUI's own loaders know.

    python -m benchmarks.gpu_models FOLDER sdxl cuda:0

``sdxl``: a UNet of SDXL's shape (2.57 billion parameters) and the VAE that belongs to it, in fp16, made on the device.  ComfyUI knows
SDXL by its shapes alone: 320 channels, transformers of depth 2 and 10 with linear projections, a context of 2048, 2816 class numbers.
``small``: the tiny model of examples/, for a CPU.  FOLDER is for ``--base-directory``.  Needs torch and safetensors.
"""
from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]

CONTEXT, CLASS_NUMBERS, EMBEDDING = 2048, 2816, 1280
CHANNELS = (320, 640, 1280)
DEPTHS = (0, 2, 10)
"""Of the transformers at each size."""
VAE_CHANNELS = (128, 256, 512, 512)

RESIDUAL_GAIN = 0.3
"""Of the last layer of a block, so that sums over a hundred blocks stay in the range of fp16."""


# -- UNet ---------------------------------------------------------------------------------------------------------------
def unet_shapes() -> Named:
    """Name and shape of every tensor of SDXL's UNet, in ComfyUI's own naming."""
    yield from _mlp("time_embed.{}", CHANNELS[0])
    yield from _mlp("label_emb.0.{}", CLASS_NUMBERS)
    yield from _layer("input_blocks.0.0", CHANNELS[0], 4, 3, 3)
    skipped = [CHANNELS[0]]
    for level, channels in enumerate(CHANNELS):
        for _ in range(2):
            yield from _stage(f"input_blocks.{len(skipped)}", skipped[-1], channels, DEPTHS[level])
            skipped.append(channels)
        if level < 2:
            yield from _layer(f"input_blocks.{len(skipped)}.0.op", channels, channels, 3, 3)
            skipped.append(channels)
    yield from _res_block("middle_block.0", CHANNELS[2], CHANNELS[2])
    yield from _transformer("middle_block.1", CHANNELS[2], DEPTHS[2])
    yield from _res_block("middle_block.2", CHANNELS[2], CHANNELS[2])
    yield from _up(skipped)
    yield from _norm("out.0", CHANNELS[0])
    yield from _layer("out.2", 4, CHANNELS[0], 3, 3)


def _up(skipped: list[int]) -> Named:
    number, before = 0, CHANNELS[2]
    for level in (2, 1, 0):
        for position in range(3):
            prefix = f"output_blocks.{number}"
            yield from _stage(prefix, before + skipped.pop(), CHANNELS[level], DEPTHS[level])
            if position == 2 and level:
                yield from _layer(f"{prefix}.{2 if DEPTHS[level] else 1}.conv", CHANNELS[level], CHANNELS[level], 3, 3)
            number, before = number + 1, CHANNELS[level]


def _stage(prefix: str, n_in: int, n_out: int, depth: int) -> Named:
    yield from _res_block(f"{prefix}.0", n_in, n_out)
    if depth:
        yield from _transformer(f"{prefix}.1", n_out, depth)


def _res_block(prefix: str, n_in: int, n_out: int) -> Named:
    yield from _norm(f"{prefix}.in_layers.0", n_in)
    yield from _layer(f"{prefix}.in_layers.2", n_out, n_in, 3, 3)
    yield from _layer(f"{prefix}.emb_layers.1", n_out, EMBEDDING)
    yield from _norm(f"{prefix}.out_layers.0", n_out)
    yield from _layer(f"{prefix}.out_layers.3", n_out, n_out, 3, 3)
    if n_in != n_out:
        yield from _layer(f"{prefix}.skip_connection", n_out, n_in, 1, 1)


def _transformer(prefix: str, width: int, depth: int) -> Named:
    yield from _norm(f"{prefix}.norm", width)
    yield from _layer(f"{prefix}.proj_in", width, width)
    for number in range(depth):
        block = f"{prefix}.transformer_blocks.{number}"
        for name, context in (("attn1", width), ("attn2", CONTEXT)):
            yield f"{block}.{name}.to_q.weight", (width, width)
            yield f"{block}.{name}.to_k.weight", (width, context)
            yield f"{block}.{name}.to_v.weight", (width, context)
            yield from _layer(f"{block}.{name}.to_out.0", width, width)
        yield from _layer(f"{block}.ff.net.0.proj", 8 * width, width)
        yield from _layer(f"{block}.ff.net.2", width, 4 * width)
        for norm in (1, 2, 3):
            yield from _norm(f"{block}.norm{norm}", width)
    yield from _layer(f"{prefix}.proj_out", width, width)


def _mlp(name: str, n_in: int) -> Named:
    yield from _layer(name.format(0), EMBEDDING, n_in)
    yield from _layer(name.format(2), EMBEDDING, EMBEDDING)


def _layer(name: str, *shape: int) -> Named:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _norm(name: str, width: int) -> Named:
    yield from _layer(name, width)


# -- VAE ----------------------------------------------------------------------------------------------------------------
def vae_shapes() -> Named:
    """Name and shape of every tensor of the VAE of SD 1, 2 and XL."""
    yield from _layer("quant_conv", 8, 8, 1, 1)
    yield from _layer("post_quant_conv", 4, 4, 1, 1)
    before = VAE_CHANNELS[0]
    yield from _layer("encoder.conv_in", before, 3, 3, 3)
    for level, channels in enumerate(VAE_CHANNELS):
        for number in range(2):
            yield from _vae_block(f"encoder.down.{level}.block.{number}", before, channels)
            before = channels
        if level < 3:
            yield from _layer(f"encoder.down.{level}.downsample.conv", channels, channels, 3, 3)
    yield from _vae_ends("encoder", before, 8)
    yield from _layer("decoder.conv_in", before, 4, 3, 3)
    for level in (3, 2, 1, 0):
        channels = VAE_CHANNELS[level]
        for number in range(3):
            yield from _vae_block(f"decoder.up.{level}.block.{number}", before, channels)
            before = channels
        if level:
            yield from _layer(f"decoder.up.{level}.upsample.conv", channels, channels, 3, 3)
    yield from _vae_ends("decoder", before, 3)


def _vae_ends(side: str, channels: int, n_out: int) -> Named:
    middle = VAE_CHANNELS[-1]
    for number in (1, 2):
        yield from _vae_block(f"{side}.mid.block_{number}", middle, middle)
    yield from _norm(f"{side}.mid.attn_1.norm", middle)
    for name in ("q", "k", "v", "proj_out"):
        yield from _layer(f"{side}.mid.attn_1.{name}", middle, middle, 1, 1)
    yield from _norm(f"{side}.norm_out", channels)
    yield from _layer(f"{side}.conv_out", n_out, channels, 3, 3)


def _vae_block(prefix: str, n_in: int, n_out: int) -> Named:
    yield from _norm(f"{prefix}.norm1", n_in)
    yield from _layer(f"{prefix}.conv1", n_out, n_in, 3, 3)
    yield from _norm(f"{prefix}.norm2", n_out)
    yield from _layer(f"{prefix}.conv2", n_out, n_out, 3, 3)
    if n_in != n_out:
        yield from _layer(f"{prefix}.nin_shortcut", n_out, n_in, 1, 1)


# -- files --------------------------------------------------------------------------------------------------------------
_ENDS_OF_BLOCKS = (".to_out.0.weight", ".ff.net.2.weight", ".proj_out.weight", ".out_layers.3.weight", ".conv2.weight", ".conv_out.weight")


def _random(name: str, shape: Shape, generator: Any) -> Any:
    """Norms are neutral, other layers keep the variance of what they get."""
    import torch

    device = generator.device
    if len(shape) == 1:
        return torch.full(shape, float(name.endswith(".weight")), dtype=torch.float16, device=device)
    inputs = 1
    for size in shape[1:]:
        inputs *= size
    gain = RESIDUAL_GAIN if name.endswith(_ENDS_OF_BLOCKS) else 1.0
    return torch.randn(shape, dtype=torch.float16, device=device, generator=generator).mul_(gain / inputs**0.5)


def write_sdxl(folder: Path, device: str) -> int:
    """Write UNet and VAE below ``folder/models``; how many parameters the UNet has."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator(device).manual_seed(7)
    parameters = 0
    for kind, name, shapes in (("diffusion_models", "gpu_unet", unet_shapes()), ("vae", "gpu_vae", vae_shapes())):
        weights = {key: _random(key, shape, generator) for key, shape in shapes}
        path = folder / "models" / kind / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: weight.cpu() for key, weight in weights.items()}, path)
        parameters = parameters or sum(weight.numel() for weight in weights.values())
    return parameters


def write_small(folder: Path) -> int:
    """Write the tiny model; how many parameters it has."""
    import torch

    sys.path.insert(0, str(HERE.parent / "examples"))
    import tiny_model

    tiny_model.main(folder)
    weights = tiny_model.mmdit(torch.Generator().manual_seed(7))
    return sum(weight.numel() for weight in weights.values())


def main(folder: Path, size: str, device: str) -> None:
    """Make the base directory; prints the number of parameters."""
    pack = folder / "custom_nodes" / "gpu_nodes.py"
    pack.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(HERE / "gpu_nodes.py", pack)
    (folder / "input").mkdir(exist_ok=True)
    print(write_sdxl(folder, device) if size == "sdxl" else write_small(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
