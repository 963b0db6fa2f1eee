"""A ComfyUI with the pack that hands ordinary prompts to two workers, and a plain ComfyUI that does everything itself."""
from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray
from PIL import Image

from distributed_comfy.messages import Prompt
from tests.comfyui.comfy_process import Comfy
from tests.comfyui.server_rig import ComfyServer
from tests.comfyui.tiny_prompts import distributed
from tests.command_line import CommandLine
from tests.prompts import node, out, without

WORKERS = ("one", "two")
START_TIMEOUT_S = 180.0
MASTER_ONLY = '''
class MasterOnly:
    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "testing", "run", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}}

    def run(self, images):
        return {}


NODE_CLASS_MAPPINGS = {"MasterOnly": MasterOnly}
'''
"""A node pack that no worker has."""
NEWER_ROUTES = '''
import nodes
from aiohttp import web
from server import PromptServer

queue = PromptServer.instance.prompt_queue


def cancel(job_id):
    with queue.mutex:
        if any(item[1] == job_id for item in queue.currently_running.values()):
            nodes.interrupt_processing()
            return True
    return queue.delete_queue_item(lambda item: item[1] == job_id)


@PromptServer.instance.routes.post("/api/jobs/{job_id}/cancel")
async def cancel_one(request):
    return web.json_response({"cancelled": cancel(request.match_info["job_id"])})


@PromptServer.instance.routes.post("/api/jobs/cancel")
async def cancel_many(request):
    wanted = await request.json()
    if not all(isinstance(job_id, str) for job_id in wanted["job_ids"]):
        return web.json_response({"error": "invalid"}, status=400)
    return web.json_response({"cancelled": any([cancel(job_id) for job_id in wanted["job_ids"]])})


NODE_CLASS_MAPPINGS = {}
'''
"""What newer ComfyUIs have for pages that end prompts: they take every prompt that their queue shows as running for their own."""


