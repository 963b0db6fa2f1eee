"""Which build of torch a machine gets, and that the line shown before a download says what, from where and why."""
from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import install_torch
import pytest
from install_torch import CPU_INDEX, Choice, Machine, choices

SCRIPT = Path(install_torch.__file__)
SPEC = "torch==2.13.0"


def never_asked(url: str) -> bool:
    raise AssertionError(f"asked {url} although the answer does not matter")


def answers(url: str) -> bool:
    return url == CPU_INDEX


def is_silent(url: str) -> bool:
    return False


def test_linux_without_a_gpu_takes_the_cpu_index_and_then_the_default_one() -> None:
    first, second = choices(SPEC, "", Machine("Linux", has_nvidia=False), answers=answers)
    assert (first.spec, first.index) == (SPEC, CPU_INDEX)
    assert (second.spec, second.index) == (SPEC, "")


def test_linux_without_a_gpu_takes_the_default_index_where_the_cpu_index_is_silent() -> None:
    (only,) = choices(SPEC, "", Machine("Linux", has_nvidia=False), answers=is_silent)
    assert only.index == ""
    assert "does not answer" in only.line()
    assert "several GB" in only.line()


def test_a_machine_with_an_nvidia_gpu_takes_the_default_index() -> None:
    (only,) = choices(SPEC, "", Machine("Linux", has_nvidia=True), answers=never_asked)
    assert only.index == ""
    assert "NVIDIA GPU" in only.line()


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_other_systems_take_the_default_index(system: str) -> None:
    (only,) = choices(SPEC, "", Machine(system, has_nvidia=False), answers=never_asked)
    assert only.index == ""


@pytest.mark.parametrize("has_nvidia", [True, False])
def test_the_index_that_the_user_names_wins_on_every_machine(has_nvidia: bool) -> None:
    (only,) = choices(SPEC, "https://example.com/whl", Machine("Linux", has_nvidia), answers=never_asked)
    assert only.index == "https://example.com/whl"


def test_the_line_names_spec_index_build_and_reason() -> None:
    assert Choice("torch==1", "https://example.com/whl", "CPU build", "no GPU").line() == (
        "torch: downloading torch==1 (CPU build) from https://example.com/whl: no GPU"
    )


@pytest.fixture
def index_url() -> Iterator[str]:
    """A package index on loopback that lists torch under ``/cpu``, nothing under ``/empty``, and hangs under ``/slow``."""

    class Index(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            if self.path.startswith("/slow"):
                time.sleep(1.5)
            self.send_response(200 if self.path == "/cpu/torch/" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_an_index_that_lists_torch_answers(index_url: str) -> None:
    assert install_torch.index_answers(f"{index_url}/cpu")


def test_an_index_without_torch_does_not_answer(index_url: str) -> None:
    assert not install_torch.index_answers(f"{index_url}/empty")


def test_a_slow_index_is_given_up_after_the_timeout(index_url: str) -> None:
    started = time.monotonic()
    assert not install_torch.index_answers(f"{index_url}/slow", timeout_s=0.2)
    assert time.monotonic() - started < 1.2


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no-such-host.invalid/whl", "not a url"])
def test_an_index_that_cannot_be_reached_does_not_answer(url: str) -> None:
    assert not install_torch.index_answers(url, timeout_s=3)


def run_script(spec: str, index: str) -> subprocess.CompletedProcess[str]:
    without_network = {"PATH": "", "PIP_RETRIES": "0", "PIP_TIMEOUT": "1", "PIP_CONFIG_FILE": os.devnull}
    environment = {**without_network, "TORCH_SPEC": spec, "TORCH_INDEX": index}
    return subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_nothing_is_said_or_downloaded_where_torch_already_fits() -> None:
    done = run_script("torch>=2", "http://127.0.0.1:9/")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_torch_that_cannot_be_had_gives_one_line_with_the_remedy_at_the_end() -> None:
    done = run_script("torch==0.0.1", "http://127.0.0.1:9/")
    assert done.returncode == 1
    assert done.stdout == "torch: downloading torch==0.0.1 (the build of that index) from http://127.0.0.1:9/: TORCH_INDEX is set\n"
    assert "TORCH_SPEC" in done.stderr.splitlines()[-1]
