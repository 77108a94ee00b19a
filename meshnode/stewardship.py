"""Who decides how many replicas an autoscaled deployment has, and how a release goes on: one steward for each.

The steward is the live node that ranks first for the deployment: all nodes see that alike, nobody is elected. What
it decides it writes into its own signed state (`meshnode.state.steward`), which reaches all others. Each node then
places as many replicas as the word says that counts:

- of the words of live members the one of the greatest epoch; of equal ones that of the better-placed node;
- while there is none, because the steward has just died, the word that counted last;
- before there ever was one, the number that the deployment begins with.

A node that finds itself first in the ranking takes over: it goes on from the word that counts and writes one of the
next epoch with the same number, so that nothing is decided twice or left out. That also joins what a partition had
parted: both sides went on, and when they meet the greatest epoch counts until the node that ranks first writes the
next. A former steward withdraws its word as soon as another one counts.

A deployment that is to have no replicas is woken by the first request: the gateway at which it waits says so in its
own state, every node counts one replica from then on, and the steward makes that its word at once.

A deployment whose release is not settled has a steward, too, and the same word says how far that has come
(`meshnode.releases`): whoever takes over goes on at that step.

`Stewardship` gets events and the time, and returns effects. Events (`Emit`):

| kind | subject | detail |
|---|---|---|
| `steward.changed` | the deployment | whom this node takes over from, in which epoch, with how many replicas |
| `scale.up` | the deployment | from how many replicas to how many, and why |
| `scale.down` | the deployment | the same |
| `scale.heard` | the deployment | on every other node: the number of replicas, and by whom and why that was decided |
| `steward.silent` | the key | why this node cannot write its word: its own state is full |
| `release.began`, `.step`, `.promoted`, `.done`, `.rolled_back` | the deployment | how a release goes on, and why |
| `release.paused`, `.inconclusive`, `.resumed`, `.refused` | the deployment | why it waits or goes on, or an order changed nothing |
| `release.heard` | the deployment | on every other node: where it stands now, and why |
| `release.unsettled` | the deployment | why this node cannot write how it came out |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import structs

from meshnode.advertisement import LOAD_KEY, NodeLoad, encode
from meshnode.effects import Effect, Emit, StartTimer
from meshnode.errors import ProtocolError, TooLarge
from meshnode.limits import (
    MAX_DEMAND_MODELS,
    MAX_STEWARD_EPOCH,
    MAX_STEWARD_REASON_LENGTH,
    MAX_WAITING_MODELS,
)
from meshnode.routing.scaling import Autoscaler
from meshnode.scaling_sight import Loads, ScalingSight
from meshnode.state.deployment import KEY_PREFIX
from meshnode.state.steward import WAITING_KEY, StewardWord, Waiting, deployment_of, steward_key
from meshnode.steward_words import Held, StewardWords
from meshnode.types import ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meshnode.deployments import Deployments, Known
    from meshnode.membership.member import Member
    from meshnode.releases import ReleaseBook, ReleaseView
    from meshnode.rollout import Progress
    from meshnode.routing.placement import Placement
    from meshnode.routing.router import Router
    from meshnode.state.deployment import Deployment
    from meshnode.state.desired import DesiredState
    from meshnode.state.owner import OwnerStates
    from meshnode.types import NodeId

LOOK_S: Final = 1.0
"""Seconds between a steward's looks: as often as nodes tell their load."""

STOOD_STILL_S: Final = 4.0
"""A node whose timer comes so late stood still; for so long it then hears from others before it decides anything."""


@dataclass(frozen=True, slots=True)
class StewardDue:
    """A timer: time for a node to look at the deployments that it is the steward of."""


class ScalingView(NamedTuple):
    """What people are shown of a deployment's autoscaling.

    Attributes:
        wanted: How many replicas it is to have now.
        ready: Nodes that serve it.
        steward: Who decides, or None while nobody has.
        epoch: Counts the stewards; 0 likewise.
        reason: Why there are to be so many.
        at_ms: When that was decided, in milliseconds since the Unix epoch; 0 likewise.
    """

    wanted: int
    ready: int
    steward: NodeId | None
    epoch: int
    reason: str
    at_ms: int


class _Office:
    """A deployment that this node is the steward of; without autoscaling, its number of replicas is fixed."""

    __slots__ = ("autoscaler", "sight")

    def __init__(self, autoscaler: Autoscaler, sight: ScalingSight) -> None:
        self.autoscaler = autoscaler
        self.sight = sight


