"""Every error of meshnode, in two families.

`UsageError`: the caller asked for something that cannot be; nothing was changed, and asking again
in the same way fails again. `PeerError`: another node, the network or a model misbehaved; the
call may be tried elsewhere. Foreign exceptions are translated into these once, at the edge where
they arise. Each class has a `code`: a stable word that crosses links and appears in JSON.
"""

from __future__ import annotations

from typing import ClassVar


class MeshError(Exception):
    """Base of all errors. `str(error)` is a sentence for the person who caused it."""

    code: ClassVar[str] = "internal"
    """A stable word for programs."""
    retryable: ClassVar[bool] = False
    """Whether the same request may succeed on another replica."""
    mesh_route: str = ""
    """The `Mesh-Route` header of the answer, if replicas were tried before."""


# The caller misused us: nothing was changed.


class UsageError(MeshError):
    """The request cannot be carried out as asked; nothing was changed."""

    code = "invalid"


class InvalidRequest(UsageError):
    """A request is malformed or does not fit the model; the message says what was expected."""

    code = "invalid_request"


class TooLarge(UsageError):
    """A body, frame or field exceeds its limit; the message names the limit."""

    code = "too_large"


class ModelNotFound(UsageError):
    """No node of the mesh knows the model or version."""

    code = "not_found"


class Forbidden(UsageError):
    """The caller may not do this: wrong role, missing key, or a forged Host or Origin."""

    code = "forbidden"


class ConfigError(UsageError):
    """An option, a file or the data folder is not usable; the message says what to do."""

    code = "config"


class InviteError(UsageError):
    """An invite is damaged, expired or belongs to another mesh. Nothing was joined."""

    code = "invite"


class ModelError(UsageError):
    """A model or its configuration cannot be loaded; the message names both sides."""

    code = "model"


# A peer, the network or a model misbehaved.


class PeerError(MeshError):
    """Another node or the network failed."""

    code = "peer"


class ProtocolError(PeerError):
    """A peer sent bytes that the protocol does not allow; its connection is closed."""

    code = "protocol"


class HandshakeError(PeerError):
    """A peer could not prove who it is, or refused us; no link exists."""

    code = "handshake"


class LinkLost(PeerError):
    """The link broke, stalled or was never there; the request may not have run."""

    code = "link_lost"
    retryable = True


class NotServing(PeerError):
    """The peer does not serve this model version (any more); nothing ran."""

    code = "not_serving"
    retryable = True


class Saturated(PeerError):
    """Every queue that could take the request is full; nothing ran. Try again later."""

    code = "saturated"
    retryable = True


class NoReplica(PeerError):
    """The model is known, but no replica can take the request now; nothing ran."""

    code = "no_replica"


class DeadlineExceeded(PeerError):
    """No answer in the time given; the work was cancelled and may have run."""

    code = "deadline"


class Cancelled(PeerError):
    """The caller went away; the work was cancelled."""

    code = "cancelled"


class InferenceFailed(PeerError):
    """The model raised while it ran this request; other requests are not affected."""

    code = "inference_failed"


class TransferFailed(PeerError):
    """A model's files could not be fetched or did not match their SHA-256; nothing was kept."""

    code = "transfer"


def _all_errors(base: type[MeshError]) -> dict[str, type[MeshError]]:
    found: dict[str, type[MeshError]] = {base.code: base}
    for child in base.__subclasses__():
        for code, error in _all_errors(child).items():
            found.setdefault(code, error)
    return found


def error_of(code: str, message: str) -> MeshError:
    """Rebuild an error that crossed a link; an unknown code becomes a plain `PeerError`."""
    return _all_errors(MeshError).get(code, PeerError)(message)
