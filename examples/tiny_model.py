"""Write a tiny random SD3-shaped model that ComfyUI loads and samples for real on a CPU, for the two ``*_tiny.json`` here.

Its checkpoint is for any workflow that starts with "Load Checkpoint", such as the node pack's own in ComfyUI's template browser.

    python examples/tiny_model.py FOLDER

FOLDER is ComfyUI's folder, or one to be used with its ``--base-directory`` (here: ``DC_COMFYUI_BASE_DIRECTORY``).  It gets

    models/diffusion_models/tiny_mmdit.safetensors   MMDiT, depth 2, width 128, 16 latent channels
    models/vae/tiny_taesd16.safetensors              TAESD-shaped VAE, 16 channels: decode(encode(x)) is a blurred x
    models/checkpoints/tiny_checkpoint.safetensors   both in one file; it has no text encoder, so no text changes anything
    models/controlnet/tiny_control.safetensors       ControlNet for it (SD3.5-shaped); its hint is an image, encoded by the VAE
    custom_nodes/tiny_nodes.py                       nodes TinyConditioning, TinyDump, TinyNoise, TinyFail

Needs torch and safetensors: run it with ComfyUI's own Python.  The same bytes on each run.
"""
from __future__ import annotations

import shutil
import sys
from pathlib import Path

try:
    import torch
    from safetensors.torch import save_file
except ImportError as error:
    hint = "use ComfyUI's own, such as ~/comfy/ComfyUI/.venv/bin/python"
    sys.exit(f"{sys.executable} lacks {error.name}, which this needs: {hint}, or run: {sys.executable} -m pip install torch safetensors")

DEPTH, LATENT, PATCH, CONTEXT, POOLED, POSITIONS = 2, 16, 2, 4096, 2048, 96
WIDTH = 64 * DEPTH  # ComfyUI takes width // 64 for the depth

Weights = dict[str, torch.Tensor]


