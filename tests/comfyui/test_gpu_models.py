"""The benchmark's random model has SDXL's shape to the last tensor."""
from __future__ import annotations

import json
import subprocess

from benchmarks.gpu_models import unet_shapes, vae_shapes
from tests.comfyui.comfy_process import PROJECT, START_TIMEOUT_S, Comfy

ASK_COMFYUI = """
import json, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import comfy.cli_args
comfy.cli_args.args.cpu = True
import torch
import comfy.ops
from comfy import model_detection
from comfy.ldm.models.autoencoder import AutoencoderKL
from benchmarks.gpu_models import unet_shapes
weights = {name: torch.empty(shape, dtype=torch.float16, device="meta") for name, shape in unet_shapes()}
config = model_detection.model_config_from_unet(weights, "")
unet = config.get_model(weights, "", device="meta").diffusion_model
vae = AutoencoderKL(embed_dim=4, ddconfig={"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0})
shapes = [{name: list(weight.shape) for name, weight in model.state_dict().items()} for model in (unet, vae)]
print(json.dumps([type(config).__name__, *shapes]))
"""


def test_comfyui_takes_the_random_unet_for_sdxl_and_misses_no_tensor(comfy: Comfy) -> None:
    command = [comfy.python, "-c", ASK_COMFYUI, str(comfy.root), str(PROJECT)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=True)
    name, unet, vae = json.loads(answer.stdout.splitlines()[-1])
    assert name == "SDXL"
    assert unet == {name: list(shape) for name, shape in unet_shapes()}
    assert vae == {name: list(shape) for name, shape in vae_shapes()}
    assert sum(_count(shape) for _, shape in unet_shapes()) == 2_567_463_684


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
