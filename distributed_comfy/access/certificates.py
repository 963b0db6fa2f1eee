"""The cluster's own certificate authority, and the certificate of its door; made when the first host is invited, renewed by themselves.

In a folder of the server's owner, all files 0600: ``ca.key`` signs, ``ca.pem`` is what an invited host trusts and nothing else,
``server.key`` and ``server.pem`` (with ``ca.pem`` behind it) are the door's.
"""
from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from distributed_comfy.file_lock import FileLock
from distributed_comfy.state.server_process import write_secret

_CA_DAYS = 3650
_SERVER_DAYS = 365
_RENEW_DAYS = 120
"""Of the server's certificate, before it ends: any command of the owner within these renews it."""
_CLOCK_SKEW = datetime.timedelta(days=1)
"""Certificates begin a day ago: the clock of an invited host may be behind."""
_LOCK_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class DoorCertificates:
    """Files of one folder."""

    ca: Path
    certificate: Path
    """The server's, and behind it the authority's."""
    key: Path
    fingerprint: str
    """Of the authority: SHA-256 of its certificate, in hexadecimal digits."""


def ensure_certificates(folder: Path, names: Iterable[str]) -> DoorCertificates:
    """The certificates in a folder: made where there are none, renewed where the server's nears its end or lacks a name.

    Args:
        folder: created.
        names: host names and addresses by which the door is reached; those it had before stay.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FileLock(folder / "certificates.lock")
    if not lock.acquire(_LOCK_TIMEOUT_S):
        raise OSError(f"another process has held {lock.path} for {_LOCK_TIMEOUT_S:g} s")
    try:
        authority = _authority(folder)
        known = _server_certificate(folder)
        wanted = {*names, *(_names(known) if known else ())}
        if known is None or _names(known) != wanted or _ends_soon(known) or not _is_signed_by(known, authority[0]):
            _make_server(folder, authority, sorted(wanted))
    finally:
        lock.release()
    return DoorCertificates(folder / "ca.pem", folder / "server.pem", folder / "server.key", _fingerprint(authority[0]))


def _fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The authority and its key; both new where one of them is missing."""
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return certificate, key
    except FileNotFoundError:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _make_authority(key)
        write_secret(folder / "ca.key", _key_text(key))
        write_secret(folder / "ca.pem", _text(certificate))
        return certificate, key


def _make_authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Distributed Comfy")])
    usage = _usage(key_cert_sign=True, crl_sign=True)
    return (
        _builder(name, name, key, _CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _make_server(folder: Path, authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey], names: list[str]) -> None:
    issuer, issuer_key = authority
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Distributed Comfy door")])
    certificate = (
        _builder(name, issuer.subject, key, _SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(text) for text in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    # The door reads both once their times change; a pair that does not fit is read again.
    write_secret(folder / "server.key", _key_text(key))
    write_secret(folder / "server.pem", _text(certificate) + _text(issuer))


def _builder(name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _server_certificate(folder: Path) -> x509.Certificate | None:
    try:
        certificate = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return certificate if (folder / "server.key").exists() else None


def _names(certificate: x509.Certificate) -> set[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = names.get_values_for_type(x509.IPAddress)
    return {*names.get_values_for_type(x509.DNSName), *map(str, addresses)}


def _ends_soon(certificate: x509.Certificate) -> bool:
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.timezone.utc)
    return left < datetime.timedelta(days=_RENEW_DAYS)


def _is_signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
        authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    )
    return certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value == identifier


def _text(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_text(key: ec.EllipticCurvePrivateKey) -> str:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()
