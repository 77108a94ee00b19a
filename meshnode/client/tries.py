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


def untrusted(endpoint: Endpoint, why: str) -> ConfigError:
    """Return the error for a certificate that is not trusted: no retry mends it."""
    return ConfigError(
        f"the certificate of {endpoint} is not trusted ({why}); if it is yours, name "
        "it, or the authority that signed it, as ca_file, with --ca-file, or in MESHNODE_CA_FILE"
    )


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
