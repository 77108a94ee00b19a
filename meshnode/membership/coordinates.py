"""Network coordinates: a round-trip time between any two nodes, without a ping between them.

Each node keeps a point such that the distance between two points is about the RTT of their nodes
(Vivaldi: Dabek et al. 2004, "Vivaldi: a decentralized network coordinate system"). Points ride on
probes and their acks. An ack is also a measurement: the prober moves its own point as if a spring
of the measured length pulled or pushed it, and harder the less it trusts its own point compared
with the other's. With a Ping or an Ack a node learns the sender's point, so after a pass of probes
it can tell the RTT between any two members.

To the paper's section 5.4 (a *height* above the plane: the access link, which every path of a node
has in common) this adds what hashicorp/serf found to matter in practice (`coordinate/`):

- a *median filter* over a peer's last 3 samples: one that queued for long moves nothing;
- an *adjustment*, half the mean of what distances were wrong by over the last 20 samples, which
  takes up what Euclid cannot (Ledlie et al. 2007, "Network coordinates in the wild", section 6);
- *gravity* towards the origin, so that the whole cloud of points does not drift (same, section 5);
- a cap on the error estimate, so that a point that was wrong can become right again.

Points come from others, so they may be lies. One that is no point (wrong length, NaN, out of range)
is refused and changes nothing. One that is a lie moves this node by no more per sample than the
measured RTT, which the liar can lengthen but not shorten, and a peer gives one sample per pass.

On the wire a point is 11 whole numbers: the vector, height and adjustment in microseconds, and the
error in millionths. MessagePack needs 1 to 5 bytes for each, and 9 for a float.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import TYPE_CHECKING, Final, NamedTuple

from meshnode.limits import MAX_COORDINATE_S, MAX_MEMBERS

if TYPE_CHECKING:
    import random

    from meshnode.types import NodeId

DIMENSIONS: Final = 8
"""Of the vector: as serf; errors stop falling at about 5 (Ledlie, section 3)."""

WORST_ERROR: Final = 1.5
"""Cap of the error estimate, which is relative: 1.5 says "this point means nothing yet"."""

ERROR_GAIN: Final = 0.25
"""How much one sample changes the error estimate (the paper's c_e)."""

POSITION_GAIN: Final = 0.25
"""How much of a sample's misfit one step corrects at most (the paper's c_c)."""

ADJUSTMENT_WINDOW: Final = 20
"""Samples that the adjustment is a mean of."""

FILTER_SAMPLES: Final = 3
"""Samples of a peer whose median counts."""

MIN_HEIGHT_S: Final = 10e-6
"""Least height: no access link takes less than 10 µs."""

GRAVITY_SCALE_S: Final = 150.0
"""Distance from the origin at which gravity would be 1 s per sample; it grows with its square."""

LEAST_PEER_ERROR: Final = 0.05
"""Error that a peer's point is taken to have at least, whatever it claims: else one that claims to be
perfect would outweigh all others."""

LEAST_STEP_S: Final = 0.01
"""What a sample may always move a point by, however short its RTT: else a node of a LAN that once
went astray would need thousands of samples to come back."""

_TINY: Final = 1e-6
_WIRE_SCALE: Final = 1e6
_WIRE_LENGTH: Final = DIMENSIONS + 3
_ORIGIN: Final = (0.0,) * DIMENSIONS


class Coordinate(NamedTuple):
    """A node's point.

    Attributes:
        vector: Position in seconds.
        height_s: Seconds of its access link, which every path of it includes.
        adjustment_s: Seconds that distances to it are wrong by.
        error: How far distances are off, relative; 0 is perfect, `WORST_ERROR` is unknown.
    """

    vector: tuple[float, ...] = _ORIGIN
    height_s: float = MIN_HEIGHT_S
    adjustment_s: float = 0.0
    error: float = WORST_ERROR

    def raw_distance_s(self, other: Coordinate) -> float:
        """Return the distance without the adjustments."""
        return math.dist(self.vector, other.vector) + self.height_s + other.height_s

    def distance_s(self, other: Coordinate) -> float:
        """Return the estimated round-trip time between two nodes, in seconds."""
        raw_s = self.raw_distance_s(other)
        adjusted_s = raw_s + self.adjustment_s + other.adjustment_s
        return adjusted_s if adjusted_s > 0.0 else raw_s

    def to_wire(self) -> tuple[float, ...]:
        """Return the point as messages carry it."""
        numbers = (*self.vector, self.height_s, self.adjustment_s, self.error)
        return tuple([round(number * _WIRE_SCALE) for number in numbers])


_UNKNOWN: Final = Coordinate()


def from_wire(numbers: tuple[float, ...]) -> Coordinate | str:
    """Read a point from a message; return it, or a sentence saying why it is none."""
    if len(numbers) != _WIRE_LENGTH:
        return f"a coordinate has {_WIRE_LENGTH} numbers, not {len(numbers)}"
    limit = MAX_COORDINATE_S * _WIRE_SCALE
    if not all(-limit <= number <= limit for number in numbers):  # so NaN is refused too
        return f"a coordinate's numbers stay within {MAX_COORDINATE_S:g} s of the origin"
    *vector, height_s, adjustment_s, error = [number / _WIRE_SCALE for number in numbers]
    if height_s < 0.0 or not 0.0 <= error <= WORST_ERROR:
        return f"a coordinate's height is at least 0, and its error from 0 to {WORST_ERROR}"
    return Coordinate(tuple(vector), max(height_s, MIN_HEIGHT_S), adjustment_s, error)


class Coordinates:
    """This node's point, and those of the members that it has heard."""

    def __init__(self, me: NodeId, rng: random.Random) -> None:
        """Begin at the origin.

        Args:
            me: This node.
            rng: Chooses a direction for two nodes that stand on the same point.
        """
        self._me = me
        self._rng = rng
        self.own = Coordinate()
        self._heard: dict[NodeId, Coordinate] = {}
        self._samples: dict[NodeId, deque[float]] = {}
        self._misfits: deque[float] = deque(maxlen=ADJUSTMENT_WINDOW)

    def __repr__(self) -> str:
        return f"<Coordinates of {self._me}: error {self.own.error:.2f}, {len(self._heard)} others>"

    def hear(self, peer: NodeId, numbers: tuple[float, ...]) -> str | None:
        """Take the point that a peer says is its own.

        Args:
            peer: A member; the caller says so, which bounds what is kept.
            numbers: As they came; none at all, from a node without a point, change nothing.

        Returns:
            Why it was refused, or None.
        """
        if not numbers:
            return None
        found = from_wire(numbers)
        if isinstance(found, str):
            return found
        if peer in self._heard or len(self._heard) < MAX_MEMBERS:
            self._heard[peer] = found
        return None

    @property
    def wire(self) -> tuple[float, ...]:
        """This node's point as messages carry it; nothing as long as it means nothing."""
        return () if self.own.error >= WORST_ERROR else self.own.to_wire()

    def measure(self, peer: NodeId, rtt_s: float) -> None:
        """Move this node's point by a measured round-trip time to a peer.

        One that has told no point of its own yet is taken to stand, unsurely, at the origin.
        """
        other = self._heard.get(peer, _UNKNOWN)
        if not 0.0 <= rtt_s <= MAX_COORDINATE_S:
            return
        samples = self._samples.setdefault(peer, deque(maxlen=FILTER_SAMPLES))
        samples.append(rtt_s)
        filtered_s = max(median(samples), _TINY)
        self._move(other, filtered_s)
        limit_s = max(filtered_s, LEAST_STEP_S)
        misfit_s = filtered_s - self.own.raw_distance_s(other)
        self._misfits.append(max(-limit_s, min(limit_s, misfit_s)))
        adjustment_s = sum(self._misfits) / (2 * ADJUSTMENT_WINDOW)
        self.own = self.own._replace(adjustment_s=adjustment_s)
        self._fall()

    def rtt_s(self, a: NodeId, b: NodeId) -> float | None:
        """Return the estimated round-trip time between two nodes in seconds.

        Returns:
            None as long as the point of either is not known, or means nothing yet.
        """
        if a == b:
            return 0.0
        one, other = self._point(a), self._point(b)
        return None if one is None or other is None else one.distance_s(other)

    def forget(self, peer: NodeId) -> None:
        """Drop what is known of a node that is no member any more."""
        self._heard.pop(peer, None)
        self._samples.pop(peer, None)

    def _point(self, node: NodeId) -> Coordinate | None:
        point = self.own if node == self._me else self._heard.get(node)
        return None if point is None or point.error >= WORST_ERROR else point

    def _move(self, other: Coordinate, rtt_s: float) -> None:
        """Take one step of the paper's figure 3, with height."""
        own = self.own
        distance_s = own.distance_s(other)
        wrongness = min(abs(distance_s - rtt_s) / rtt_s, WORST_ERROR)
        weight = own.error / (own.error + max(other.error, LEAST_PEER_ERROR))
        gain = ERROR_GAIN * weight
        error = min(gain * wrongness + (1.0 - gain) * own.error, WORST_ERROR)
        limit_s = max(rtt_s, LEAST_STEP_S)
        step_s = POSITION_GAIN * weight * (rtt_s - distance_s)
        self._push(other, max(-limit_s, min(limit_s, step_s)), error)

    def _push(self, other: Coordinate, step_s: float, error: float) -> None:
        """Move away from another point by so much, or towards it if the step is negative."""
        own = self.own
        direction = [mine - theirs for mine, theirs in zip(own.vector, other.vector, strict=True)]
        length_s = math.hypot(*direction)
        height_s = own.height_s
        if length_s > _TINY:
            height_s += (own.height_s + other.height_s) * step_s / length_s
            scale = step_s / length_s
        else:
            direction = [self._rng.uniform(-1.0, 1.0) for _ in own.vector]
            scale = step_s / max(math.hypot(*direction), _TINY)
        moved = [
            min(MAX_COORDINATE_S, max(-MAX_COORDINATE_S, at + scale * along))
            for at, along in zip(own.vector, direction, strict=True)
        ]
        height_s = min(MAX_COORDINATE_S, max(MIN_HEIGHT_S, height_s))
        self.own = Coordinate(tuple(moved), height_s, own.adjustment_s, error)

    def _fall(self) -> None:
        """Let gravity pull this node's point a little towards the origin."""
        force_s = (_UNKNOWN.distance_s(self.own) / GRAVITY_SCALE_S) ** 2
        self._push(_UNKNOWN, -force_s, self.own.error)