class Weaver:
    """Makes random layers in a fixed order."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.weights: Weights = {}

    def normal(self, *shape: int) -> torch.Tensor:
        """Normally distributed numbers."""
        return torch.randn(*shape, generator=self.generator)

    def linear(self, name: str, n_out: int, n_in: int, gain: float = 1.0) -> None:
        """A linear layer whose outputs have about the variance ``gain`` ** 2."""
        self.weights[name + ".weight"] = self.normal(n_out, n_in) * gain / n_in**0.5
        self.weights[name + ".bias"] = torch.zeros(n_out)

    def conv(self, name: str, n_out: int, n_in: int, *, bias: bool = True, gain: float = 0.05) -> torch.Tensor:
        """A 3x3 convolution; gives its weights [n_out, n_in, 3, 3] to be changed in place."""
        weight = self.normal(n_out, n_in, 3, 3) * gain / (9 * n_in) ** 0.5
        self.weights[name + ".weight"] = weight
        if bias:
            self.weights[name + ".bias"] = torch.zeros(n_out)
        return weight

    def block(self, name: str) -> None:
        """A residual block of a TAESD network: identity and a little noise."""
        for position, gain in ((0, 1.0), (2, 1.0), (4, 0.05)):
            self.conv(f"{name}.conv.{position}", 64, 64, gain=gain)


def mmdit(generator: torch.Generator) -> Weights:
    """The diffusion model."""
    weaver = Weaver(generator)
    weaver.linear("x_embedder.proj", WIDTH, LATENT * PATCH * PATCH)
    weaver.weights["x_embedder.proj.weight"] = weaver.weights["x_embedder.proj.weight"].view(WIDTH, LATENT, PATCH, PATCH)
    weaver.weights["pos_embed"] = weaver.normal(1, POSITIONS * POSITIONS, WIDTH) * 0.02
    for name, n_in in (("t_embedder", 256), ("y_embedder", POOLED)):
        weaver.linear(name + ".mlp.0", WIDTH, n_in)
        weaver.linear(name + ".mlp.2", WIDTH, WIDTH)
    weaver.linear("context_embedder", WIDTH, CONTEXT)
    for layer in range(DEPTH):
        for side in ("context_block", "x_block"):
            _joint_block(weaver, f"joint_blocks.{layer}.{side}.", pre_only=side == "context_block" and layer == DEPTH - 1)
    weaver.linear("final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH, 0.3)
    weaver.linear("final_layer.linear", PATCH * PATCH * LATENT, WIDTH, 0.5)
    return weaver.weights


def _joint_block(weaver: Weaver, prefix: str, *, pre_only: bool) -> None:
    weaver.linear(prefix + "attn.qkv", 3 * WIDTH, WIDTH)
    weaver.linear(prefix + "adaLN_modulation.1", (2 if pre_only else 6) * WIDTH, WIDTH, 0.3)
    if not pre_only:
        weaver.linear(prefix + "attn.proj", WIDTH, WIDTH)
        weaver.linear(prefix + "mlp.fc1", 4 * WIDTH, WIDTH)
        weaver.linear(prefix + "mlp.fc2", WIDTH, 4 * WIDTH)


def control(generator: torch.Generator) -> Weights:
    """The ControlNet: one block, whose output is added to each block of the diffusion model."""
    weaver = Weaver(generator)
    for name in ("pos_embed.proj", "pos_embed_input.proj"):
        weaver.linear(name, WIDTH, LATENT * PATCH * PATCH)
        weaver.weights[name + ".weight"] = weaver.weights[name + ".weight"].view(WIDTH, LATENT, PATCH, PATCH)
    weaver.linear("time_text_embed.timestep_embedder.linear_1", WIDTH, 256)
    weaver.linear("time_text_embed.timestep_embedder.linear_2", WIDTH, WIDTH)
    weaver.linear("y_embedder.mlp.0", WIDTH, POOLED)
    weaver.linear("y_embedder.mlp.2", WIDTH, WIDTH)
    for name, n_out, n_in in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4), ("adaLN_modulation.1", 6, 1)):
        weaver.linear(f"transformer_blocks.0.{name}", n_out * WIDTH, n_in * WIDTH)
    weaver.linear("controlnet_blocks.0", WIDTH, WIDTH)
    return weaver.weights


def vae(generator: torch.Generator) -> Weights:
    """The VAE: its first and last layers carry RGB through channels 0 to 2."""
    weaver = Weaver(generator)
    weaver.weights |= {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
    _encoder(weaver, "taesd_encoder.")
    _decoder(weaver, "taesd_decoder.")
    return weaver.weights


def _encoder(weaver: Weaver, prefix: str) -> None:
    first = weaver.conv(prefix + "0", 64, 3, gain=0.3)
    first[range(3), range(3), 1, 1] += 1
    weaver.block(prefix + "1")
    for strided in (2, 6, 10):  # averages 2x2
        weight = weaver.conv(f"{prefix}{strided}", 64, 64, bias=False)
        weight[range(64), range(64), 1:, 1:] += 0.25
        for number in range(strided + 1, strided + 4):
            weaver.block(f"{prefix}{number}")
    last = weaver.conv(prefix + "14", LATENT, 64, gain=1.0)
    last[:3] = 0
    last[range(3), range(3), 1, 1] = 3.0
    weaver.weights[prefix + "14.bias"][:3] = -1.5


def _decoder(weaver: Weaver, prefix: str) -> None:
    first = weaver.conv(prefix + "1", 64, LATENT, gain=0.3)
    first[:3] *= 0.2
    first[range(3), range(3), 1, 1] += 1 / 3
    weaver.weights[prefix + "1.bias"][:] = 0.5
    for start in (3, 8, 13):
        for number in range(start, start + 3):
            weaver.block(f"{prefix}{number}")
        weaver.conv(f"{prefix}{start + 4}", 64, 64, bias=False)[range(64), range(64), 1, 1] += 1.0
    weaver.block(prefix + "18")
    weaver.conv(prefix + "19", 3, 64)[range(3), range(3), 1, 1] += 1


def checkpoint(diffusion: Weights, autoencoder: Weights) -> Weights:
    """Both as one file; where ComfyUI finds the beginning of a name for text encoders and no weights, every text means zeros."""
    return {
        **{f"model.diffusion_model.{name}": weight for name, weight in diffusion.items()},
        **{f"first_stage_model.{name}": weight for name, weight in autoencoder.items()},
        "text_encoders.none": torch.zeros(1),
    }


def main(folder: Path) -> None:
    """Write the models and the node pack into ``folder``, and say so."""
    generator = torch.Generator().manual_seed(7)
    diffusion, autoencoder = mmdit(generator), vae(generator)
    models = (
        ("diffusion_models", "tiny_mmdit", diffusion), ("vae", "tiny_taesd16", autoencoder),
        ("controlnet", "tiny_control", control(generator)), ("checkpoints", "tiny_checkpoint", checkpoint(diffusion, autoencoder)),
    )  # fmt: skip
    for kind, name, weights in models:
        path = folder / "models" / kind / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: weight.contiguous() for key, weight in weights.items()}, path)
        print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    pack = folder / "custom_nodes" / "tiny_nodes.py"
    pack.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(__file__).with_name("tiny_nodes.py"), pack)
    print(f"wrote {pack}")
    print(_what_next(folder.absolute()))


def _what_next(folder: Path) -> str:
    """For a tree of ComfyUI, and for a base directory of its own."""
    if (folder / "main.py").is_file():
        tree, also, variable = folder, "", ""
    else:
        tree, also = Path("~/comfy/ComfyUI"), f' --base-directory "{folder}"'
        variable = f'DC_COMFYUI_BASE_DIRECTORY="{folder}" '
    if sys.platform == "win32" and variable:
        variable = f'set "{variable.strip().replace(chr(34), "")}" && '
    run = f"{variable}distributed-comfy run {Path(__file__).parent / 'txt2img_tiny.json'} --items 8 --workers 2 --comfyui {tree}"
    return f"""next:
    {run}
or in ComfyUI's page, with the node pack: start ComfyUI again with `main.py --cpu{also}`, open parallel_txt2img of the templates,
    choose tiny_checkpoint.safetensors, make the latent 64 x 64, and press Run (docs/comfyui.md has values for each template)"""


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python examples/tiny_model.py FOLDER        (ComfyUI's folder, or one for its --base-directory)")
    main(Path(sys.argv[1]))
