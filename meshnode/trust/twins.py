"""What a node is told whose key runs a second time somewhere."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from meshnode.wire.codec import Codec, Message


class TwinMet(Message, frozen=True, tag=80):
    """The sender has refused another process with the receiver's key; its boot.

    Only a report for people: whoever sends it without reason causes a line in a log.
    """

    boot: Annotated[int, msgspec.Meta(ge=0)]


TWINS: Final = Codec(TwinMet)
"""The codec of that note."""
