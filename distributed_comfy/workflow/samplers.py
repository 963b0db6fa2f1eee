"""Names of samplers and schedulers for an engine that samples by none of them: those that saved workflows hold most often."""
from __future__ import annotations


class UsualSamplers:
    """The two lists under the names that ComfyUI's ``KSampler`` class has them."""

    SAMPLERS = ("euler", "euler_ancestral", "heun", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m", "dpmpp_2m_sde", "lcm", "ddim", "uni_pc")
    SCHEDULERS = ("simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal")
