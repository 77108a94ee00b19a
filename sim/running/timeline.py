"""What a failed run tells people: what did not hold, the last seconds, and how to play it again."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from typing import TYPE_CHECKING, Final

from meshnode.sim.running.expectations import condition, shown
from meshnode.sim.stage import OK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshnode.sim.running.result import Result
    from meshnode.sim.stage import Call, Outcome

LAST_S: Final = 10.0
"""Seconds before the end that a timeline shows."""

MAX_LINES: Final = 60
"""Lines of a timeline; the last ones are shown."""

MAX_ALIKE: Final = 3
"""Events of one kind about one node within a second that are shown one by one; more are counted."""

_Line = tuple[float, str, str, str]
"""Seconds, who, a word for lines that may be counted together ("" for none), what."""


def failure(result: Result) -> str:
    """Return a run's failure for a terminal: what, when, the last seconds, and the command."""
    lines = [f"seed {result.seed} at depth {result.depth}: {summary(result)}"]
    if result.violations:
        lines += ["", f"The last {LAST_S:g} seconds:", *timeline(result)]
    lines += ["", "Play it again:", f"  {replay_command(result)}"]
    return "\n".join(lines)


def summary(result: Result) -> str:
    """Return in a sentence what did not hold."""
    if result.violations:
        violation = result.violations[0]
        return f"{violation.invariant} broken at {violation.time_s:.3f} s: {violation.message}"
    missed = [
        f"{condition(verdict.expect)}, found {shown(verdict.expect.metric, verdict.found)}"
        for verdict in result.verdicts
        if not verdict.holds
    ]
    if missed:
        return "; ".join(missed)
    return "it was broken off" if result.broken_off else "all held"


def replay_command(result: Result) -> str:
    """Return the command that plays the same run again."""
    source = result.source or f"{result.scenario.name}.toml"
    if source.startswith("-"):
        source = f"./{source}"  # else it would be read as an option
    words = ["meshnode", "sim", "run", source, "--seed", str(result.seed), "--depth", result.depth]
    if result.policy != "mesh":
        words += ["--policy", result.policy]
    return shlex.join(words)


def timeline(result: Result, last_s: float = LAST_S) -> list[str]:
    """Return what happened in a run's last seconds, a line each.

    Args:
        result: The run.
        last_s: How many seconds before its end.

    Returns:
        Lines such as `   12.034  eu-1     suspects us-2: no answer to a probe`; many alike are counted.
    """
    end_s = result.violations[0].time_s if result.violations else result.scenario.duration_s
    begin_s = end_s - last_s
    lines = sorted(
        (line for line in _lines(result) if begin_s <= line[0] <= end_s), key=lambda line: line[0]
    )
    counted = _count_alike(lines, end_s)
    cut = len(counted) - MAX_LINES
    shown_lines = counted[max(0, cut) :]
    width = max((len(who) for _, who, _, _ in shown_lines), default=0)
    texts = [f"{time_s:>10.3f}  {who:<{width}}  {what}" for time_s, who, _, what in shown_lines]
    return [f"  ... {cut} lines before", *texts] if cut > 0 else texts


def _lines(result: Result) -> Iterator[_Line]:
    for mark in result.marks:
        yield mark.time_s, "FAULT", "", f"{'undone: ' if mark.undone else ''}{mark.text}"
    for event in result.events:
        if event.kind.startswith(("member.", "node.", "trust.", "deployment.", "release.")):
            yield (
                event.time_s,
                event.node,
                event.kind,
                _event_text(event.kind, event.subject, event.detail),
            )
    for step in result.steps:
        yield step.time_s, step.node, step.kind, step.what
    for call, outcome in result.calls:
        yield from _call_lines(call, outcome)
    for violation in result.violations:
        yield violation.time_s, "BROKEN", "", f"{violation.invariant}: {violation.message}"


def _event_text(kind: str, subject: str, detail: str) -> str:
    word = _VERBS.get(kind, kind)
    return f"{word} {subject}" + (f": {detail}" if detail else "")


_VERBS: Final = {
    "member.alive": "holds alive",
    "member.suspect": "suspects",
    "member.dead": "holds dead",
    "member.left": "saw leave",
    "member.refuted": "clears",
    "member.updated": "hears news of",
    "member.evicted": "evicts",
}


def _call_lines(call: Call, outcome: Outcome | None) -> Iterator[_Line]:
    what = f"call {call.number} of {call.model}"
    if outcome is None:
        yield call.made_at_s, call.gateway, "call open", f"{what} is made, and never ended"
        return
    end_s = call.made_at_s + outcome.took_s
    if outcome.code != OK:
        tried = ", ".join(f"{node} {code}" for node, code in outcome.failed_on)
        tries = f" after {tried}" if tried else ""
        text = f"{what} ends with {outcome.code}, {1000 * outcome.took_s:.0f} ms after it was made{tries}"
        yield end_s, call.gateway, f"call {outcome.code}", text
        return
    text = f"{what} is answered by {outcome.served_by} in {1000 * outcome.took_s:.0f} ms"
    yield end_s, call.gateway, "call ok", text


def _count_alike(lines: list[_Line], end_s: float) -> list[_Line]:
    """Show the first few lines of a kind in each second, and count the others after them."""
    found: list[_Line] = []
    many: Counter[tuple[int, str]] = Counter()
    for line in lines:
        time_s, _, kind, _ = line
        key = (math.floor(time_s), kind)
        many[key] += bool(kind)
        if many[key] <= MAX_ALIKE:
            found.append(line)
    more = [
        (min(second + 1.0, end_s), "", "", f"and {count - MAX_ALIKE} more: {kind}")
        for (second, kind), count in many.items()
        if count > MAX_ALIKE
    ]
    return sorted([*more, *found], key=lambda line: line[0])  # what ended the run stays last
