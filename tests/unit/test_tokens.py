"""The text of an invitation: what goes in comes out, and nothing else is taken for one."""
from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest

from distributed_comfy.access.certificates import ensure_certificates
from distributed_comfy.access.token import JoinToken, read_token
from distributed_comfy.errors import TokenUnreadable

TOKEN = JoinToken(
    "pc2", "rediss://10.0.0.1:47380/0", "rediss://10.0.0.1:47381/0", "dc-host-pc2", "canary/secret+with@signs", 1_800_000_000_000
)


def repacked(**changes: object) -> str:
    content = json.loads(base64.urlsafe_b64decode(TOKEN.text[4:] + "=="))
    return "dc1." + base64.urlsafe_b64encode(json.dumps({**content, **changes}).encode()).decode().rstrip("=")


def test_what_was_put_into_a_token_comes_out_of_its_text(tmp_path: Path) -> None:
    authority = ensure_certificates(tmp_path, ["10.0.0.1"])
    token = replace(TOKEN, ca=authority.ca.read_text())
    assert read_token(token.text) == token and token.fingerprint == authority.fingerprint
    assert token.text.startswith("dc1.") and len(token.text) < 1200 and "=" not in token.text


def test_a_line_that_a_terminal_broke_is_read() -> None:
    text = TOKEN.text
    assert read_token(f" {text[:60]}\n  {text[60:]}\n") == TOKEN


@pytest.mark.parametrize(
    "text",
    ["", "dc1.", "dc1", "redis://x", TOKEN.text[:-9], TOKEN.text[:20] + "x" + TOKEN.text[21:], "dc1." + "A" * 20_000,
     "dc1.bnVsbA", "dc1.W10",
     repacked(v=2), repacked(url="http://x/"), repacked(url="rediss://user:pw@x/0"), repacked(host="../x"), repacked(host=""),
     repacked(prefix="*"), repacked(expires_ms="soon"), repacked(secret=1), repacked(ca="AAAA", more="x"), repacked(ca="!")],
)  # fmt: skip
def test_what_is_no_token_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(TokenUnreadable, match="copy the whole line") as refused:
        read_token(text)
    assert not text or text not in str(refused.value)


def test_a_token_of_a_later_version_says_what_to_do() -> None:
    with pytest.raises(TokenUnreadable, match="upgrade distributed-comfy here"):
        read_token("dc7.abc")


def test_secrets_are_in_no_repr_and_whole_in_the_url() -> None:
    assert "canary" not in repr(TOKEN)
    assert TOKEN.with_user(TOKEN.url) == "rediss://dc-host-pc2:canary%2Fsecret%2Bwith%40signs@10.0.0.1:47380/0"


def test_a_token_whose_host_was_changed_says_what_it_names() -> None:
    with pytest.raises(TokenUnreadable, match=r"it names host 'pc1' and user 'dc-host-pc2', .*: it was changed") as refused:
        read_token(repacked(host="pc1"))
    assert "ask for a new one" in str(refused.value) and "canary" not in str(refused.value)


@pytest.mark.parametrize("garbage", [b"\x00\x01garbage", b"\x30\x82\x01\x00" + bytes(40)])
def test_a_token_with_a_damaged_certificate_says_so(garbage: bytes) -> None:
    with pytest.raises(TokenUnreadable, match="the certificate in it is damaged"):
        read_token(repacked(ca=base64.b64encode(garbage).decode()))


def test_a_token_with_half_of_a_certificate_says_so(tmp_path: Path) -> None:
    whole = replace(TOKEN, ca=ensure_certificates(tmp_path, ["10.0.0.1"]).ca.read_text())
    der = json.loads(base64.urlsafe_b64decode(whole.text[4:] + "=="))["ca"]
    with pytest.raises(TokenUnreadable, match="the certificate in it is damaged"):
        read_token(repacked(ca=der[: len(der) // 8 * 4]))
