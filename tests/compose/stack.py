"""The compose stack seen from outside: its containers, its command line, and its two servers."""
from __future__ import annotations

import ast
import base64
import io
import json
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXAMPLE = "examples/seeded_pictures.json"
POLL_S = 0.25


@dataclass
class Job:
    """A job that `submit` runs in the background."""

    process: subprocess.Popen[str]
    out: str

    def result(self, timeout_s: float = 240.0) -> dict[str, Any]:
        """What the command printed as JSON; it must have succeeded."""
        output, remarks = self.process.communicate(timeout=timeout_s)
        assert self.process.returncode == 0, remarks
        found: dict[str, Any] = last_json(output)
        return found


class Stack:
    """A project of docker compose, or of podman-compose."""

    def __init__(self, engine: str, compose: Sequence[str], up: Sequence[str], container: Sequence[str], project: str) -> None:
        self.engine = engine
        self.project = project
        self._compose = list(compose)
        self._up = list(up)
        self._container = list(container)

    # -- commands ------------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """`up`, in the background."""
        _checked([*self._up, "-d"], 180)

    def compose(self, *arguments: str, timeout_s: float = 120.0) -> str:
        """Run a compose command that must succeed; its standard output."""
        return _checked([*self._compose, *arguments], timeout_s)

    def container(self, *arguments: str, timeout_s: float = 60.0) -> str:
        """Run a command of the container engine that must succeed; its standard output."""
        return _checked([*self._container, *arguments], timeout_s)

    def ours(self, *arguments: str) -> Any:
        """Run a command of ours; its JSON."""
        output = self.container("exec", self.commands, "/opt/container/entrypoint.sh", "distributed-comfy", *arguments, "--json")
        return last_json(output)

    def submit(self, out: str, *arguments: str) -> Job:
        """Run the example through the service `submit`, in the background."""
        command = [*self._compose, "run", "--rm", "-T", "submit", "run", EXAMPLE, "--json", "--out", f"output/{out}", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return Job(process, out)

    def files(self, out: str) -> dict[str, bytes]:
        """Files of a folder in the volume of pictures, taken out as docs/compose.md says."""
        command = [*self._compose, "run", "--rm", "-T", "--no-deps", "--entrypoint", "tar", "submit", "-C", f"output/{out}", "-c", "."]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            found = {Path(member.name).name: archive.extractfile(member) for member in archive if member.isfile()}
            return {name: file.read() for name, file in found.items() if file is not None}

    # -- containers ----------------------------------------------------------------------------------------------------
    def containers(self, service: str = "", *, also_ended: bool = False) -> list[str]:
        """Ids of the containers of a service, or of all services."""
        labels = [f"label=com.docker.compose.project={self.project}"]
        labels += [f"label=com.docker.compose.service={service}"] if service else []
        filters = [part for label in labels for part in ("--filter", label)]
        return self.container("ps", "-q", "--no-trunc", *(["-a"] if also_ended else []), *filters).split()

    def start_all(self) -> None:
        """Start what a test stopped or killed."""
        for service in ("redis-state", "redis-blobs", "worker-cpu", "flower"):
            running = self.containers(service)
            for container in set(self.containers(service, also_ended=True)) - set(running):
                self.container("start", container)

    def images(self) -> list[str]:
        """Ids of the images that containers of the stack run."""
        return sorted({self.inspect(container)["Image"] for container in self.containers()})

    def is_healthy(self, container: str) -> bool:
        """What the health check says: Docker runs it by itself, podman without systemd when it is told to."""
        if self.engine == "docker":
            return self.container("inspect", "--format", "{{.State.Health.Status}}", container).strip() == "healthy"
        done = subprocess.run([*self._container, "healthcheck", "run", container], capture_output=True, timeout=30, check=False)
        return done.returncode == 0

    def inspect(self, container: str) -> dict[str, Any]:
        """Everything that the engine tells of a container."""
        found: dict[str, Any] = json.loads(self.container("inspect", container))[0]
        return found

    # -- cluster -------------------------------------------------------------------------------------------------------
    @property
    def any_worker(self) -> str:
        """A running worker container."""
        return self.containers("worker-cpu")[0]

    @property
    def commands(self) -> str:
        """The container of Flower, which has our commands, and the volume with the passwords."""
        (container,) = self.containers("flower")
        return container

    def workers(self) -> list[dict[str, Any]]:
        """`workers list`."""
        found: list[dict[str, Any]] = self.ours("workers", "list")
        return found

    def wait_workers(self, count: int, *, state: str, timeout_s: float = 90.0) -> list[dict[str, Any]]:
        """Wait until as many workers are in this state."""

        def found() -> list[dict[str, Any]]:
            workers = [worker for worker in self.workers() if worker["state"] == state]
            return workers if len(workers) >= count else []

        return wait_for(found, f"{count} workers {state}", timeout_s)

    def busy_workers(self) -> list[str]:
        """Names of the workers that run an item at this moment; asked of the server, because a command of ours takes as long as an item."""
        names = self.server("redis-state", "SMEMBERS", "dc:workers")
        return [name for name in names if self.server("redis-state", "HLEN", f"dc:worker:{name}:claims") != ["0"]]

    def container_of(self, worker: str) -> str:
        """The container of a worker, whose name begins with the container's short id."""
        (found,) = [container for container in self.containers("worker-cpu") if worker.startswith(container[:12])]
        return found

    def server(self, service: str, *command: str) -> list[str]:
        """Ask a Valkey server, as a client with the password; lines of its answer."""
        (container,) = self.containers(service)
        ask = 'export REDISCLI_AUTH="$(cat /var/lib/dc-secret/redis-password)"; exec valkey-cli "$@"'
        return self.container("exec", container, "sh", "-ec", ask, "-", *command).split()

    def secret(self, name: str) -> str:
        """``redis-password`` or ``flower-auth``, out of the volume."""
        return self.container("exec", self.commands, "cat", f"/var/lib/dc-secret/{name}")

    def flower(self, path: str, authorization: str = "") -> tuple[int, str]:
        """HTTP status and text of a page of Flower, by the port that is published."""
        (container,) = self.containers("flower")
        address = self.container("port", container, "5555/tcp").splitlines()[0].strip()
        headers = {"Authorization": f"Basic {base64.b64encode(authorization.encode()).decode()}"} if authorization else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(f"http://{address}{path}", headers=headers), timeout=10) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""

    def flower_tasks(self, job_id: str) -> list[dict[str, Any]]:
        """What Flower lists of a job, ``kwargs`` as values."""
        status, text = self.flower(f"/api/tasks?search=kwargs:job={job_id}", self.secret("flower-auth"))
        assert status == 200
        return [{**task, "kwargs": ast.literal_eval(task["kwargs"])} for task in json.loads(text).values()]

    @contextmanager
    def frozen(self, container: str, program: str) -> Iterator[None]:
        """A process of a container hangs, as one does that waits for a dead disk.

        Args:
            container: which.
            program: beginning of its command line.
        """
        this = f"case $(tr '\\0' ' ' < $p/cmdline) in '{program}'*)"
        find = f"for p in /proc/[0-9]*; do {this} kill -$0 ${{p#/proc/}} && echo ${{p#/proc/}};; esac; done"
        assert self.container("exec", container, "sh", "-c", find, "STOP").split(), f"nothing in there is called {program}"
        try:
            yield
        finally:
            self.container("exec", container, "sh", "-c", find, "CONT")


def wait_for(found: Callable[[], Any], what: str, timeout_s: float) -> Any:
    """Poll until there is something."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(POLL_S)
    raise AssertionError(f"{what}: not within {timeout_s:.0f} s")


def last_json(output: str) -> Any:
    """The JSON among what podman-compose prints beside it."""
    lines = [line for line in output.splitlines() if line.startswith(("{", "["))]
    assert lines, f"no JSON in {output!r}"
    return json.loads(lines[-1])


def _checked(command: Sequence[str], timeout_s: float) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
