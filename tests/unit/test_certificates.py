"""The cluster's authority and its door's certificate: who trusts them, how they last, who can read the keys."""
from __future__ import annotations

import os
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest

from distributed_comfy.access import certificates
from distributed_comfy.access.certificates import DoorCertificates, ensure_certificates


def shake_hands(server: DoorCertificates, ca_pem: str, name: str) -> None:
    """A handshake as door and client do it; raises what the client raises."""
    here, there = socket.socketpair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.key)

    def answer() -> None:
        try:
            context.wrap_socket(there, server_side=True).close()
        except OSError:  # the client does not like the certificate
            there.close()

    thread = threading.Thread(target=answer)
    thread.start()
    client = ssl.create_default_context(cadata=ca_pem)
    if hasattr(ssl, "VERIFY_X509_STRICT"):
        client.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 does by itself
    try:
        client.wrap_socket(here, server_hostname=name).close()
    finally:
        here.close()
        thread.join()


@pytest.mark.parametrize("name", ["192.168.1.5", "fd00::5", "gpu.example.org"])
def test_the_door_is_trusted_by_whoever_knows_its_authority_and_by_its_own_names_only(tmp_path: Path, name: str) -> None:
    door = ensure_certificates(tmp_path / "a", [name])
    shake_hands(door, door.ca.read_text(), name)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(door, door.ca.read_text(), "192.168.1.6")
    stranger = ensure_certificates(tmp_path / "b", [name])
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        shake_hands(door, stranger.ca.read_text(), name)


def test_every_file_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    ensure_certificates(tmp_path / "tls", ["10.0.0.1"])
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    for path in (tmp_path / "tls").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_second_call_changes_nothing_and_a_new_name_is_added_to_the_old_ones(tmp_path: Path) -> None:
    first = ensure_certificates(tmp_path, ["10.0.0.1"])
    before = contents(tmp_path)
    assert ensure_certificates(tmp_path, ["10.0.0.1"]) == first and contents(tmp_path) == before
    second = ensure_certificates(tmp_path, ["10.0.0.2"])
    assert second.fingerprint == first.fingerprint and contents(tmp_path)["ca.pem"] == before["ca.pem"]
    for name in ("10.0.0.1", "10.0.0.2"):
        shake_hands(second, second.ca.read_text(), name)


def test_a_certificate_near_its_end_is_renewed_and_still_trusted_by_hosts_that_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "_SERVER_DAYS", certificates._RENEW_DAYS - 1)
    old = ensure_certificates(tmp_path, ["10.0.0.1"])
    pinned, before = old.ca.read_text(), contents(tmp_path)
    monkeypatch.undo()
    new = ensure_certificates(tmp_path, [])
    assert contents(tmp_path)["server.pem"] != before["server.pem"]
    shake_hands(new, pinned, "10.0.0.1")
    after = contents(tmp_path)
    ensure_certificates(tmp_path, [])
    assert contents(tmp_path) == after


def test_a_lost_key_of_the_authority_makes_a_new_one_and_a_server_certificate_of_it(tmp_path: Path) -> None:
    old = ensure_certificates(tmp_path, ["10.0.0.1"])
    os.unlink(tmp_path / "ca.key")
    new = ensure_certificates(tmp_path, ["10.0.0.1"])
    assert new.fingerprint != old.fingerprint
    shake_hands(new, new.ca.read_text(), "10.0.0.1")
