"""The gateway's TLS: a certificate and its key from files, checked at the start, renewed while it runs.

Certificates last 90 days or less, and whatever renews them replaces the files. They are looked at once
a minute; a pair that loads counts for the next connection, one that does not (half written, a key
that does not fit) is told once and the old pair stays. Python's ssl reads files only and cannot take
back half of a pair, so each pair gets a context of its own, to which the handshake switches.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING

from meshnode.errors import ConfigError
from meshnode.limits import MAX_TLS_FILE_BYTES, TLS_POLL_S

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

_Stamp = tuple[int, int, int]  # what changes when a file does


class GatewayTls:
    """A certificate and key that clients are served with.

    Attributes:
        context: For the listening socket; serves whatever pair was loaded last.
    """

    def __init__(
        self, certificate: str, key: str, *, wall_s: Callable[[], float] = time.time
    ) -> None:
        """Load the files.

        Args:
            certificate: Path of the certificate and its chain, PEM.
            key: Path of its private key, PEM, without a password.
            wall_s: Tells seconds since the Unix epoch, to warn of what has expired.

        Raises:
            ConfigError: if they cannot be used; the message says which file and why.
        """
        self._certificate = Path(certificate)
        self._key = Path(key)
        self._wall_s = wall_s
        self._seen = self._stamps()
        self.context = self._current = _load(self._certificate, self._key)
        self.context.sni_callback = self._switch
        self._warn_of_dates()

    def __repr__(self) -> str:
        return f"<GatewayTls {self._certificate}>"

    def reload(self) -> bool:
        """Take the files anew if they have changed; return whether there is another pair. Blocks."""
        stamps = self._stamps()
        if stamps == self._seen:
            return False
        self._seen = stamps
        try:
            self._current = _load(self._certificate, self._key)
        except ConfigError as error:
            log.error("the renewed certificate is not used, the one before stays: %s", error)
            return False
        log.info("the certificate was renewed")
        self._warn_of_dates()
        return True

    async def follow(self, interval_s: float = TLS_POLL_S) -> None:
        """Look at the files every so many seconds, for ever."""
        while True:
            await asyncio.sleep(interval_s)
            await asyncio.to_thread(self.reload)

    def _switch(
        self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        """Called in every handshake, whether or not the client names a server."""
        connection.context = self._current

    def _stamps(self) -> tuple[_Stamp | None, _Stamp | None]:
        return _stamp(self._certificate), _stamp(self._key)

    def _warn_of_dates(self) -> None:
        from cryptography import x509  # only where there is TLS

        leaf = x509.load_pem_x509_certificates(self._certificate.read_bytes())[0]
        begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        wall_s = self._wall_s()
        if ends.timestamp() <= wall_s:
            log.warning(
                "the certificate %s expired at %s: clients will refuse it; renew it",
                self._certificate,
                ends.isoformat(),
            )
        elif begins.timestamp() > wall_s:
            log.warning(
                "the certificate %s is valid from %s on: renew it, or set this machine's clock right",
                self._certificate,
                begins.isoformat(),
            )


def _load(certificate: Path, key: Path) -> ssl.SSLContext:
    for option, path in (("--tls-cert", certificate), ("--tls-key", key)):
        text = _read(option, path)
        if b"-----BEGIN " not in text:
            raise ConfigError(f"{option} {path} is not a PEM file: it has no -----BEGIN line")
        if path is key and b"ENCRYPTED" in text:
            raise ConfigError(
                f"{option} {path} has a password, which nobody could type when the node starts by "
                f"itself; remove it: openssl pkey -in {path.name} -out {path.stem}-plain.pem"
            )
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
        what = reason.replace("_", " ").lower()
        raise ConfigError(
            f"--tls-cert {certificate} and --tls-key {key} cannot be used ({what}); they must be a "
            "certificate with its chain and its private key, in PEM"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"--tls-cert {certificate} cannot be used: {error.strerror or error}"
        ) from None
    return context


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


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
