"""The certificate of links, read by another implementation than the one that wrote it."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from meshnode.net.certificate import self_signed


def test_the_certificate_is_signed_with_its_own_key_and_has_no_end() -> None:
    der, pem = self_signed()
    certificate = x509.load_der_x509_certificate(der)
    certificate.verify_directly_issued_by(certificate)
    assert certificate.subject.rfc4514_string() == "CN=meshnode"
    assert certificate.not_valid_before_utc.year == 2000
    assert certificate.not_valid_after_utc.year == 9999
    assert certificate.public_bytes(Encoding.DER) == der
    assert x509.load_pem_x509_certificate(pem.encode()) == certificate


def test_the_private_key_belongs_to_the_certificate() -> None:
    der, pem = self_signed()
    key = load_pem_private_key(pem.encode(), None)
    public = x509.load_der_x509_certificate(der).public_key()
    assert isinstance(key, Ed25519PrivateKey)
    assert isinstance(public, Ed25519PublicKey)
    raw = (Encoding.Raw, PublicFormat.Raw)
    assert key.public_key().public_bytes(*raw) == public.public_bytes(*raw)


def test_no_two_certificates_share_a_key_or_a_serial_number() -> None:
    made = [x509.load_der_x509_certificate(self_signed()[0]) for _ in range(20)]
    assert len({each.serial_number for each in made}) == 20
    keys = {each.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw) for each in made}
    assert len(keys) == 20
    assert all(0 < each.serial_number < 2**127 for each in made)
