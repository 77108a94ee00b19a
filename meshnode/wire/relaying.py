"""How two nodes that cannot dial each other get a link through a third one, the relay.

Both have a link to the relay. On it, streams on which both sides go on sending (conversations) carry the
bytes of one TLS connection, in which the two ends say hello to each other as on any other: the relay
sees ciphertext, sizes and times.

    dialler                          relay                          acceptor
       | -- OpenRelay(peer) ----------> |                               |
       | <- RelayReady(rtt) ----------- |                               |
       |    (several are asked, the rest is reset)                      |
       | -- BeginRelay, then bytes ---> | -- RelayedLink(dialler) ----> |
       |                                | -- bytes -------------------> |
       | <- bytes --------------------- | <- bytes -------------------- |

What follows `BeginRelay` and `RelayedLink` are parts with an empty message: the next bytes are their
data. Either end's last part ends its direction. Whoever refuses resets the stream, with an error's code.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from meshnode.wire.codec import Codec, Message

_NODE_ID_BYTES: Final = 20

NodeBytes = Annotated[bytes, Meta(min_length=_NODE_ID_BYTES, max_length=_NODE_ID_BYTES)]
"""A NodeId as its raw bytes."""


class OpenRelay(Message, frozen=True, tag=106):
    """Would you relay to this member? Opens a conversation; `BeginRelay` makes use of the answer."""

    peer: NodeBytes


class RelayReady(Message, frozen=True, tag=107):
    """This node would: it has a link to the member, and room.

    Attributes:
        rtt_ms: The round trip of that link; negative if it has not been measured.
    """

    rtt_ms: float


class BeginRelay(Message, frozen=True, tag=108):
    """Tell the member; what follows are bytes for it."""


class RelayedLink(Message, frozen=True, tag=109):
    """A member wants to link with you through this node. Opens a conversation: what follows are its bytes.

    Attributes:
        peer: The member, as the relay says; the hello within proves it.
    """

    peer: NodeBytes


RELAYING: Final = Codec(OpenRelay, RelayReady, BeginRelay, RelayedLink)
"""The codec of what relays are asked and say."""
