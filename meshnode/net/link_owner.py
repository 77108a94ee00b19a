"""What a connection tells: the hub that owns it, and who asked something on one of its streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from meshnode.errors import MeshError
    from meshnode.net.connection import Connection
    from meshnode.trust.hello import HelloResult
    from meshnode.types import NodeId


class StreamHandler(Protocol):
    """Receives what the peer sends on one stream that we opened."""

    def part(self, meta: bytes, data: memoryview, end: bool) -> None:
        """Take one part; after `end` nothing more comes. Answer with `Connection.consumed`."""

    def lost(self, error: MeshError) -> None:
        """The stream was reset or its link broke; nothing more comes."""


class LinkOwner(Protocol):
    """What a connection tells the hub that owns it."""

    def established(self, connection: Connection) -> None:
        """The hello succeeded; `connection.hello` is set. A MeshError closes the connection."""

    def closed(self, connection: Connection, error: MeshError | None) -> None:
        """The connection is gone; with an error if it was not asked for."""

    def must_wait(self, connection: Connection, result: HelloResult) -> bool:
        """Whether a peer's welcome is held back until `welcome` or `turn_away`."""

    def pairing_asked(self, connection: Connection, device: NodeId) -> bytes:
        """A device asks to be admitted; a TrustError refuses it, 32 random bytes let it go on."""

    def pairing_waits(self, connection: Connection) -> None:
        """`connection.pairing` has the code, at a device each time that the member says so again."""

    def stream_opened(
        self, connection: Connection, stream: int, meta: bytes, data: memoryview
    ) -> None:
        """The peer asks something; answer with `reply`."""

    def conversation_opened(self, connection: Connection, stream: int, meta: bytes) -> None:
        """The peer wants to talk; go on with `attend` and `reply`. A MeshError refuses it."""

    def stream_cancelled(self, connection: Connection, stream: int) -> None:
        """The peer does not want the answer any more."""

    def note_received(self, connection: Connection, payload: bytes) -> None:
        """A one-way message arrived."""

    def way_failed(self, connection: Connection) -> None:
        """The link stalled, broke, or has been silent for too long, by no decision of either end."""

    def health_changed(self, connection: Connection) -> None:
        """The link stalled, recovered, is going away, or its RTT was measured."""
