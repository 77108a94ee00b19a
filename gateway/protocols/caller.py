"""Who asks: found out before a request is looked at, and handed to what answers it."""

from __future__ import annotations

import msgspec

from meshnode.key_limit import KeyLimit
from meshnode.types import Scope


class Caller(msgspec.Struct, frozen=True):
    """Whoever sent a request.

    Attributes:
        scope: What they may do.
        key_id: The API key that they showed; empty where none was needed.
        name: Of that key.
        via: The name of the node that passed the request on from its gateway; empty if none did.
        via_id: That node's id.
        limit: How much the key's holder may ask of this gateway; None for as much as everybody.
        job: The job that this request runs for; empty if a client waits for its answer.
    """

    scope: Scope
    key_id: str = ""
    name: str = ""
    via: str = ""
    via_id: str = ""
    limit: KeyLimit | None = None
    job: str = ""

    def __str__(self) -> str:
        """Say it for a log."""
        who = f"key {self.name} ({self.key_id})" if self.key_id else str(self.scope)
        return f"{who} through {self.via}" if self.via else who


OWNER = Caller(Scope.OWNER)
"""Who can open the control channel: the owner of the node."""

LOCAL = Caller(Scope.INFER)
"""A program on this machine without a key."""

READER = Caller(Scope.INFER, name="reader")
"""Whoever reads what is the same for everybody and tells nothing of this mesh: the page that shows its API."""
