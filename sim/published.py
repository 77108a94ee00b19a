"""What others published about meshes like this one: figures to be compared with, and their sources."""

from __future__ import annotations

import math
from typing import Final

DISSEMINATION_S: Final = {
    0.0: {30: 0.9, 100: 1.2, 1000: 1.6},
    0.1: {30: 1.0, 100: 1.2, 1000: 1.8},
    0.3: {30: 1.2, 100: 1.4, 1000: 2.0},
}
"""Loss -> nodes -> median seconds until all know a piece of news, by memberlist's gossip with its LAN
profile (three members each 200 ms), in a simulation of that profile."""

SUSPICION_S: Final = {5: (4.0, 24.0), 100: (8.0, 48.0), 1000: (12.0, 72.0)}
"""Nodes -> least and greatest seconds of suspicion, memberlist's LAN profile."""

FEWER_FALSE_POSITIVES: Final = (50.0, 100.0)
"""Lifeguard against SWIM with stalled members: A. Dadgar et al., DSN 2018."""

MEMBERLIST_BYTES_PER_S: Final = 600.0
"""Per node of 1,000, idle: L. Suresh et al., "Rapid", USENIX ATC 2018, table 2."""

BOOTSTRAP_2000_S: Final = 95.0
"""Until 2,000 nodes of memberlist agree, at worst: "Rapid", figure 5."""


def dissemination_s(size: int, loss: float = 0.0) -> float:
    """Return the published median time to all nodes, between its sizes by the logarithm of the size.

    Args:
        size: Nodes; below the smallest published size its figure holds.
        loss: One of the published 0, 0.1 and 0.3.
    """
    points = sorted(DISSEMINATION_S[loss].items())
    below = max((point for point in points if point[0] <= size), default=points[0])
    above = min((point for point in points if point[0] >= size), default=points[-1])
    if below[0] >= above[0]:
        return below[1]
    share = math.log(size / below[0]) / math.log(above[0] / below[0])
    return below[1] + share * (above[1] - below[1])
