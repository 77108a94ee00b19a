"""The gateway's TLS: a certificate and its key from files, checked at the start, renewed while it runs.

Certificates last 90 days or less, and whatever renews them replaces the files. They are looked at once
a minute; a pair that loads counts for the next connection, one that does not (half written, a key
that does not fit) is told once and the old pair stays. Python's ssl reads files only and cannot take
back half of a pair, so each pair gets a context of its own, to which the handshake switches.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from meshnode.errors import ConfigError
from meshnode.gateway.tls_files import Pair, dates_of, load_pair
from meshnode.limits import TLS_EXPIRY_REPEAT_S, TLS_EXPIRY_WARNING_S, TLS_POLL_S

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from datetime import datetime

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
        self._told: set[type[Exception]] = set()
        self._dates: tuple[datetime, datetime] | None = None
        self._warned_at_s: float | None = None
        pair = load_pair(self._certificate, self._key)
        self.context = pair.context
        self.context.sni_callback = self._switch
        self._take(pair)

    def __repr__(self) -> str:
        return f"<GatewayTls {self._certificate}>"

    def pem(self) -> tuple[bytes, bytes]:
        """Return the key and the certificate that were loaded last, for servers that bring a TLS of their own."""
        return self._pair.key, self._pair.certificate

    def reload(self) -> bool:
        """Take the files anew if they have changed; return whether there is another pair. Blocks."""
        stamps = self._stamps()
        if stamps == self._seen:
            return False
        try:
            pair = load_pair(self._certificate, self._key)
        except ConfigError as error:
            self._seen = stamps
            log.error("the renewed certificate is not used, the one before stays: %s", error)
            return False
        self._seen = stamps
        log.info("the certificate was renewed")
        self._take(pair)
        return True

    async def follow(self, interval_s: float = TLS_POLL_S) -> None:
        """Look at the files and at the certificate's end every so many seconds, for ever."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await asyncio.to_thread(self.reload)
                self._warn_of_dates()
            except Exception as error:  # noqa: BLE001 - a renewal after this one must still be seen
                if type(error) not in self._told:
                    self._told.add(type(error))
                    log.error(
                        "the certificate %s cannot be followed (%r); the one before stays, and it is "
                        "looked at again",
                        self._certificate,
                        error,
                    )

    def _switch(
        self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        """Called in every handshake, whether or not the client names a server."""
        connection.context = self._current

    def _stamps(self) -> tuple[_Stamp | None, _Stamp | None]:
        return _stamp(self._certificate), _stamp(self._key)

    def _take(self, pair: Pair) -> None:
        self._pair, self._current = pair, pair.context
        self._dates = None
        self._warned_at_s = None
        try:
            self._dates = dates_of(pair.certificate)
        except ValueError as error:
            log.warning(
                "nobody will be warned before the certificate %s expires, since its dates cannot be "
                "read (%s); a plain one can be: openssl x509 -in %s -out plain.pem",
                self._certificate,
                error,
                self._certificate.name,
            )
        self._warn_of_dates()

    def _warn_of_dates(self) -> None:
        """Say that the certificate is out of its time, or soon will be; daily, if it stays so."""
        if self._dates is None:
            return
        begins, ends = self._dates
        wall_s, last_s = self._wall_s(), self._warned_at_s
        if last_s is not None and abs(wall_s - last_s) < TLS_EXPIRY_REPEAT_S:
            return
        left_s = ends.timestamp() - wall_s
        if left_s <= 0:
            what = "expired at %s: clients will refuse it; renew it"
        elif begins.timestamp() > wall_s:
            ends = begins
            what = "is valid from %s on: renew it, or set this machine's clock right"
        elif left_s <= TLS_EXPIRY_WARNING_S:
            what = "expires at %s, and nothing has renewed it: renew it before clients refuse it"
        else:
            return
        self._warned_at_s = wall_s
        log.warning(f"the certificate %s {what}", self._certificate, ends.isoformat())  # noqa: G004 - one of three fixed texts


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
