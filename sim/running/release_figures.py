"""Figures of releases: how they came out, what it took to find that out, and how soon all clients felt it.

They rest on what stewards reported (`release.*`), on what model servers were given, and on which version answered whom:
what clients see, whatever nodes believe.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from meshnode.sim.standings import ASKED, DEPLOYED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshnode.sim.running.result import Chosen
    from meshnode.sim.trace import Record

PROMOTED: Final = "release.promoted"
ROLLED_BACK: Final = "release.rolled_back"

_STEP: Final = re.compile(r"step (\d+) of \d+")


@dataclass(slots=True)
class _Course:
    """What was seen of one release.

    Attributes:
        model: Of which.
        version: The new version.
        begun_s: When it was deployed.
        end_s: When the next release of the model was; infinite for the last.
        events: What nodes reported of it.
        asked_s: When model servers were given requests for the new version.
    """

    model: str
    version: int
    begun_s: float
    end_s: float = math.inf
    events: list[Record] = field(default_factory=list)
    asked_s: list[float] = field(default_factory=list)

    def when(self, *kinds: str) -> float:
        """Return when something of these kinds was reported first; NaN if it never was."""
        return next((each.time_s for each in self.events if each.kind in kinds), math.nan)

    @property
    def outcome(self) -> str:
        """The kind of what was decided last: that it takes the old one's place, or that it does not; or empty."""
        ends = [each.kind for each in self.events if each.kind in (PROMOTED, ROLLED_BACK)]
        return ends[-1] if ends else ""


def courses(chosen: Chosen) -> list[_Course]:
    """Return the releases that were begun in a part of a run, in order."""
    found: list[_Course] = []
    latest: dict[str, _Course] = {}
    for event in chosen.events:
        if event.kind == DEPLOYED:
            if event.subject in latest:
                latest[event.subject].end_s = event.time_s
            latest[event.subject] = _Course(event.subject, int(event.detail), event.time_s)
            found.append(latest[event.subject])
        course = latest.get(event.subject)
        if course is None:
            continue
        if event.kind == ASKED and int(event.detail) == course.version:
            course.asked_s.append(event.time_s)
        elif event.kind.startswith("release."):
            course.events.append(event)
    return found


def outcomes(chosen: Chosen, kind: str) -> float:
    """Return how many releases came out so."""
    return float(sum(each.outcome == kind for each in courses(chosen)))


def reported(chosen: Chosen, *kinds: str) -> float:
    """Return how often this was reported of a release."""
    return float(sum(event.kind in kinds for event in chosen.events))


def candidate_requests(chosen: Chosen) -> float:
    """Return how many requests a new version was given until something was decided; the most, NaN where nothing was.

    At depth C model servers do not tell: there it is how many calls it answered.
    """
    counts = []
    for course in courses(chosen):
        decided_s = course.when(PROMOTED, ROLLED_BACK)
        if not math.isnan(decided_s):
            given = sum(each <= decided_s for each in course.asked_s)
            new = (made for made, is_new in _answers(chosen, course) if is_new)
            counts.append(max(given, sum(made <= decided_s for made in new)))
    return float(max(counts, default=math.nan))


def decision_s(chosen: Chosen) -> float:
    """Return how long it took from the deployment to the decision; the longest, NaN where nothing was decided."""
    took = [each.when(PROMOTED, ROLLED_BACK) - each.begun_s for each in courses(chosen)]
    return max((each for each in took if not math.isnan(each)), default=math.nan)


def back_s(chosen: Chosen) -> float:
    """Return how long after a way back was decided the new version still answered; NaN without one."""
    longest = math.nan
    for course in courses(chosen):
        decided_s = course.when(ROLLED_BACK)
        if not math.isnan(decided_s):
            late = [
                made for made, is_new in _answers(chosen, course) if is_new and made > decided_s
            ]
            longest = _greater(longest, max(late, default=decided_s) - decided_s)
    return longest


def switch_s(chosen: Chosen) -> float:
    """Return how long both versions answered once the new one had taken the old one's place; NaN if none did."""
    longest = math.nan
    for course in courses(chosen):
        decided_s = course.when(PROMOTED)
        if math.isnan(decided_s):
            continue
        undone_s = course.when(ROLLED_BACK)
        until_s = math.inf if math.isnan(undone_s) else undone_s
        after = [each for each in _answers(chosen, course) if decided_s < each[0] < until_s]
        first_new = next((made for made, is_new in after if is_new), math.inf)
        last_old = max((made for made, is_new in after if not is_new), default=-math.inf)
        longest = _greater(longest, max(0.0, last_old - first_new))
    return longest


def steps(chosen: Chosen) -> float:
    """Return how many steps were begun, of all releases."""
    return float(sum(sum(_steps(course).values()) for course in courses(chosen)))


def steps_repeated(chosen: Chosen) -> float:
    """Return how many steps were begun more than once, or left out."""
    wrong = 0
    for course in courses(chosen):
        begun = _steps(course)
        wrong += sum(count - 1 for count in begun.values())
        wrong += max(begun, default=0) - len(begun)
    return float(wrong)


def _steps(course: _Course) -> Counter[int]:
    """Return how often each step of a release was begun, by its number from 1."""
    found = (_STEP.match(each.detail) for each in course.events if each.kind == "release.step")
    return Counter(int(each[1]) for each in found if each is not None)


def _answers(chosen: Chosen, course: _Course) -> Iterator[tuple[float, bool]]:
    """Yield when each call of a release's time was made that was answered, and whether by the new version."""
    for call, outcome in chosen.answered:
        if call.model == course.model and course.begun_s <= call.made_at_s < course.end_s:
            yield call.made_at_s, outcome.version == course.version


def _greater(one: float, other: float) -> float:
    return other if math.isnan(one) else max(one, other)