class Crowd:
    """The master and its workers.

    Args:
        comfy: the tree.
        python: see `server_rig.pack_python`.
        models: base directory of the workers; the master has a copy.
        folder: for everything.
        environment: more variables of all of them.
    """

    def __init__(self, comfy: Comfy, python: str, models: Path, folder: Path, **environment: str) -> None:
        self._comfy, self.models = comfy, models
        self._logs = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.server = ComfyServer(comfy, python, models, CommandLine(folder))
        (folder / "config").mkdir()
        self.server.environment.update(environment, DC_WORKERS_FILE=str(folder / "config" / "workers.json"))
        self._environment = environment
        self._option: bool | None = None
        for name, code in (("master_only", MASTER_ONLY), ("newer_routes", NEWER_ROUTES)):
            (self.server.base / "custom_nodes" / f"{name}.py").write_text(code)
        self.workers: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def output(self) -> Path:
        """The master's output folder."""
        return self.server.base / "output"

    def start(self, *names: str, ordinary: bool | None = True) -> Crowd:
        """The master with this option (None: not asked yet), and these workers; whoever runs so already stays.

        Returns when all can take prompts.
        """
        runs = self.server.process is not None and self.server.process.poll() is None
        if runs and self._option is not ordinary:
            self.server.stop()
            runs = False
        self._option = ordinary
        (self._logs / "config" / "comfyui.json").write_text(json.dumps({"ordinary": ordinary}))
        if not runs:
            self.server.start()
        self.server.wait_ready()
        for name in names:
            if name not in self.workers:
                self.start_worker(name)
        self.wait_workers(len(names))
        return self

    def start_worker(self, name: str) -> None:
        """A worker with a real ComfyUI and previews."""
        command = ["-m", "distributed_comfy", "worker", "--engine", "comfyui", "--device", "cpu", "--name", name]
        comfyui = {
            "COMFYUI_PATH": str(self._comfy.root), "DC_COMFYUI_PYTHON": self._comfy.python, "DC_COMFYUI_BASE_DIRECTORY": str(self.models),
        }  # fmt: skip
        with (self._logs / f"{name}.log").open("ab") as log:
            self.workers[name] = subprocess.Popen(
                [sys.executable, *command, "--", "--preview-method", "latent2rgb"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._logs, start_new_session=True,
                env={**self.server.line.environment, **comfyui, "DC_THREADS": "1", **self._environment},
            )  # fmt: skip

    def wait_workers(self, count: int) -> None:
        """Until so many workers could run prompts."""
        try:
            self.server.until(lambda: self.ordinary()["workers"] == count, START_TIMEOUT_S)
        except AssertionError as error:
            raise AssertionError("\n".join(self.log_of(name)[-2000:] for name in self.workers)) from error

    def kill_worker(self, name: str) -> None:
        """As the system does that is out of memory."""
        process = self.workers.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def ordinary(self) -> dict[str, Any]:
        """What the pack says about ordinary prompts."""
        found: dict[str, Any] = self.server.status()["ordinary"]
        return found

    def wait_idle(self) -> None:
        """Until nothing runs or waits."""
        self.server.until(lambda: self.server.get("/prompt")["exec_info"]["queue_remaining"] == 0)

    @contextmanager
    def busy_master(self) -> Iterator[str]:
        """While the context lasts the master runs a prompt that only it can run; its id."""
        prompt_id = self.server.queue(blocker())
        self.server.until(lambda: prompt_id in self.running())
        try:
            yield prompt_id
        finally:
            if self.server.history(prompt_id) is None:
                self.server.post("/interrupt", {"prompt_id": prompt_id})
            self.server.wait(prompt_id)

    def running(self) -> list[str]:
        """Ids of the prompts that ComfyUI shows as running."""
        return [item[1] for item in self.server.get("/queue")["queue_running"]]

    def done_by(self, prompt_id: str) -> str:
        """The worker that ran a prompt; empty for the master."""
        mark = f"prompt {prompt_id}: done by "
        lines = [line for line in self.server.log().splitlines() if mark in line]
        return lines[-1].split(mark)[1].split(" ")[0] if lines else ""

    def log_of(self, name: str) -> str:
        """What a worker and its engine wrote."""
        return (self._logs / f"{name}.log").read_text(errors="replace")

    def close(self) -> None:
        """End everything."""
        for process in self.workers.values():
            process.terminate()
        for process in self.workers.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        self.server.close()


def blocker(seconds: float = 120.0) -> Prompt:
    """What stays on the master, for so long."""
    return {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("ProbeSteps", images=out("1"), steps=int(seconds * 50), stubborn=False, salt=time.monotonic_ns() % 2**50),
        "3": node("MasterOnly", images=out("2")),
    }


def stock(seed: int, *, prefix: str = "ComfyUI", pause: int = 0, **sampler: Any) -> Prompt:
    """Text to image without any node of ours; with ``pause`` 0.02 s more for each of that many steps."""
    prompt = without(distributed(seed=seed, **sampler), "6", "9")
    prompt["7"]["inputs"]["seed"] = seed
    prompt["5"]["inputs"]["batch_size"] = 1
    prompt["10"]["inputs"] |= {"images": out("8"), "filename_prefix": prefix}
    if pause:
        prompt["slow"] = node("ProbeSteps", images=out("8"), steps=pause, stubborn=False, salt=seed)
        prompt["10"]["inputs"]["images"] = out("slow")
    return prompt


def pixels(path: Path) -> NDArray[numpy.uint8]:
    """A picture as numbers."""
    with Image.open(path) as picture:
        return numpy.asarray(picture)


def texts(path: Path) -> dict[str, str]:
    """What is written into a PNG beside the picture."""
    with Image.open(path) as picture:
        return dict(getattr(picture, "text", {}))


def saved(entry: dict[str, Any], base: Path) -> list[Path]:
    """The files that a history entry names, by node."""
    folders = {"output": base / "output", "temp": base / "temp"}
    shown = [one for _, ui in sorted(entry["outputs"].items()) for many in ui.values() for one in many if isinstance(one, dict)]
    return [folders[file["type"]] / file["subfolder"] / file["filename"] for file in shown if file.get("type") in folders]
