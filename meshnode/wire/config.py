"""Settings and limits of one link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from meshnode.config import KIB, MAX_BODY_BYTES, MAX_STREAMS_PER_LINK, MIB

MAX_WINDOW_BYTES: Final = 2**31 - 1
"""Credit that one side may ever hold on one stream (HTTP/2's bound): more is a peer's mistake."""


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """How a link behaves; the defaults suit LAN and WAN alike.

    Attributes:
        window_bytes: Credit for data that each side of a stream begins with; fixed for wire
            version 1, both sides must agree. Throughput of one stream is at most this per round
            trip (1 MiB at 100 ms: 10 MB/s); a slow reader costs this much memory. 64 KiB to 16 MiB.
        max_part_bytes: Data of one part, either way: a whole HTTP body with room for what a
            dialect adds. Above it `send` refuses, and a peer's stream is reset as `too_large`.
        max_buffered_bytes: Data of all the peer's parts that are being reassembled or not yet
            consumed; a stream that exceeds it is reset as `saturated`. Four parts of the largest
            size at once, which a small device can still hold. At least `max_part_bytes`.
        max_streams: Streams that either side may have open; the peer's excess is reset as
            `saturated`, our own raises `Saturated`.
        max_refused_streams: Refused opens in a row after which the peer is considered to flood.
        max_queued_bytes: Bytes that may wait for credit on one stream before `send` raises
            `Saturated`: a whole part of the largest size, so that one part always fits.
        max_ready_bytes: Frames that are ready but not taken by the driver, whose transport is
            then full; beyond it nothing new is opened. Far above what a healthy socket holds.
        max_answer_frames: Frames that the peer's frames caused and the driver has not taken yet;
            a peer that sends but does not read is cut off there.
        ping_interval_s: A ping this often measures the round-trip time and keeps middleboxes'
            tables warm. 0.5 to 20; well below `dead_after_s`.
        stall_ping_after_s: With an answer awaited, silence of this length sends a ping. Smaller
            finds a frozen peer sooner, for more pings during long inferences. 0.05 to 2.
        stall_after_s: The link counts as stalled when such a ping brings nothing for this long,
            or for two round-trip times where that is more. Larger than a busy peer's longest
            pause. 0.2 to 5.
        dead_after_s: Without any byte for this long the connection is given up. 5 to 60.
        late_tick_s: A tick that comes later than asked by more than this means that this process
            itself was asleep: all waiting begins anew. Below `stall_after_s`.
    """

    window_bytes: int = MIB
    max_part_bytes: int = MAX_BODY_BYTES + MIB
    max_buffered_bytes: int = 4 * (MAX_BODY_BYTES + MIB)
    max_streams: int = MAX_STREAMS_PER_LINK
    max_refused_streams: int = 10_000
    max_queued_bytes: int = MAX_BODY_BYTES + MIB
    max_ready_bytes: int = 16 * MIB
    max_answer_frames: int = 10_000
    ping_interval_s: float = 2.0
    stall_ping_after_s: float = 0.25
    stall_after_s: float = 0.75
    dead_after_s: float = 15.0
    late_tick_s: float = 0.5


JOIN_BYTES: Final = 4 * KIB
"""Up to here data is joined with its header: copying 4 KiB is cheaper than one more buffer."""

IMMEDIATE_BYTES: Final = 64 * KIB
"""Parts up to here travel as one frame, ahead of larger ones: under 0.1 ms of a 1 GB/s link."""
