"""Who may use the pack's routes: the token's file, origins, names, and whose connection it is."""
from __future__ import annotations

import os
import socket
import stat
import sys
from pathlib import Path

import pytest
from aiohttp.test_utils import make_mocked_request

from distributed_comfy.errors import OptionWrong
from distributed_comfy.panel import callers as callers_module
from distributed_comfy.panel.callers import Callers, Refused, same_origin
from distributed_comfy.panel.peers import may_be_own
from distributed_comfy.panel.token import HEADER, is_token, read_token

TOKEN = "t" * 43


# -- the file ------------------------------------------------------------------------------------------------------------
def test_the_token_is_made_once_and_only_its_user_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "comfyui.token"
    token = read_token(path)
    assert len(token) == 43 and read_token(path) == token
    assert [file.name for file in path.parent.iterdir()] == ["comfyui.token"]
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.name != "posix", reason="Windows has other rights")
def test_a_token_that_others_could_have_read_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "comfyui.token"
    before = read_token(path)
    path.chmod(0o644)
    after = read_token(path)
    assert after != before and stat.S_IMODE(path.stat().st_mode) == 0o600 and str(path) in caplog.text


@pytest.mark.parametrize("text", ["", "short", "x" * 500, "with space" + "x" * 33, "\n"])
def test_a_file_without_a_token_is_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / "comfyui.token"
    path.write_text(text)
    path.chmod(0o600)
    assert len(read_token(path)) == 43


def test_a_token_that_cannot_be_kept_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OptionWrong, match="remove it, or let this user write there"):
        read_token(tmp_path / "file" / "comfyui.token")


@pytest.mark.parametrize(("given", "right"), [(TOKEN, True), ("", False), (TOKEN[:-1], False), (TOKEN + "t", False), ("\udce4", False)])
def test_only_the_whole_token_counts(given: str, right: bool) -> None:
    assert is_token(given, TOKEN) is right


# -- requests ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        ("http://127.0.0.1:8188", "127.0.0.1:8188", True),
        ("http://LOCALHOST:8188", "localhost:8188", True),
        ("https://comfy.example.org", "comfy.example.org", True),
        ("https://comfy.example.org", "comfy.example.org:443", True),
        ("http://[::1]:8188", "[::1]:8188", True),
        ("http://localhost", "localhost:8188", False),
        ("http://localhost:8189", "localhost:8188", False),
        ("http://localhost:8188", "127.0.0.1:8188", False),
        ("http://evil.example@127.0.0.1:8188.evil.example", "127.0.0.1:8188", False),
        ("null", "127.0.0.1:8188", False),
        ("", "127.0.0.1:8188", False),
        ("file://", "", False),
        ("http://127.0.0.1:99999", "127.0.0.1:8188", False),
        ("http://[", "127.0.0.1:8188", False),
    ],
)
def test_a_page_is_of_this_comfyui_where_scheme_name_and_port_are_its_own(origin: str, host: str, same: bool) -> None:
    assert same_origin(origin, host) is same


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1:8188", True), ("10.0.0.5", True), ("[::1]:8188", True), ("localhost", True), ("studio.localhost:1", True),
        ("my-pc:8188", True), ("comfy.example.org", True), ("COMFY.example.org.:443", True),
        ("evil.example", False), ("127.0.0.1.evil.example", False), ("localhost.evil.example:8188", False), ("", False), ("[", False),
        ("notcomfy.example.org", False),
    ],
)  # fmt: skip
def test_a_name_that_somebodys_dns_could_lead_here_must_be_known(host: str, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers_module, "own_names", lambda: frozenset({"pc1"}))
    callers = Callers(lambda: TOKEN, ["comfy.example.org", ""])
    request = make_mocked_request("GET", "/", headers={"Host": host})
    if known:
        callers.check_site(request)
        return
    with pytest.raises(Refused, match="DC_COMFYUI_NAMES") as refused:
        callers.check_site(request)
    assert refused.value.status == 403


def test_the_token_is_asked_for_after_the_site() -> None:
    callers = Callers(lambda: TOKEN, [])
    callers.check_token(make_mocked_request("POST", "/", headers={"Host": "localhost", HEADER: TOKEN}))
    for headers, status in (({}, 401), ({HEADER: "x"}, 401), ({HEADER: TOKEN, "Origin": "https://evil.example"}, 403)):
        with pytest.raises(Refused) as refused:
            callers.check_token(make_mocked_request("POST", "/", headers={"Host": "localhost", **headers}))
        assert refused.value.status == status


# -- whose connection it is ----------------------------------------------------------------------------------------------
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_connection_of_this_user_is_its_own(family: socket.AddressFamily) -> None:
    address = ("127.0.0.1" if family == socket.AF_INET else "::1", 0)
    with socket.create_server(address, family=family) as server, socket.create_connection(server.getsockname()[:2]) as client:
        far, near = client.getsockname()[:2], server.getsockname()[:2]
        assert may_be_own(far, near)
        assert not may_be_own(far, (near[0], near[1] + 1)), "another connection from the same port"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_connection_of_another_user_is_not(tmp_path: Path) -> None:
    far, near, me = ("127.0.0.1", 0x1F90), ("127.0.0.1", 0x1FFC), os.getuid()
    row = "   0: 0100007F:1F90 0100007F:{2} {1} 00000000:00000000 00:00000000 00000000  {0}        0 1 1 0000000000000000 20 4 30 10 -1\n"

    def told(*rows: tuple[int, str, str]) -> bool:
        (tmp_path / "tcp").write_text("  sl  local_address rem_address   st\n" + "".join(row.format(*each) for each in rows))
        return may_be_own(far, near, tmp_path)

    assert may_be_own(far, near, tmp_path), "nobody tells"
    assert told((me, "01", "1FFC"))
    assert not told((me + 12345, "01", "1FFC")), "another user"
    assert not told((me, "06", "1FFC")), "a connection that is over"
    assert not told((me, "01", "1FFD"), (me + 12345, "01", "1FFC")), "another connection from the same port"
    assert not told((me, "01", "1FFC"), (me + 12345, "01", "1FFC"))
    assert not told(), "not listed: somewhere else"
