"""TLS 1.3 for links: secrecy only.

Certificates are made anew at each start and prove nothing by themselves; who a peer is, the hello
exchange establishes (meshnode.trust.hello) by signing the hash of the server's certificate, so
that a machine in the middle, which must show another certificate, is found out.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_VALID_DAYS = 3650  # nobody checks it; longer than a process lives


@dataclass(frozen=True)
class ServerTls:
    """A server's context and the SHA-256 of its certificate, to which the hello is bound."""

    context: ssl.SSLContext
    certificate_hash: bytes


def server_tls() -> ServerTls:
    """Make a key and a self-signed certificate, and a context that uses them."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "meshnode")])
    today = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - dt.timedelta(days=1))
        .not_valid_after(today + dt.timedelta(days=_VALID_DAYS))
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + certificate.public_bytes(serialization.Encoding.PEM)
    # The ssl module loads keys from files only: a private one, gone again at once.
    descriptor, path = tempfile.mkstemp(prefix="meshnode-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
        context.load_cert_chain(path)
    finally:
        Path(path).unlink()
    der = certificate.public_bytes(serialization.Encoding.DER)
    return ServerTls(context, hashlib.sha256(der).digest())


def client_tls() -> ssl.SSLContext:
    """Return a context that accepts any certificate; the hello tells whose it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def peer_certificate_hash(tls: ssl.SSLObject | ssl.SSLSocket) -> bytes:
    """Return the SHA-256 of the certificate that the server showed on this connection."""
    der = tls.getpeercert(binary_form=True)
    return hashlib.sha256(der or b"").digest()
