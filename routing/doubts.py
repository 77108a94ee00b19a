"""Whether what a replica says of its queue is true of the moment at which it says so.

Old news is no news: a fast replica's queue turns over in a tenth of a second, and gateways that believe a report that is
seconds old all run to whoever was idle then. How old a report is no gateway can see, as who is late says so late. But
each gateway knows some of what is there for certain: its own requests that have arrived and were not answered. A report
that counts fewer than those contradicts itself. Of fresh reports none does, of old ones every fifth; so a few
contradictions are proof, and then what own requests met at the replica counts in place of what it tells
(`meshnode.routing.load`).

A report that comes with an answer is made when the answer is. Answers may overtake each other on the way, so one
contradiction alone proves nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

GAIN: Final = 0.02
"""Share of the newest report in the share of those that contradicted themselves: about the last hundred count."""

GRAVE: Final = 0.05
"""From this share of contradictions on reports are not believed: three in a row are enough, or one in twenty for long."""

ARRIVED_RTTS: Final = 1.5
"""What was sent so many round trips before a report was heard of had arrived when it was made, though trips differ."""

ARRIVED_S: Final = 0.002
"""And so many seconds more, in which it was taken up."""


class Doubts:
    """How far one replica's reports are from what is known of it.

    Attributes:
        told: Requests in its system, as its last report has it.
        share: Share of reports that counted fewer than were there, of the last hundred or so.
    """

    __slots__ = ("share", "told")

    def __init__(self) -> None:
        self.told = 0
        self.share = 0.0

    def __repr__(self) -> str:
        return f"<Doubts: {self.share:.0%} of reports contradicted themselves>"

    @property
    def are_grave(self) -> bool:
        """Whether reports are not to be believed."""
        return self.share > GRAVE

    def check(self, own: Iterable[float], rtt_s: float, now: float) -> None:
        """Hold the last report, which came with an answer, against the requests that are still open there.

        Args:
            own: When each of them was sent, oldest first (monotonic seconds).
            rtt_s: Round trip to the replica.
            now: Monotonic seconds.
        """
        arrived_before = now - ARRIVED_RTTS * rtt_s - ARRIVED_S
        there = 0
        for sent_at in own:
            if sent_at > arrived_before or there > self.told:
                break
            there += 1
        self.share += GAIN * ((there > self.told) - self.share)
