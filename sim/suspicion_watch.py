"""Watches whom one boot of one node suspects, and how long it waits for each: Lifeguard, a second time.

It puts itself in the place of the doors of `meshnode.membership.beliefs.Beliefs` of that one instance,
where accusations come in, and counts the accusers of each suspect by itself. What a suspect is given must
be what the paper gives it, neither less nor more: a mesh that waits too long sends requests to the dead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

from meshnode.effects import Effect, Emit, StartTimer
from meshnode.membership.messages import CODE_OF, unpack_id
from meshnode.membership.timers import SuspicionExpired
from meshnode.types import NodeId, NodeState

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.membership.member import Member
    from meshnode.membership.messages import Incarnation, Rumour
    from meshnode.node import Node

_SAME_TIME_S: Final = 1e-6  # rounding of sums of seconds

_EXPIRED: Final = "did not refute in time"

_ENDS: Final = frozenset(
    f"member.{what}" for what in ("alive", "refuted", "updated", "left", "evicted")
)

_SUSPECT: Final = CODE_OF[NodeState.SUSPECT]


@dataclass(slots=True)
class _Suspicion:
    """A suspect's time, as the paper gives it.

    Attributes:
        incarnation: In which it is accused.
        began: When, in the node's seconds.
        size: Live members then.
        accusers: All that are known, with the first.
        further: How many of them count beside the first.
        due: When its time is over.
    """

    incarnation: Incarnation
    began: float
    size: int
    accusers: set[NodeId]
    further: int
    due: float


class SuspicionWatch:
    """The suspects of one boot of one node."""

    def __init__(self, name: str, node: Node, broken: Callable[[str, str], NoReturn]) -> None:
        """Take the place of the doors of the node's beliefs.

        Args:
            name: The node's name.
            node: Its cores, which were not told anything yet.
            broken: Reports an invariant and what was seen; raises.
        """
        self._name = name
        self._node = node
        self._broken = broken
        self._suspicions: dict[NodeId, _Suspicion] = {}
        self._beliefs = beliefs = node.membership._beliefs
        # An instance's own attribute hides the method of its class.
        for door in ("accept", "evict"):
            setattr(beliefs, door, partial(self._pass, getattr(beliefs, door)))
        self._hear, self._suspect = beliefs.hear, beliefs.suspect
        self._expired = beliefs.suspicion_expired
        beliefs.hear = self.hear  # type: ignore[method-assign]
        beliefs.suspect = self.suspect  # type: ignore[method-assign]
        beliefs.suspicion_expired = self.suspicion_expired  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return f"<SuspicionWatch of {self._name}: {len(self._suspicions)} suspects>"

    # The doors.

    def hear(self, rumour: Rumour, sender: NodeId, now: float) -> list[Effect]:
        """Pass a rumour on; an accusation counts."""
        if rumour.state != _SUSPECT:
            return self._through(self._hear(rumour, sender, now), None, now)
        member = self._node.membership.members.get(unpack_id(rumour.subject))
        is_of_now = member is not None and member.incarnation == rumour.incarnation
        origin = unpack_id(rumour.origin) if len(rumour.origin) == len(rumour.subject) else None
        due = self._accused(member, origin, now) if is_of_now and member is not None else None
        effects = self._through(self._hear(rumour, sender, now), origin, now)
        self._check_shortened(member, due)
        return effects

    def suspect(self, member: Member, now: float) -> list[Effect]:
        """Pass on that a probe of this node's own was not answered."""
        own_id = self._node.me
        due = self._accused(member, own_id, now)
        effects = self._through(self._suspect(member, now), own_id, now)
        self._check_shortened(member, due)
        return effects

    def suspicion_expired(self, timer: SuspicionExpired, now: float) -> list[Effect]:
        """Pass on that a suspect's timer has fired: its time is over, or it begins once more."""
        known = self._suspicions.get(timer.node_id)
        is_over = (
            known is not None
            and known.incarnation == timer.incarnation
            and timer.due >= known.due - _SAME_TIME_S
        )
        effects = self._expired(timer, now)
        if is_over and any(isinstance(each, StartTimer) for each in effects):
            config = self._beliefs._config
            if config.lifeguard and now - timer.due > config.late_timer_s:  # it was asleep
                del self._suspicions[timer.node_id]
        self._through(effects, None, now)
        if is_over and self._suspicions.get(timer.node_id) is known:
            self._broken(
                "suspicion-time",
                f"{self._name} does not hold {self._name_of(timer.node_id)} for dead, whose time to "
                f"refute is over",
            )
        return effects

    def _pass(self, door: Callable[..., list[Effect]], *args: Any) -> list[Effect]:
        return self._through(door(*args), None, args[-1])

    # What must come of it.

    def _accused(self, member: Member | None, accuser: NodeId | None, now: float) -> float | None:
        """Count an accusation of a suspect; return when its time is over then, if it counts."""
        if member is None or member.state is not NodeState.SUSPECT or accuser is None:
            return None
        known = self._suspicions.get(member.node_id)
        if known is None or accuser in known.accusers or known.further >= self._wanted(known.size):
            return None
        doubt_s = self._beliefs._config.probe_interval_s * self._beliefs._health.count
        known.accusers.add(accuser)
        known.further += 1
        known.due = min(known.due, max(now + doubt_s, known.began + self._given_s(known)))
        return known.due

    def _through(self, effects: list[Effect], accuser: NodeId | None, now: float) -> list[Effect]:
        for effect in effects:
            if isinstance(effect, Emit):
                if effect.kind.startswith("member."):
                    self._told_of(effect, now)
            elif isinstance(effect, StartTimer) and isinstance(effect.timer, SuspicionExpired):
                self._time_given(effect.timer, effect.delay_s, accuser, now)
        return effects

    def _time_given(
        self, timer: SuspicionExpired, delay_s: float, accuser: NodeId | None, now: float
    ) -> None:
        """A suspect has its time, less of it because somebody else accuses it too, or all once more."""
        known = self._suspicions.get(timer.node_id)
        if known is None or known.incarnation != timer.incarnation:
            accusers = set() if accuser is None else {accuser}
            size = self._node.membership._table.size
            known = _Suspicion(timer.incarnation, now, size, accusers, 0, 0.0)
            known.due = now + self._given_s(known)
            self._suspicions[timer.node_id] = known
        if (
            abs(timer.due - known.due) > _SAME_TIME_S
            or abs(now + delay_s - timer.due) > _SAME_TIME_S
        ):
            self._wrong(known, timer.node_id, min(timer.due, now + delay_s))

    def _check_shortened(self, member: Member | None, due: float | None) -> None:
        """An accusation that counts must have shortened the time of the suspect in the core too."""
        if member is None or due is None:
            return
        known = self._suspicions.get(member.node_id)
        held = self._beliefs._suspicions._suspicions.get(member.node_id)
        if known is not None and held is not None and abs(held.due - due) > _SAME_TIME_S:
            self._wrong(known, member.node_id, held.due)

    def _wrong(self, known: _Suspicion, suspect: NodeId, due: float) -> NoReturn:
        self._broken(
            "suspicion-time",
            f"{self._name} gives {self._name_of(suspect)} {due - known.began:.3f} s to refute; with "
            f"{known.further} further accusers among {known.size} members it has "
            f"{known.due - known.began:.3f} s",
        )

    def _told_of(self, emit: Emit, now: float) -> None:
        subject = NodeId(emit.subject)
        if emit.kind == "member.dead":
            known = self._suspicions.pop(subject, None)
            if emit.detail != _EXPIRED:
                return  # another node's word
            if known is None or now < known.due - _SAME_TIME_S:
                early = "did not suspect" if known is None else "gave more time"
                self._broken(
                    "suspicion-time",
                    f"{self._name} holds {self._name_of(subject)} for dead, which it {early}",
                )
        elif emit.kind in _ENDS:
            self._suspicions.pop(subject, None)

    # The paper: Dadgar et al. 2018, section IV-B.

    def _wanted(self, size: int) -> int:
        """Return how many further accusers are waited for: none where too few could accuse."""
        config = self._beliefs._config
        wanted = config.suspicion_confirmations
        return wanted if config.lifeguard and size - 2 >= wanted else 0

    def _given_s(self, known: _Suspicion) -> float:
        """Return a suspect's time, in seconds."""
        config = self._beliefs._config
        least = (
            config.suspicion_multiplier * max(1.0, math.log10(known.size)) * config.probe_interval_s
        )
        wanted = self._wanted(known.size)
        if not wanted:
            return least
        most = least * config.suspicion_max_multiplier
        share = math.log(known.further + 1) / math.log(wanted + 1)
        return max(least, most - (most - least) * share)

    def _name_of(self, node: NodeId) -> str:
        member = self._node.membership.members.get(node)
        return member.record.name if member is not None else node
