"""Settings and limits of one link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from meshnode.limits import (
    KIB,
    MAX_ANSWER_FRAMES,
    MAX_LINK_BUFFERED_BYTES,
    MAX_LINK_READY_BYTES,
    MAX_PART_BYTES,
    MAX_REFUSED_STREAMS,
    MAX_STREAM_QUEUED_BYTES,
    MAX_STREAMS_PER_LINK,
    MIB,
)


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
        ping_interval_s: A ping this often measures the round-trip time of a link on which something
            was asked lately, or that is new. 0.5 to 20; well below `dead_after_s`.
        idle_ping_after_s: Silence of this length sends a ping on an idle link, which keeps
            middleboxes' tables warm and tells a cut cable. Pings are most of what an idle node of a
            mesh of thirty does: longer saves CPU and batteries. Above `ping_interval_s`; at most
            about half of `dead_after_s`, so that TCP has as long to repair the loss of one.
        rtt_age_s: An idle link's round-trip time is measured again after this at the latest,
            whatever it carries. 10 to 120.
        stall_ping_after_s: With an answer awaited, silence of this length sends a ping. Smaller
            finds a frozen peer sooner, for more pings during long inferences. 0.05 to 2.
        stall_after_s: The link counts as stalled when such a ping brings nothing for this long,
            or for two round-trip times where that is more. Larger than a busy peer's longest
            pause; with `stall_ping_after_s` and a try elsewhere less than a second. 0.2 to 5.
        dead_after_s: Without any byte for this long the connection is given up. 5 to 60.
        late_tick_s: A tick that comes later than asked by more than this means that this process
            itself was asleep: all waiting begins anew. Below `stall_after_s`.
    """

    window_bytes: int = MIB
    max_part_bytes: int = MAX_PART_BYTES
    max_buffered_bytes: int = MAX_LINK_BUFFERED_BYTES
    max_streams: int = MAX_STREAMS_PER_LINK
    max_refused_streams: int = MAX_REFUSED_STREAMS
    max_queued_bytes: int = MAX_STREAM_QUEUED_BYTES
    max_ready_bytes: int = MAX_LINK_READY_BYTES
    max_answer_frames: int = MAX_ANSWER_FRAMES
    ping_interval_s: float = 2.0
    idle_ping_after_s: float = 8.0
    rtt_age_s: float = 30.0
    stall_ping_after_s: float = 0.25
    stall_after_s: float = 0.7
    dead_after_s: float = 15.0
    late_tick_s: float = 0.5


JOIN_BYTES: Final = 4 * KIB
"""Up to here data is joined with its header: copying 4 KiB is cheaper than one more buffer."""

IMMEDIATE_BYTES: Final = 64 * KIB
"""Parts up to here travel as one frame, ahead of larger ones: under 0.1 ms of a 1 GB/s link."""
