"""A large cluster as the panel's API would tell it: as many workers and jobs as no machine of ours can run, changing all the time.

For the measurement of the page alone; everything that it shows elsewhere comes from real workers.  The state is checked against
openapi.json by the test that uses it.
"""
from __future__ import annotations

import asyncio
import io
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from aiohttp import web
from PIL import Image

from tests.command_line import PROJECT

PAGE = PROJECT / "distributed_comfy" / "panel" / "web"
PREFIX = "/distributed/v2"
MIB, GIB = 2**20, 2**30


class Many:
    """A state that moves.

    Args:
        workers: how many.
        jobs: how many; a tenth of them runs or waits.
        seed: of everything that is drawn by lot.
    """

    def __init__(self, workers: int, jobs: int, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self.revision = 1
        self.down_since_ms = 0
        """Since when Redis is away; 0: nobody knows."""
        self.is_down = False
        self.down_code = "redis_unreachable"
        self.gone: dict[str, int] = {}
        """Hosts that are not heard of any more, and since when."""
        self.agent = "here"
        self.workers = {worker["name"]: worker for worker in (self._worker(number) for number in range(workers))}
        self.jobs = {job["id"]: job for job in (self._job(number) for number in range(jobs))}
        self.away: set[str] = set()
        """Hosts without an agent."""
        self.items = {str(index): self._item(index) for index in range(48)}

    @property
    def state(self) -> dict[str, Any]:
        """As `/state` gives it."""
        hosts = sorted({worker["host"] for worker in self.workers.values()} - self.away)
        return {
            "revision": self.revision, "instance": "many", "now_ms": now_ms(), "version": "0.0", "host": "pc0", "user": "me",
            "kind": "serve",
            "servers": self.servers, "hosts": {name: self._host(name) for name in hosts}, "workers": self.told(), "jobs": self.jobs,
            "master": None, "invites": 0,
            "tunnel": {"state": "closed", "url": "", "since_ms": 0, "error": None}, "agent": self.agent,
        }  # fmt: skip

    @property
    def servers(self) -> dict[str, Any]:
        """One that is both."""
        error = {"code": self.down_code, "message": "the state Redis does not answer", "remedy": "look whether it runs"}
        health = {
            "up": not self.is_down, "error": error if self.is_down else None, "version": "7.0.15", "used_bytes": 40 * MIB,
            "limit_bytes": None, "kept": True, "down_since_ms": self.down_since_ms,
        }  # fmt: skip
        return {"shown": "redis://127.0.0.1:6379/0", "embedded": True, "invited_to": "", "one": False, "state": health, "blobs": health}

    def told(self) -> dict[str, Any]:
        """Workers as pages are told of them."""
        if not self.is_down:
            return self.workers
        unknown = {"state": "unknown", "colour": "grey", "reason": "nothing is heard", "remedy": "", "since_ms": self.down_since_ms}
        return {name: {**worker, **unknown} for name, worker in self.workers.items()}

    def move(self) -> dict[str, Any]:
        """A quarter of a second of a busy cluster: as `change` tells it."""
        self.revision += 1
        if self.is_down:
            return {"revision": self.revision, "now_ms": now_ms(), "servers": self.servers, "workers": self.told()}
        workers = self._random.sample(sorted(self.workers), len(self.workers) // 2)
        active = [job for job in self.jobs.values() if job["state"] == "running"]
        for name in workers:
            self.workers[name] = self._moved(self.workers[name])
        for job in active:
            counts = job["counts"]
            done = (counts["done"] + 1) % (counts["total"] - counts["running"])
            moved = {**counts, "done": done, "pending": counts["total"] - done - counts["running"]}
            self.jobs[job["id"]] = {**job, "counts": moved, "ends_ms": now_ms() + 60_000}
        return {
            "revision": self.revision, "now_ms": now_ms(), "servers": self.servers,
            "workers": {name: self.workers[name] for name in workers},
            "jobs": {job["id"]: self.jobs[job["id"]] for job in active},
        }  # fmt: skip

    def _moved(self, worker: dict[str, Any]) -> dict[str, Any]:
        items = [{**item, "value": item["value"] % item["maximum"] + 1, "preview": item["preview"] + 1} for item in worker["items"]]
        used = self._random.randrange(4, 23) * GIB
        use = {**worker["use"], "used_bytes": used, "utilisation_percent": self._random.randrange(100)}
        return {**worker, "items": items, "use": use}

    def _worker(self, number: int) -> dict[str, Any]:
        wrong, held = number % 17 == 5, number % 13 == 7
        works = ("busy", "green") if number % 3 else ("idle", "green")
        state, colour = ("failed", "red") if wrong else ("drained", "yellow") if held else works
        host = f"pc{number // 4}"
        item = {
            "job": "job-0000", "index": number, "kind": "generate", "attempt": 1, "started_ms": now_ms(), "node_id": "3",
            "node_class": "KSampler", "value": number % 20 + 1, "maximum": 20, "shipping": False, "preview": number % 2,
        }  # fmt: skip
        return {
            "name": f"{host}-cuda{number % 4}", "host": host, "here": host == "pc0", "state": state, "colour": colour,
            "reason": "device cuda:7 is not there: this host has cuda:0 to cuda:3" if wrong else "",
            "remedy": "choose another device in its settings" if wrong else "", "repair": "device" if wrong else "",
            "since_ms": now_ms(), "next_start_ms": 0, "keeper": "agent",
            "guest": False,
            "orders": ["start", "disable"] if wrong else ["stop", "restart", "resume" if held else "drain", "clear-memory"],
            "editable": True, "enabled": True, "outdated": False, "restarts": number % 3, "device": f"cuda:{number % 4}",
            "device_class": "NVIDIA GeForce RTX 4090, driver 570, torch 2.7", "engine": "comfyui", "engine_version": "0.3.64", "commit": "",
            "version": "0.0", "started_ms": now_ms(), "pid": 0 if wrong else 4000 + number, "tags": [], "cores": "", "threads": 4,
            "log_folder": "/home/user/.cache/distributed-comfy/workers", "host_use": None, "models": [],
            "use": {"name": "NVIDIA GeForce RTX 4090", "utilisation_percent": 95, "used_bytes": 18 * GIB, "total_bytes": 24 * GIB},
            "items": [item] if state == "busy" else [], "items_done": number, "items_failed": 0, "last_error": None, "packs": {},
            "node_classes": 700, "model_files": 31, "configuration": {"device": f"cuda:{number % 4}"},
        }  # fmt: skip

    def _job(self, number: int) -> dict[str, Any]:
        ended_as = self._random.choice(("done", "done", "done", "failed", "cancelled"))
        state = "running" if number < 20 else "pending" if number < 100 else ended_as
        total = self._random.choice((4, 16, 48, 200))
        done = {"done": total, "pending": 0}.get(state, total // 2)
        running = min(4, total - done - 1) if state == "running" else 0
        failed = 1 if state == "failed" else 0
        ended = 0 if number < 100 else now_ms() - number * 60_000
        return {
            "id": f"job-{number:04}", "title": f"portrait of a lighthouse, take {number}", "state": state, "reason": "", "remedy": "",
            "user": "me" if number % 2 else "ada", "host": "pc0", "mine": bool(number % 2), "priority": 5,
            "created_ms": now_ms() - number * 70_000, "ended_ms": ended,
            "counts": {"total": total, "pending": total - done - running - failed, "running": running, "done": done, "failed": failed},
            "tiles": 0, "tiles_done": 0, "stages": 0, "retried": False, "position": number - 19 if state == "pending" else 0, "ends_ms": 0,
            "orders": ["cancel", "pause", "priority"] if number < 100 else [],
        }  # fmt: skip

    def _item(self, index: int) -> dict[str, Any]:
        state = "done" if index < 24 else "running" if index < 28 else "pending"
        return {
            "index": index, "kind": "generate", "seed": str(index), "state": state, "worker": "pc1-cuda0" if index < 28 else "",
            "attempts": 0, "seconds": 1.5 if index < 24 else None, "error": None, "preview": 1 if index < 28 else 0,
        }  # fmt: skip

    def _host(self, name: str) -> dict[str, Any]:
        own = [worker for worker in self.workers.values() if worker["host"] == name]
        devices = [
            {"name": worker["device"], "model": worker["use"]["name"], "memory_bytes": 24 * GIB, "used_by": [worker["name"]]}
            for worker in own
        ]
        resources = {
            "memory_total_bytes": 2**36, "memory_available_bytes": 2**35, "disk_total_bytes": 2**40, "disk_free_bytes": 2**39,
        }  # fmt: skip
        return {
            "name": name, "here": name == "pc0", "user": "me", "version": "0.0", "system": "Linux x86_64", "cpus": 32, "devices": devices,
            "workers": [worker["name"] for worker in own], "configurable": True, "resources": resources,
            "gone_ms": self.gone.get(name, 0),
        }  # fmt: skip

    def detail(self, job_id: str) -> dict[str, Any]:
        """As `/jobs/ID` gives it."""
        return {
            "job": self.jobs[job_id], "owner": "me@pc0", "frames": "", "error": None, "items": list(self.items.values()),
            "results_host": "", "results_folder": "", "results_here": False, "results": [], "results_complete": True,
        }  # fmt: skip


def now_ms() -> int:
    """Of this machine, which stands for Redis."""
    return int(time.time() * 1000)


def make_application(many: Many, interval_s: float) -> web.Application:
    """The page, and the few resources that it reads by itself."""

    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        job = request.query.get("job", "")
        await response.write(event("snapshot", {**many.state, "items": {job: many.items} if job else {}}))
        with suppress(ConnectionError):  # the page has gone
            while True:
                await asyncio.sleep(interval_s)
                await response.write(event("change", many.move()))
        return response

    async def job(request: web.Request) -> web.Response:
        return web.json_response(many.detail(request.match_info["job"]))

    async def preview(request: web.Request) -> web.Response:
        return web.Response(body=picture(int(request.match_info["index"]), int(request.query.get("number", 0))), content_type="image/jpeg")

    application = web.Application()
    application.router.add_get(f"{PREFIX}/events", events)
    application.router.add_get(f"{PREFIX}/jobs/{{job}}", job)
    application.router.add_get(f"{PREFIX}/jobs/{{job}}/items/{{index}}/preview", preview)
    application.router.add_get(f"{PREFIX}/ui/", lambda _request: _file())
    application.router.add_static(f"{PREFIX}/ui/", PAGE)
    return application


async def _file() -> web.FileResponse:
    return web.FileResponse(PAGE / "index.html")


def event(name: str, content: Any) -> bytes:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(content)}\n\n".encode()


def picture(index: int, number: int) -> bytes:
    """A small picture that differs from others."""
    file = io.BytesIO()
    rings = Image.radial_gradient("L").resize((128, 128)).rotate(number * 18)
    rings.point(lambda value: (value + index * 20) % 256).convert("RGB").save(file, "JPEG")
    return file.getvalue()


@contextmanager
def many_server(many: Many, interval_s: float = 0.25) -> Iterator[str]:
    """The page over that state, in a thread; gives its address."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    address: list[str] = []

    async def serve() -> None:
        runner = web.AppRunner(make_application(many, interval_s), shutdown_timeout=0.5)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address.append(f"http://127.0.0.1:{runner.addresses[0][1]}{PREFIX}/ui/")
        started.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(serve())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
