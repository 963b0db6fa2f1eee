"""Jobs whose results stay for Celery, and what they are known to make."""
from __future__ import annotations

import threading
from typing import Any

from distributed_comfy.messages import Prompt
from distributed_comfy.orchestrator.submit import SubmitOptions, read_prompt, submit_prompt
from distributed_comfy.settings import Settings, read_settings
from tests.cluster_rig import Rig
from tests.command_line import until
from tests.prompts import node, out
from tests.rule_nodes import picture


def rule_images(milliseconds: int = 0, side: int = 16, **changes: Any) -> Prompt:
    """seed -> pictures that show it, with values outside [0, 1] -> collector."""
    images = {"width": side, "height": side, "batch_size": 2, "channels": 3, **changes}
    return {
        "seed": node("DistributedSeed", seed=2**40),
        "make": node("RuleImage", seed=out("seed"), **images),
        "wait": node("RuleSlow", images=out("make"), milliseconds=milliseconds),
        "collect": node("DistributedCollector", images=out("wait"), load_balance=False),
    }


def made(index: int, side: int = 16) -> Any:
    """What `rule_images` collects of an item."""
    return picture(2**40 + index, (2, side, side, 3)).numpy()


def keep(rig: Rig, prompt: Prompt, items: int = 1) -> str:
    """Queue a job whose results stay for Celery; its id.  Nothing of it runs in this process."""
    options = SubmitOptions(items=items, results="celery")
    return submit_prompt(rig.cluster, read_prompt(prompt, options), options, threading.Event()).record.job_id


def wait_ended(rig: Rig, job_id: str) -> str:
    state = until(lambda: (found := rig.cluster.jobs.job_state(job_id)).ended and found)
    return str(state.state)


def blobs_of(rig: Rig, job_id: str) -> list[Any]:
    """Keys of a job's results in the blob server."""
    return list(rig.cluster.blob_client.scan_iter(f"{rig.cluster.settings.key_prefix}blob:{job_id}:*", count=1000))


def failing() -> Prompt:
    prompt = rule_images()
    prompt["fail"] = node("RuleFail", images=out("make"), seed=out("seed"), bad_seed=2**40 + 1)
    prompt["wait"]["inputs"] = {"images": out("fail"), "milliseconds": 300}
    return prompt


def settings_of(rig: Rig) -> Settings:
    cluster = rig.cluster
    return read_settings(redis_url=cluster.redis_url, blob_url=cluster.blob_url, key_prefix=cluster.settings.key_prefix)
