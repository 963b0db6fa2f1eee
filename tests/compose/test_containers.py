"""What each container of the cpu profile may and may not: health, users, secrets, the servers' settings."""
from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.compose.stack import Stack, wait_for

LONG_RUNNING = ("redis-state", "redis-blobs", "worker-cpu", "flower")


@pytest.mark.parametrize("service", LONG_RUNNING)
def test_a_container_that_works_is_healthy(stack: Stack, service: str) -> None:
    for container in stack.containers(service):
        assert wait_for(lambda container=container: stack.is_healthy(container), f"{service} healthy", 60)


def test_a_worker_that_hangs_is_unhealthy_until_it_goes_on(stack: Stack) -> None:
    container = stack.any_worker
    with stack.frozen(container, "/opt/venv/bin/python -m worker_entry"):
        assert wait_for(lambda: not stack.is_healthy(container), "unhealthy", 60)
        others = [other for other in stack.containers("worker-cpu") if other != container]
        assert all(stack.is_healthy(other) for other in others), "only the one that hangs"
    assert wait_for(lambda: stack.is_healthy(container), "healthy again", 60)


def test_a_server_that_hangs_is_unhealthy_until_it_goes_on(stack: Stack) -> None:
    (container,) = stack.containers("redis-blobs")
    with stack.frozen(container, "valkey-server"):
        assert wait_for(lambda: not stack.is_healthy(container), "unhealthy", 60)
        assert stack.is_healthy(stack.containers("redis-state")[0]), "only the one that hangs"
    assert wait_for(lambda: stack.is_healthy(container), "healthy again", 60)


def test_no_process_of_the_stack_runs_as_root(stack: Stack) -> None:
    users = {container: stack.container("exec", container, "id", "-u").strip() for container in stack.containers()}
    assert users and "0" not in users.values()
    first = {container: stack.container("exec", container, "grep", "^Uid:", "/proc/1/status").split()[1] for container in users}
    assert "0" not in first.values()
    capabilities = {stack.container("exec", container, "grep", "^CapEff:", "/proc/1/status").split()[1] for container in users}
    assert {int(capability, 16) for capability in capabilities} == {0}


def test_the_passwords_are_nowhere_but_in_their_volume(stack: Stack) -> None:
    secrets = (stack.secret("redis-password"), stack.secret("flower-auth").removeprefix("flower:"))
    assert [len(secret) for secret in secrets] == [48, 48] and secrets[0] != secrets[1]
    assert stack.submit("secret", "--items", "1", "--set", "2.steps=1").result()["files"]
    seen = [json.dumps(stack.inspect(container)) + stack.container("logs", container) for container in stack.containers(also_ended=True)]
    seen += [stack.container("exec", container, "sh", "-c", "cat /proc/[0-9]*/cmdline") for container in stack.containers()]
    pages = ("/api/workers?refresh=1", "/api/tasks", "/workers", "/broker")
    seen += [stack.flower(page, stack.secret("flower-auth"))[1] for page in pages]
    seen += [stack.container(ask, image) for image in stack.images() for ask in ("inspect", "history")]
    assert [text for text in seen for secret in secrets if secret in text] == []


def test_an_image_has_the_program_and_nothing_of_the_machine_that_built_it(stack: Stack) -> None:
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    words = [word for line in listed.splitlines() for word in line.split("=", 1)[1].strip("'\"").split()]
    places = {word.removeprefix("file://") for word in words if "/" in word}
    places -= {"/etc/ssl/certs/ca-certificates.crt"}  # Debian's, in every image
    for service in ("flower", "worker-cpu"):
        container = stack.containers(service)[0]
        found = "find / -xdev ( -name .env -o -name .git -o -name pip.conf -o -name .netrc -o -path /src ) -print 2> /dev/null || true"
        assert stack.container("exec", container, "sh", "-c", found.replace("(", "\\(").replace(")", "\\)")) == ""
        for place in places:
            assert stack.container("exec", container, "sh", "-c", f"test -e '{place}' && echo there || true") == "", place
        asked = [json.dumps(stack.inspect(container)), *(stack.container("history", "--no-trunc", image) for image in stack.images())]
        assert [place for place in places for text in asked if place in text] == []


def test_flower_shows_the_workers_to_who_has_the_password_and_nothing_to_others(stack: Stack) -> None:
    names = {worker["name"] for worker in stack.workers()}

    def shown() -> set[str]:
        status, text = stack.flower("/api/workers?refresh=1", stack.secret("flower-auth"))
        assert status == 200
        return {worker for worker in json.loads(text) if worker.split("@")[0].split(".")[0] in names}

    assert wait_for(lambda: len(shown()) == 2, "both workers in Flower", 60)
    for page in ("/api/workers", "/api/tasks", "/workers", "/tasks"):
        assert stack.flower(page) == (401, "")
        assert stack.flower(page, "flower:wrong") == (401, "")


def test_the_servers_refuse_who_has_no_password(stack: Stack) -> None:
    for service in ("redis-state", "redis-blobs"):
        (container,) = stack.containers(service)
        assert "NOAUTH" in stack.container("exec", container, "valkey-cli", "ping")


def test_the_state_server_keeps_everything_and_the_blob_server_nothing(stack: Stack) -> None:
    names = ("appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy")

    def settings(service: str) -> dict[str, str]:
        return {name: " ".join(stack.server(service, "CONFIG", "GET", name)[1:]) for name in names}

    state = {"appendonly": "yes", "appendfsync": "everysec", "save": "", "maxmemory": "0", "maxmemory-policy": "noeviction"}
    blobs = {**state, "appendonly": "no", "maxmemory": str(256 * 2**20)}
    assert settings("redis-state") == state
    assert settings("redis-blobs") == blobs


def test_only_flowers_page_is_published_and_only_on_this_host(stack: Stack) -> None:
    ports = {container: stack.container("port", container).strip() for container in stack.containers()}
    (flower,) = stack.containers("flower")
    assert ports.pop(flower) == "5555/tcp -> 127.0.0.1:25555"
    assert set(ports.values()) == {""}


def test_a_failed_command_of_ours_ends_with_its_own_exit_status(stack: Stack) -> None:
    with pytest.raises(AssertionError, match="no job"):
        stack.compose("run", "--rm", "-T", "submit", "jobs", "show", "0123456789ab")
    command = ["exec", stack.commands, "/opt/container/entrypoint.sh", "distributed-comfy", "run", "missing.json"]
    done = subprocess.run([*stack._container, *command], capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
