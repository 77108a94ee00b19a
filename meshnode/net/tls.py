"""TLS 1.3 for links: secrecy only.

Certificates are made anew at each start and prove nothing by themselves; who a peer is, the hello
exchange establishes (meshnode.trust.hello) by signing the hash of the server's certificate, so
that a machine in the middle, which must show another certificate, is found out.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

from meshnode.net.certificate import self_signed


@dataclass(frozen=True)
class ServerTls:
    """A server's context and the SHA-256 of its certificate, to which the hello is bound."""

    context: ssl.SSLContext
    certificate_hash: bytes


def server_tls(folder: Path) -> ServerTls:
    """Make a key and a self-signed certificate, and a context that uses them.

    Args:
        folder: Where the key may lie for a moment; private to this user.

    Raises:
        OSError: if no file can be written there.
    """
    certificate, pem = self_signed()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The ssl module loads keys from files only: a private one, gone again at once.
    descriptor, path = tempfile.mkstemp(prefix="tls-", dir=folder)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(pem)
        context.load_cert_chain(path)
    finally:
        Path(path).unlink()
    return ServerTls(context, hashlib.sha256(certificate).digest())


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
