"""The two files of a gateway's certificate: what is in them, or what is wrong with them.

OpenSSL says of most mistakes `PEM lib`. So what people mix up is looked for before it is asked (one
file for the other, DER for PEM, a password), and what it refuses is read once more part by part.
"""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, NamedTuple

from meshnode.errors import ConfigError
from meshnode.limits import MAX_TLS_FILE_BYTES

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

_LABEL = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,64})-----")
_CERTIFICATES = {b"CERTIFICATE", b"X509 CERTIFICATE", b"TRUSTED CERTIFICATE"}


class Pair(NamedTuple):
    """A certificate and its key, ready to serve.

    Attributes:
        context: Serves them.
        certificate: The certificate's file, as it was read.
        key: The key's file, likewise.
    """

    context: ssl.SSLContext
    certificate: bytes
    key: bytes = b""


def load_pair(certificate: Path, key: Path) -> Pair:
    """Read both files.

    Raises:
        ConfigError: if they cannot be used; the message says which file and why.
    """
    chain, secret = _read("--tls-cert", certificate), _read("--tls-key", key)
    _check_content(certificate, chain, key, secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except ssl.SSLError as error:
        reason = error.reason or str(error)
        if "MISMATCH" in reason:
            raise ConfigError(
                f"--tls-key {key} is not the key of --tls-cert {certificate}; name the two files that "
                "belong together (the certificate first in its file, then its chain)"
            ) from None
        damage = _damage(certificate, chain, key, secret)
        what = damage or f"OpenSSL says: {reason.replace('_', ' ').lower()}"
        raise ConfigError(
            f"--tls-cert {certificate} and --tls-key {key} cannot be used ({what}); they must be a "
            "certificate with its chain and its private key, in PEM"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"--tls-cert {certificate} or --tls-key {key} cannot be read: {error.strerror or error}"
        ) from None
    return Pair(context, chain, secret)


def dates_of(chain: bytes) -> tuple[datetime, datetime]:
    """Return from when to when the first certificate of a file is valid.

    Raises:
        ValueError: if that cannot be read, as of a `TRUSTED CERTIFICATE`, which is OpenSSL's own.
    """
    from cryptography import x509  # only where there is TLS

    leaf = x509.load_pem_x509_certificates(chain)[0]
    return leaf.not_valid_before_utc, leaf.not_valid_after_utc


def _check_content(certificate: Path, chain: bytes, key: Path, secret: bytes) -> None:
    _check_form("--tls-cert", certificate, chain, "x509")
    _check_form("--tls-key", key, secret, "pkey")
    in_certificate, in_key = (set(_LABEL.findall(text)) for text in (chain, secret))
    if not in_certificate & _CERTIFICATES:
        if in_key & _CERTIFICATES and _has_key(in_certificate) and not _has_key(in_key):
            raise ConfigError(
                f"--tls-cert {certificate} has a private key and --tls-key {key} a certificate: these "
                "two look swapped; name them the other way round"
            )
        raise ConfigError(
            f"there is no certificate in --tls-cert {certificate} (it has {_listed(in_certificate)}); "
            "name the file with the certificate and its chain, often fullchain.pem"
        )
    if not _has_key(in_key):
        raise ConfigError(
            f"there is no private key in --tls-key {key} (it has {_listed(in_key)}); name the file "
            "with the key that the certificate was made for, often privkey.pem"
        )
    if b"ENCRYPTED" in secret:
        raise ConfigError(
            f"--tls-key {key} has a password, which nobody could type when the node starts by "
            f"itself; remove it: openssl pkey -in {key.name} -out {key.stem}-plain.pem"
        )


def _check_form(option: str, path: Path, text: bytes, command: str) -> None:
    if not text.strip():
        raise ConfigError(f"{option} {path} is empty")
    if _LABEL.search(text):
        return
    if text[:1] != b"\x30":  # what DER begins with: a sequence
        raise ConfigError(f"{option} {path} is not a PEM file: it has no -----BEGIN line")
    if b"\x02\x01\x03\x30" in text[:8]:  # version 3: PKCS #12 (RFC 7292, section 4)
        command, what = "pkcs12 -nodes", "PKCS #12 (.p12, .pfx)"
    else:
        command, what = f"{command} -inform DER", "DER"
    raise ConfigError(
        f"{option} {path} is {what}, not PEM; convert it: "
        f"openssl {command} -in {path.name} -out {path.stem}.pem"
    )


def _has_key(labels: set[bytes]) -> bool:
    return any(label.endswith(b"PRIVATE KEY") for label in labels)


def _listed(labels: set[bytes]) -> str:
    return ", ".join(sorted(label.decode() for label in labels))


def _damage(certificate: Path, chain: bytes, key: Path, secret: bytes) -> str:
    """Say which of two files that OpenSSL refuses together is damaged, or nothing."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    for path, what, read in (
        (certificate, "certificate", lambda: dates_of(chain)),
        (key, "private key", lambda: load_pem_private_key(secret, None)),
    ):
        try:
            read()
        except UnsupportedAlgorithm:
            return f"the {what} in {path.name} is of a kind that is not known here"
        except (ValueError, TypeError):
            return f"the {what} in {path.name} is damaged or cut off"
    return ""


def _read(option: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TLS_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{option} {path} does not exist") from None
    except OSError as error:
        raise ConfigError(
            f"{option} {path} cannot be read by this user: {error.strerror or error}"
        ) from None
    if len(content) > MAX_TLS_FILE_BYTES:
        raise ConfigError(
            f"{option} {path} is no certificate or key: it has more than {MAX_TLS_FILE_BYTES} bytes"
        )
    return content
