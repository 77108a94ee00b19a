"""The certificate that TLS wants of a server: self-signed, Ed25519, for one run (RFC 5280, RFC 8410).

It proves nothing by itself (`tls` says what does), so it holds only what the format demands and is
the same each time but for its key and serial number. The `cryptography` package would make it too;
importing it costs an idle node 9 MB and a tenth of its start, for some 200 bytes written once.
"""

from __future__ import annotations

import base64
import secrets
import ssl
from typing import TYPE_CHECKING, Final

from meshnode.trust.identity import SEED_BYTES, Identity

if TYPE_CHECKING:
    from collections.abc import Callable

# DER's types (X.690, section 8).
_INTEGER: Final = 0x02
_BIT_STRING: Final = 0x03
_OCTET_STRING: Final = 0x04
_OBJECT_ID: Final = 0x06
_UTF8_STRING: Final = 0x0C
_UTC_TIME: Final = 0x17
_GENERALIZED_TIME: Final = 0x18
_SEQUENCE: Final = 0x30
_SET: Final = 0x31
_VERSION: Final = 0xA0  # context-specific, 0

_COMMON_NAME: Final = b"\x55\x04\x03"  # 2.5.4.3
_ED25519: Final = b"\x2b\x65\x70"  # 1.3.101.112

_SERIAL_BYTES: Final = 16  # at most 20 by RFC 5280


def self_signed(
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
) -> tuple[bytes, str]:
    """Make a key and its certificate.

    Args:
        random_bytes: Draws so many bytes that nobody can guess.

    Returns:
        The certificate as DER, and key and certificate as PEM: a secret.
    """
    seed = random_bytes(SEED_BYTES)
    key = Identity(seed)
    algorithm = _der(_SEQUENCE, _der(_OBJECT_ID, _ED25519))
    common_name = _der(_OBJECT_ID, _COMMON_NAME) + _der(_UTF8_STRING, b"meshnode")
    name = _der(_SEQUENCE, _der(_SET, _der(_SEQUENCE, common_name)))
    # Nobody checks it; the end is the one that the standard has for "none".
    validity = _der(_UTC_TIME, b"000101000000Z") + _der(_GENERALIZED_TIME, b"99991231235959Z")
    to_be_signed = _der(
        _SEQUENCE,
        _der(_VERSION, _der(_INTEGER, b"\x02"))  # version 3
        + _der(_INTEGER, b"\x01" + random_bytes(_SERIAL_BYTES - 1))  # positive
        + algorithm
        + name  # of the issuer
        + _der(_SEQUENCE, validity)
        + name  # of the subject
        + _der(_SEQUENCE, algorithm + _der(_BIT_STRING, b"\x00" + key.public_key)),
    )
    signature = _der(_BIT_STRING, b"\x00" + key.sign(to_be_signed))
    certificate = _der(_SEQUENCE, to_be_signed + algorithm + signature)
    private = _der(_OCTET_STRING, _der(_OCTET_STRING, seed))
    secret = _der(_SEQUENCE, _der(_INTEGER, b"\x00") + algorithm + private)
    lines = base64.encodebytes(secret).decode()
    pem = f"-----BEGIN PRIVATE KEY-----\n{lines}-----END PRIVATE KEY-----\n"
    return certificate, pem + ssl.DER_cert_to_PEM_cert(certificate)


def _der(tag: int, content: bytes) -> bytes:
    """Encode one value: its type, its length, its content."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content
