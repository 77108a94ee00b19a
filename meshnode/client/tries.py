"""How one try can fail, in the words that both transports use."""

from __future__ import annotations

import errno
import shlex
from typing import TYPE_CHECKING, Final

from meshnode.client.plan import Failure, Fault
from meshnode.errors import ConfigError, TooLarge
from meshnode.limits import MAX_CLIENT_ANSWER_BYTES

if TYPE_CHECKING:
    from meshnode.client.endpoints import Endpoint

LIVENESS_PATH: Final = "/healthz"
"""What a silent gateway is asked: it answers from its event loop, without looking at the mesh."""


_PLAIN_ANSWERS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"})
"""OpenSSL's words for an answer that is no TLS."""


class TryFailed(Exception):
    """A try ended without an answer. Never leaves the client."""

    def __init__(self, fault: Fault, reason: str) -> None:
        super().__init__(reason)
        self.fault = fault
        self.reason = reason

    def failure(self, gateway: int) -> Failure:
        """Return it as a plan wants it."""
        return Failure(gateway, self.fault, self.reason)


def too_large() -> TooLarge:
    """Return the error for an answer over its limit."""
    return TooLarge(
        f"the answer exceeds {MAX_CLIENT_ANSWER_BYTES} bytes; ask for fewer outputs, or send fewer rows"
    )


def untrusted(error: Exception) -> TryFailed:
    """Return the failure of a certificate that is not trusted: no retry mends it."""
    why = getattr(error, "verify_message", "") or str(error)
    return TryFailed(
        Fault.UNTRUSTED,
        f"its certificate is not trusted ({why}); if it is yours, name it, or the authority that "
        "signed it, as ca_file, with --ca-file, or in MESHNODE_CA_FILE",
    )


def tls_failed(endpoint: Endpoint, error: OSError) -> TryFailed:
    """Return the failure of a TLS handshake."""
    reason = getattr(error, "reason", None)
    if reason in _PLAIN_ANSWERS:
        plain = "http" + endpoint.url.removeprefix("https")
        return TryFailed(Fault.UNREACHABLE, f"it answers without TLS; use {plain}")
    if isinstance(error, TimeoutError):
        return TryFailed(Fault.UNREACHABLE, "TLS failed (no handshake in time)")
    return TryFailed(Fault.UNREACHABLE, f"TLS failed ({reason or error})")


def hung_up(endpoint: Endpoint) -> TryFailed:
    """Return the failure of a connection that was closed, or reset, without a byte."""
    hint = ""
    if not endpoint.tls and endpoint.control is None:  # as a port for TLS does with plain HTTP
        hint = f"; if it serves TLS, use https{endpoint.url.removeprefix('http')}"
    return TryFailed(Fault.BROKEN, f"broke off before it had answered with a byte{hint}")


def no_daemon(endpoint: Endpoint) -> ConfigError:
    """Return the error for a control channel at which nobody listens."""
    folder = endpoint.control
    return ConfigError(
        f"no meshnode daemon is running on {folder}; "
        f"start one with: meshnode join --data-dir {shlex.quote(str(folder))}"
    )


def foreign_daemon(endpoint: Endpoint) -> ConfigError:
    """Return the error for a control channel that may not be opened."""
    return ConfigError(
        f"the daemon on {endpoint.control} belongs to another user; only they can control it"
    )


def why_unreachable(error: OSError) -> str:
    """Say why no connection was made."""
    if isinstance(error, TimeoutError):
        return "does not answer to connections (is there a firewall?)"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused (nothing listens there)"
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return "no route to it"
    return error.strerror or type(error).__name__
