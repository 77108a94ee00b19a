"""A stand-in for TLS: it takes its round trip and shows the server's certificate, and encrypts nothing.

OpenSSL draws its own randomness, so a world with real TLS would not repeat. Here a handshake is three
records with the sizes of TLS 1.3's: the client's hello, the server's flight with its certificate, the
client's end; then bytes go as they are. What speaks no TLS, or another kind, fails as it does with the
real thing. Nothing is verified: neither names nor chains, nor that a server has the key to its
certificate (meshnode's own hello, which runs over it, checks that with signatures, for real).
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Final, Self
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Iterable

_HANDSHAKE: Final = b"\x16\x03\x03"  # what a TLS record of a handshake begins with
_HEADER_BYTES: Final = 5
_HELLO: Final = (
    1  # types of messages as in RFC 8446, section 4; the flight begins with a server hello
)
_FLIGHT: Final = 2
_END: Final = 20
_HELLO_BYTES: Final = 512
_FLIGHT_BYTES: Final = 1_200
_END_BYTES: Final = 64

_certificates: WeakKeyDictionary[ssl.SSLContext, bytes] = WeakKeyDictionary()


class StandInContext(ssl.SSLContext):
    """A context for the virtual loop that has a certificate and no key; clients need none."""

    def __new__(cls, certificate: bytes = b"", *, server_side: bool = False) -> Self:
        """Make one.

        Args:
            certificate: What a server shows, DER.
            server_side: Whether it is a server's.
        """
        del certificate
        return super().__new__(
            cls, ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT
        )

    def __init__(self, certificate: bytes = b"", *, server_side: bool = False) -> None:
        """Remember the certificate."""
        del server_side
        super().__init__()
        if certificate:
            register_certificate(self, certificate)


def register_certificate(context: ssl.SSLContext, der: bytes) -> None:
    """Say which certificate a server with this context shows; a real context does not tell it."""
    _certificates[context] = der


class StandInObject:
    """What a transport gives as `ssl_object`."""

    def __init__(self, context: Any, peer_certificate: bytes) -> None:
        """Tell of a connection.

        Args:
            context: This side's.
            peer_certificate: What the other side showed, DER; a client shows none.
        """
        self.context = context
        self._peer_certificate = peer_certificate

    def getpeercert(self, binary_form: bool = False) -> bytes | dict[str, Any] | None:
        """Return the other side's certificate, DER; without `binary_form` nothing, as if unverified."""
        if binary_form:
            return self._peer_certificate or None
        return {}

    def version(self) -> str:
        """Return the version that it stands for."""
        return "TLSv1.3"

    def cipher(self) -> tuple[str, str, int]:
        """Return the cipher that it stands for."""
        return ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)

    def compression(self) -> None:
        """Return None: TLS 1.3 has none."""

    def selected_alpn_protocol(self) -> None:
        """Return None: none is negotiated."""


class Handshake:
    """One side of a handshake, without I/O.

    Attributes:
        done: Whether bytes go as they are from now on.
        peer_certificate: What the other side showed.
        leftover: What came after the last record.
    """

    def __init__(self, context: Any, *, server_side: bool) -> None:
        """Begin; a client sends what `start` returns."""
        self.context = context
        self.done = False
        self.peer_certificate = b""
        self.leftover = b""
        self._server_side = server_side
        self._awaits = _HELLO if server_side else _FLIGHT

    def start(self) -> bytes:
        """Return what this side sends first."""
        return b"" if self._server_side else _record(_HELLO, b"", _HELLO_BYTES)

    def receive(self, data: bytes) -> bytes:
        """Take bytes of the other side; return what to send.

        Raises:
            ssl.SSLError: if that is no handshake of this kind.
        """
        buffer = self.leftover + data
        self.leftover = buffer
        if not _HANDSHAKE.startswith(buffer[:3]) and buffer[:3] != _HANDSHAKE:
            raise ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")
        if len(buffer) < _HEADER_BYTES:
            return b""
        end = _HEADER_BYTES + int.from_bytes(buffer[3:5], "big")
        if len(buffer) < end:
            return b""
        kind, body = buffer[_HEADER_BYTES], buffer[_HEADER_BYTES + 1 : end]
        self.leftover = buffer[end:]
        if kind != self._awaits:
            raise ssl.SSLError(1, "[SSL: UNEXPECTED_MESSAGE] unexpected message")
        return self._next(kind, body)

    def _next(self, kind: int, body: bytes) -> bytes:
        """Take a record that was due; return what to send."""
        if kind == _HELLO:
            self._awaits = _END
            certificate = _certificates.get(self.context, b"")
            flight = len(certificate).to_bytes(2, "big") + certificate
            return _record(_FLIGHT, flight, _FLIGHT_BYTES)
        self.done = True
        if kind == _END:
            return b""
        self.peer_certificate = body[2 : 2 + int.from_bytes(body[:2], "big")]
        return _record(_END, b"", _END_BYTES)


class StandInSession:
    """A side of a connection without a socket (`meshnode.net.tls_session`).

    Attributes:
        done: Whether the handshake is over.
        ended: Never: bytes go as they are, and nothing says that they end.
        ssl_object: Tells of the connection once it is done.
    """

    def __init__(self, context: Any, *, server_side: bool) -> None:
        """Begin."""
        self.done = False
        self.ended = False
        self.ssl_object: Any = None
        self._handshake = Handshake(context, server_side=server_side)

    def start(self) -> bytes:
        """Return what this side sends first."""
        return self._handshake.start()

    def receive(self, data: Any) -> tuple[bytes, bytes]:
        """Take bytes of the other side; return what to send, and what it said."""
        if self.done:
            return b"", bytes(data)
        handshake = self._handshake
        answer = handshake.receive(bytes(data))
        if not handshake.done:
            return answer, b""
        self.done = True
        self.ssl_object = StandInObject(handshake.context, handshake.peer_certificate)
        return answer, handshake.leftover

    def send(self, data: Iterable[Any]) -> bytes:
        """Return what to send to say this."""
        return b"".join(data)


def _record(kind: int, body: bytes, least_bytes: int) -> bytes:
    body = (bytes((kind,)) + body).ljust(least_bytes - _HEADER_BYTES, b"\0")
    return _HANDSHAKE + len(body).to_bytes(2, "big") + body