class Stewardship:
    """One node's part in all stewardship: which word counts here, and its own."""

    def __init__(
        self,
        me: NodeId,
        *,
        deployments: Deployments,
        desired: DesiredState,
        owners: OwnerStates,
        members: Mapping[NodeId, Member],
        router: Router,
        placement: Callable[[Deployment], Placement],
        releases: ReleaseBook,
    ) -> None:
        """Begin with nothing heard.

        Args:
            me: This node.
            deployments: What is wanted.
            desired: Tells their revisions.
            owners: What each node says about itself.
            members: All members; a live view.
            router: Who serves what, and how many requests came.
            placement: Where a deployment belongs; asks `wanted` itself.
            releases: How far their releases have come.
        """
        self._me = me
        self._deployments = deployments
        self._desired = desired
        self._owners = owners
        self._members = members
        self._router = router
        self._placement = placement
        self._releases = releases
        self._loads = Loads(owners)
        # Bounded by the deployments with autoscaling or a release, and those by the live members.
        self._kept: dict[str, bool] = {}  # whether it is scaled
        self._words = StewardWords(self._ranking)
        self._waiting: dict[NodeId, dict[str, int]] = {}
        self._offices: dict[str, _Office] = {}
        self._due: set[str] = set()  # to be looked at before the next tick
        self._news: list[Emit] = []  # emptied at the end of each event
        self._load: NodeLoad | None = None
        self._is_ticking = False
        self._ticked_at = float("-inf")  # when the timer was last started or ran out
        self._begins_at = float("-inf")
        self._wall_ahead_s = 0.0  # of the monotonic clock

    def __repr__(self) -> str:
        return f"<Stewardship of {self._me[:8]}: {len(self._offices)} of {len(self._kept)}>"

    # What is known

    def wanted(self, deployment: Deployment) -> int:
        """Return how many replicas a deployment is to have now."""
        scaling = deployment.scaling
        if scaling is None:
            return deployment.replicas
        counting = self._words.counting(deployment.name)
        said = deployment.replicas if counting is None else counting.word.replicas
        wanted = scaling.clamped(said)
        if wanted:
            return wanted
        known = self._deployments.get(deployment.name)
        # While a new version is tried the old one does not sleep: the new one would answer in its place.
        is_tried = known is not None and self._releases.is_open(known)
        return int(is_tried or self._waiting_for(deployment.name) > 0)

    def view(self, deployment: Deployment) -> ScalingView:
        """Return what people are shown."""
        counting = self._words.counting(deployment.name)
        table = self._router.table
        ready = {
            replica.node
            for version in table.versions(deployment.name)
            for replica in table.replicas(deployment.name, version)
            if replica.state is ReplicaState.READY
        }
        wanted = self.wanted(deployment)
        if counting is None:
            why = "its steward has decided nothing yet" if deployment.scaling else "it is fixed"
            return ScalingView(wanted, len(ready), None, 0, why, 0)
        word, by = counting
        return ScalingView(wanted, len(ready), by, word.epoch, word.reason, word.at_ms)

    def told(self, load: NodeLoad) -> NodeLoad:
        """Return a load of this node with what its gateway was asked for."""
        self._load = load
        return structs.replace(load, demand=self._demand())

    def release_view(self, known: Known) -> ReleaseView | None:
        """Return what people are shown of a deployment's release; None if it has none."""
        if known.deployment.release is None:
            return None
        counting = self._words.counting(known.deployment.name)
        steward, epoch = (None, 0) if counting is None else (counting.by, counting.word.epoch)
        return self._releases.view(known, self.wanted(known.deployment), steward, epoch)

    # What happened; those return the deployments that may have another number of replicas now

    def begin(self, quiet_until: float, now: float, wall_s: float) -> list[Effect]:
        """Follow what is deployed already; decide nothing yet: a node that just started would think that it is alone."""
        self._begins_at = quiet_until
        self._wall_ahead_s = wall_s - now
        effects: list[Effect] = []
        for name in self._deployments.names():
            effects += self.deployment_changed(name, now)
        return effects

    def deployment_changed(self, name: str, now: float) -> list[Effect]:
        """Take a deployment as it is now."""
        known = self._deployments.get(name)
        is_scaled = known is not None and known.deployment.scaling is not None
        is_kept = known is not None and (is_scaled or self._releases.is_open(known))
        before = self._kept.get(name)
        if is_kept:
            self._kept[name] = is_scaled
        elif before is not None:
            del self._kept[name]
            self._words.forget(name)
            self._offices.pop(name, None)
        if is_scaled != bool(before):
            scaled = [name for name, is_scaled in self._kept.items() if is_scaled]
            self._router.arrivals.follow(scaled[:MAX_DEMAND_MODELS])
            self._offices.pop(name, None)
        if is_kept and before is None:
            self._choose(name)
        counting = self._words.counting(name)
        self._news += self._releases.follow(name, counting and counting.word.release)
        if is_kept:
            return self._tick(now)
        return [] if before is None else self._owners.delete(steward_key(name), now)

    def release_said(self, name: str, now: float) -> list[Effect]:
        """Take that an operator asks something of a release, or that one is settled; look at it at once."""
        self._due.add(name)
        return self.deployment_changed(name, now)

    def heard(self, node: NodeId, key: str) -> list[str]:
        """Take the value that a node's key has now; return the deployments that it is about."""
        if key == WAITING_KEY:
            return self._waits_heard(node)
        name = deployment_of(key)
        if name is None:
            return []
        self._words.heard(name, node, self._owners.get(node, key))
        if name in self._kept:
            self._choose(name)
        return [name]

    def requests_wait(self, models: Mapping[str, int], now: float) -> list[Effect]:
        """Tell the mesh for which models requests wait at this node's gateway, of those that may sleep."""
        counted = sorted((name, n) for name, n in models.items() if self._kept.get(name) and n > 0)
        if not counted:
            return self._owners.delete(WAITING_KEY, now)
        waiting = Waiting(tuple(counted[:MAX_WAITING_MODELS]))
        return self._said(WAITING_KEY, waiting.encode(), now)

    def due(self, now: float, wall_s: float) -> list[Effect]:
        """Look at everything, since the timer ran out."""
        self._is_ticking = False
        if now - self._ticked_at > STOOD_STILL_S:
            # It was frozen or asleep: others may have taken over, and what it saw before is long past.
            self._offices.clear()
            self._begins_at = max(self._begins_at, now + STOOD_STILL_S)
        self._ticked_at = now
        self._wall_ahead_s = wall_s - now
        self._due.update(self._kept)
        self._loads.keep_only(self._members)
        effects = [*self._tell_demand(now), *self._releases.tell_evidence(now)]
        return [*effects, *self._tick(now)]

    def run(self, now: float) -> list[Effect]:
        """Look at what is due; tell what was decided."""
        news, self._news = self._news, []
        if not self._due or now < self._begins_at:
            return [*news]
        due, self._due = sorted(self._due), set()
        effects: list[Effect] = [*news]
        for name in due:
            effects += self._look(name, now)
            effects += self._releases.settle(name, now, now + self._wall_ahead_s)
        return effects

    # Which word counts

    def _choose(self, name: str) -> None:
        """Follow the word that counts."""
        before, counting = self._words.counting(name), self._words.choose(name)
        if counting is None:
            return
        word, node = counting
        if before is not None and (before.word.replicas, before.by) != (word.replicas, node):
            told = f"{word.replicas} replicas, as {node} decided: {word.reason}"
            self._news.append(Emit("scale.heard", name, told))
        news = self._releases.follow(name, word.release)
        self._news += news if node != self._me else ()

    def _ranking(self, name: str) -> Sequence[NodeId]:
        known = self._deployments.get(name)
        return () if known is None else self._placement(known.deployment).ranking

    def _waits_heard(self, node: NodeId) -> list[str]:
        value = self._owners.get(node, WAITING_KEY)
        before = self._waiting.pop(node, {})
        waiting: dict[str, int] = {}
        if value is not None:
            try:
                waiting = dict(Waiting.decode(value).models)
            except ProtocolError:
                waiting = {}
        if waiting:
            self._waiting[node] = waiting
        changed = [*dict.fromkeys([*before, *waiting])]
        self._due.update(name for name in waiting if name in self._offices)
        return changed

    def _waiting_for(self, name: str) -> int:
        return sum(waiting.get(name, 0) for waiting in self._waiting.values())

    # Deciding

    def _look(self, name: str, now: float) -> list[Effect]:
        """Look at one deployment: take over, decide, or leave it to another node."""
        known = self._deployments.get(name)
        if known is None or name not in self._kept:
            return []
        deployment = known.deployment
        placement = self._placement(deployment)
        counting = self._words.counting(name)
        if not deployment.enabled or not placement.ranking or placement.ranking[0] != self._me:
            self._offices.pop(name, None)
            if counting is None or counting.by == self._me:
                return []  # until another node takes over, its word counts
            return self._owners.delete(steward_key(name), now)
        effects: list[Effect] = []
        office = self._offices.get(name)
        if office is None or counting is None or counting.by != self._me:
            office, effects = self._take_over(deployment, now)
        held = self._words.counting(name)
        assert held is not None  # taking over has made one
        word = held.word
        reason, told = self._scaled(deployment, office, placement, now)
        progress, news = self._releases.decide(
            known, word.release, self.wanted(deployment), self._wall_ms(now)
        )
        effects += [*told, *news]
        replicas = self._replicas(deployment, office)
        if (
            replicas != word.replicas
            or progress != word.release
            or word.revision != self._revision(deployment)
        ):
            effects += self._write(
                deployment, word.epoch, office, reason or word.reason, progress, now
            )
        return effects

    def _scaled(
        self, deployment: Deployment, office: _Office, placement: Placement, now: float
    ) -> tuple[str, list[Emit]]:
        """Have the autoscaler look; return why there is another number of replicas now, or an empty text."""
        scaling, name = deployment.scaling, deployment.name
        if scaling is None:
            return "", []
        waiting = self._waiting_for(name)
        sight = office.sight.look(placement.ranking, placement.nodes, waiting, now)
        before = office.autoscaler.replicas
        decision = office.autoscaler.look(scaling, sight, now)
        if decision.replicas == before:
            return "", []
        kind = "scale.up" if decision.replicas > before else "scale.down"
        told = f"{before} -> {decision.replicas} replicas: {decision.reason}"
        return decision.reason, [Emit(kind, name, told)]

    def _replicas(self, deployment: Deployment, office: _Office) -> int:
        return office.autoscaler.replicas if deployment.scaling else deployment.replicas

    def _take_over(self, deployment: Deployment, now: float) -> tuple[_Office, list[Effect]]:
        name = deployment.name
        counting = self._words.counting(name)
        start_s = 0.0 if counting is None else counting.word.start_ms / 1000
        replicas, reason = self._found(deployment)
        sight = ScalingSight(
            name,
            members=self._members,
            table=self._router.table,
            loads=self._loads,
            start_s=start_s,
            now=now,
        )
        office = self._offices[name] = _Office(Autoscaler(replicas, now), sight)
        if counting is not None and counting.by == self._me:
            return office, []  # it never was another node's: this one stood still, or it was paused
        epoch, former = 1, "nobody"
        if counting is not None:
            epoch, former = min(counting.word.epoch + 1, MAX_STEWARD_EPOCH), counting.by
        told = f"{self._me} takes over from {former}, epoch {epoch}, {replicas} replica(s)"
        effects: list[Effect] = [Emit("steward.changed", name, told)]
        progress = None if counting is None else counting.word.release
        return office, [
            *effects,
            *self._write(deployment, epoch, office, reason, progress, now),
        ]

    def _found(self, deployment: Deployment) -> tuple[int, str]:
        """Return the number to go on from, and why it is so."""
        counting = self._words.counting(deployment.name)
        if deployment.scaling is None:
            return deployment.replicas, "it is fixed"
        if counting is not None:
            return self.wanted(deployment), counting.word.reason
        ready = self.view(deployment).ready
        if ready > deployment.replicas:  # all who knew the word were started anew
            replicas = min(ready, deployment.scaling.max_replicas)
            return replicas, f"{ready} node(s) were found to serve it"
        return self.wanted(deployment), "it begins with so many"

    def _write(
        self,
        deployment: Deployment,
        epoch: int,
        office: _Office,
        reason: str,
        progress: Progress | None,
        now: float,
    ) -> list[Effect]:
        word = StewardWord(
            epoch,
            self._replicas(deployment, office),
            reason[:MAX_STEWARD_REASON_LENGTH],
            self._wall_ms(now),
            self._revision(deployment),
            round(1000 * office.sight.start_s),
            progress,
        )
        self._words.wrote(deployment.name, Held(word, self._me))
        # Where requests go changes with it: that has to be known everywhere at once.
        turns = bool(self._releases.follow(deployment.name, progress))
        return self._said(steward_key(deployment.name), word.encode(), now, to_all=turns)

    def _wall_ms(self, now: float) -> int:
        return max(0, round(1000 * (now + self._wall_ahead_s)))

    def _revision(self, deployment: Deployment) -> tuple[int, int]:
        entry = self._desired.entry(KEY_PREFIX + deployment.name)
        return (0, 0) if entry is None else (entry.stamp.wall_ms, entry.stamp.counter)

    def _said(self, key: str, value: bytes, now: float, *, to_all: bool = False) -> list[Effect]:
        try:
            return self._owners.set(key, value, now, to_all=to_all)
        except TooLarge as error:
            return [Emit("steward.silent", key, str(error))]

    # What this node's gateway is asked for

    def _demand(self) -> tuple[tuple[str, int], ...]:
        return self._router.arrivals.counts()

    def _tell_demand(self, now: float) -> list[Effect]:
        demand = self._demand()
        if not demand and (self._load is None or not self._load.demand):
            return []
        load = structs.replace(self._load or NodeLoad(0.0, 0), demand=demand)
        self._load = load
        return self._owners.set(LOAD_KEY, encode(load), now)

    def _tick(self, now: float) -> list[Effect]:
        """Look again in a while, as long as there is anything to look at."""
        if self._is_ticking or not self._kept:
            return []
        self._is_ticking = True
        self._ticked_at = now
        delay_s = max(LOOK_S, self._begins_at - now)
        return [StartTimer(StewardDue(), delay_s)]
