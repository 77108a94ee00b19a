"""Whether the words of a selection mean anybody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.sim.scenario.mistakes import KeyPath, Mistake, unknown
from meshnode.sim.scenario.selection import ALL, DEVICE, REGION, select

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meshnode.sim.stage import Machine


def nobody(selection: Sequence[str], at: KeyPath, machines: Sequence[Machine]) -> Iterator[Mistake]:
    """Yield each word of a selection that means no node."""
    for number, word in enumerate(selection):
        if not select((word,), machines):
            yield Mistake((*at, number), _who(word, machines))


def _who(word: str, machines: Sequence[Machine]) -> str:
    if word.startswith(REGION):
        regions = [machine.region for machine in machines]
        return unknown("region with nodes", word.removeprefix(REGION), regions)
    if word.startswith(DEVICE):
        classes = [machine.device_class for machine in machines]
        return unknown("node of device class", word.removeprefix(DEVICE), classes)
    forms = f"; or '{ALL}', '{REGION}NAME', '{DEVICE}CLASS', a pattern such as 'a-*'"
    return unknown("node", word, [machine.name for machine in machines]) + forms
