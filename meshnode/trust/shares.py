"""How much may rest on one operator, so that none takes all the room of a mesh.

Keys cost nothing. Whoever may invite can invite thousands of nodes that it has made up, and each of
these thousands more, all with chains that hold. So whatever has a limit for the whole mesh, members and
their admissions in the desired state, is counted for each key that is no admin's and that it rests on:
whoever invited, admitted or handed over, up to the first admin above. What rests on admins alone is not
counted: there are few of them, and they could take everything from everybody anyhow.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from meshnode.trust.chain import highest
from meshnode.types import Role

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshnode.trust.chain import VerifiedMember
    from meshnode.types import NodeId


def rests_on(member: VerifiedMember) -> frozenset[NodeId]:
    """Return the keys, none of them an admin's, on which a chain rests; none for an admin's chain."""
    given: dict[NodeId, Role] = {}
    givers: set[NodeId] = set()
    for step in member.steps:
        given[step.subject] = highest((given.get(step.subject, Role.MEMBER), step.role))
        givers.add(step.by)
        if step.grant is not None:
            givers.add(step.grant.inviter)
    if given[member.node_id] is Role.ADMIN:
        return frozenset()
    return frozenset(each for each in givers if given.get(each, Role.ADMIN) is not Role.ADMIN)


class Shares:
    """What is counted, for each key that it rests on and for all of these together."""

    def __init__(self, max_each: int, max_together: int) -> None:
        """Count nothing yet; the limits are in whatever is counted."""
        self._max_each = max_each
        self._max_together = max_together
        self._each: Counter[NodeId] = Counter()
        self._together = 0

    def __repr__(self) -> str:
        return f"<Shares of {len(self._each)} keys, {self._together} together>"

    def why_none(self, keys: Iterable[NodeId], amount: int = 1) -> str | None:
        """Say why there is no room for something that rests on these keys, or None."""
        named = sorted(keys)
        for key in named:
            if self._each[key] + amount > self._max_each:
                return f"what rests on {key}, which is no admin, has all the room that one may take"
        if named and self._together + amount > self._max_together:
            return "what rests on the mesh's operators has all the room that they may take"
        return None

    def count(self, keys: Iterable[NodeId], amount: int = 1) -> None:
        """Count something that rests on these keys."""
        named = [*keys]
        for key in named:
            self._each[key] += amount
        self._together += amount if named else 0

    def clear(self) -> None:
        """Count from nothing again."""
        self._each.clear()
        self._together = 0
