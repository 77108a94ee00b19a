"""Routing as one object: the doors through which a gateway tells it what happened, and `plan`.

It owns the table, the beliefs about load, the breakers and the budget, so that what is forgotten
in one is forgotten in all. On the way of a request it only looks things up: the candidates of a
model version are put together when the table has changed, not when a request comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.errors import MeshError, Saturated
from meshnode.routing.affinity import (
    SequenceRouting,
    SequenceTable,
    sequence_hosts,
)
from meshnode.routing.arrivals import Arrivals
from meshnode.routing.attempts import Attempts
from meshnode.routing.breakers import Breakers
from meshnode.routing.budget import RetryBudget
from meshnode.routing.choice import Candidate, Candidates, Chooser, choose
from meshnode.routing.config import RoutingConfig
from meshnode.routing.hedging import AnswerTimes
from meshnode.routing.load import RAMP_S, LinkState
from meshnode.routing.load_book import LoadBook
from meshnode.routing.probing import Probe, Probing
from meshnode.routing.releasing.split import Releases
from meshnode.routing.stickiness import Stickiness
from meshnode.routing.table import Goal, Replica, ReplicaTable
from meshnode.types import ReplicaState

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from meshnode.models.execution import Execution
    from meshnode.rollout import Progress
    from meshnode.routing.conditions import NodeConditions
    from meshnode.routing.request import RoutedRequest
    from meshnode.state.release import Release
    from meshnode.types import NodeId, NodeState
    from meshnode.wire.messages import LoadReport


class Router:
    """Where this gateway's requests go.

    Attributes:
        table: Who serves what. Read it freely; change it through the methods here.
        book: Beliefs about loads and paths.
        breakers: One per replica, and one per node.
        budget: The retries that are left.
        hedges: The hedges that are left.
        sequences: Where sequences of requests are that went through this gateway.
        stickiness: Which replicas spare a request time, as they had others like it.
        probing: Whom to ask how busy it is.
        releases: The releases under way.
        rng: Draws every pick; the same seed and events give the same routes.
        config: Settings.
        choose: Decides between candidates; the simulator puts other policies in its place.
    """

    def __init__(
        self,
        me: NodeId,
        region: str,
        rng: random.Random,
        config: RoutingConfig = RoutingConfig(),  # noqa: B008 - frozen, so one may serve all
    ) -> None:
        self.config = config
        self.rng = rng
        self.choose: Chooser = choose
        self.table = ReplicaTable()
        self.book = LoadBook(config.first_service_ms)
        self.breakers = Breakers(config, rng)
        self.budget = RetryBudget(config.retry_ratio, config.retry_floor_per_s)
        self.hedges = RetryBudget(config.hedge_ratio, 0.0)
        self.sequences = SequenceTable()
        self.stickiness = Stickiness()
        self.probing = Probing(me)
        self.arrivals = Arrivals()
        self.releases = Releases()
        self._me = me
        self._region = region
        self._candidates: dict[tuple[str, int], Candidates] = {}
        self._answer_times: dict[tuple[str, int], AnswerTimes] = {}
        self._served_since: dict[tuple[str, int], float] = {}  # as long as a version is known
        path = self.book.path(me)
        path.link, path.rtt_ms = LinkState.UP, 0.0

    def __repr__(self) -> str:
        return f"<Router of {self._me}: {self.table}, {self.breakers}, {self.budget}>"

    # What happened.

    def replica_changed(self, replica: Replica, now: float) -> bool:
        """A node announced a replica, or its new state; False if the table is full."""
        group = self.table.group(replica.model, replica.version)
        known = group.members.get(replica.node) if group is not None else None
        if not self.table.set(replica):
            return False
        if replica.state is ReplicaState.READY and (
            known is None or known.state is not ReplicaState.READY
        ):
            self._began_to_serve(replica, now)
        if known is not None and known != replica:
            self.breakers.of(replica.node, replica.model, replica.version).renewed(now)
        return True

    def _began_to_serve(self, replica: Replica, now: float) -> None:
        """Let a new replica begin slowly beside those that serve already; where all are new, all are alike."""
        model, version = replica.model, replica.version
        first = self._served_since.setdefault((model, version), now)
        if now - first >= RAMP_S:
            load = self.book.load(replica.node, model, version, replica.slots, replica.service_ms)
            load.ramp_until = now + RAMP_S

    def replica_removed(self, node: NodeId, model: str, version: int) -> None:
        """A node no longer has a replica."""
        self.table.remove(node, model, version)
        self.book.forget(node, model, version)
        self.breakers.forget(node, model, version)
        self._forget_candidates(model, version)

    def wanted_changed(self, model: str, goals: Mapping[int, Goal]) -> None:
        """A model's deployment, or its placement, changed; without goals there is none."""
        before = self.table.versions(model)
        self.table.want(model, goals)
        for version in before:
            self._forget_candidates(model, version)

    def release_changed(
        self,
        model: str,
        revision: tuple[int, int],
        release: Release | None,
        progress: Progress | None,
    ) -> None:
        """A model's release has come so far; without one it has none, and its highest version serves."""
        if release is None or progress is None:
            self.releases.drop(model)
            self.table.prefer(model, None)
            return
        self.releases.follow(model, revision, release, progress)
        self.table.prefer(model, progress.serving(release))

    def node_changed(self, node: NodeId, state: NodeState) -> None:
        """Membership has a new opinion of a node."""
        self.table.node_state(node, state)

    def conditions_changed(self, node: NodeId, conditions: NodeConditions) -> None:
        """A node says, or others see, that its conditions are these."""
        self.table.conditions_changed(node, conditions)

    def node_removed(self, node: NodeId) -> None:
        """Membership forgot a node; so does everything here."""
        for model, version in self.table.served_by(node):
            self.replica_removed(node, model, version)
        self.stickiness.forget(node)
        self.breakers.forget_node(node)
        self.table.remove_node(node)
        if node != self._me:
            self.book.forget_path(node)

    def link_changed(
        self, node: NodeId, state: LinkState, now: float, *, is_relayed: bool = False
    ) -> None:
        """The link to a node came up (directly, or through another node), stalled, is going away or is gone."""
        path = self.book.path(node)
        if state is LinkState.UP:
            path.is_relayed = is_relayed
        if state is LinkState.UP and path.link is not LinkState.UP:
            self.breakers.reachable(node, now)
        if state is LinkState.DOWN and path.link is LinkState.UP:
            self.breakers.lost(node, now)
        path.link = state

    def rtt_measured(self, node: NodeId, rtt_s: float) -> None:
        """The link to a node measured its (smoothed) round trip, in seconds."""
        self.book.path(node).rtt_ms = rtt_s * 1000

    def load_reported(
        self, node: NodeId, model: str, version: int, report: LoadReport, made_at: float
    ) -> None:
        """A load report came by gossip or probe, made at `made_at` (local monotonic seconds).

        Reports about replicas that the table does not hold are dropped: they arrive again.
        """
        group = self.table.group(model, version)
        if group is not None and node in group.members:
            rtt_ms = self.book.path(node).rtt_ms or 0.0
            self.book.load(node, model, version).report(report, made_at, rtt_ms)
            self.breakers.told(node, model, version, report.failing, made_at, made_at)

    # What is asked.

    def resolve(self, model: str, version: int | None) -> int:
        """Return the version to use (`ReplicaTable.resolve`): ModelNotFound or NoReplica if none."""
        return self.table.resolve(model, version)

    def probes_due(self, now: float) -> list[Probe]:
        """Return whom to ask how busy it is; tell the outcome to `probe_answered`, or to `probing.ended`."""
        return self.probing.due(self._candidates_of, now, self.rng)

    def probe_answered(self, probe: Probe, report: LoadReport, now: float) -> None:
        """A replica said how busy it is; half of the round trip ago, as far as one can know."""
        self.probing.ended(probe)
        made_at = (probe.sent_at + now) / 2
        self.load_reported(probe.node, probe.model, probe.version, report, made_at)

    def _candidates_of(self, request: RoutedRequest) -> Candidates | None:
        try:
            return self.candidates(request.model, request.version)
        except MeshError:
            return None

    def is_reachable(self, model: str, version: int | None) -> bool:
        """Whether a replica is ready to which the link is up."""
        try:
            candidates = self.candidates(model, version)
        except MeshError:
            return False
        return any(each.path.link is LinkState.UP for each in candidates.ready)

    def is_draining(self, node: NodeId) -> bool:
        """Whether a node is being emptied, or is empty."""
        return self.table.conditions(node).draining

    def has_sequences(self, model: str, version: int) -> bool:
        """Whether requests of a model version belong to sequences; False while that is not known."""
        manifest = self.table.manifest(model, version)
        return manifest is not None and manifest.execution.sequences is not None

    def plan(
        self,
        request: RoutedRequest,
        now: float,
    ) -> Attempts:
        """Plan one request.

        Args:
            request: What is asked for.
            now: Monotonic seconds.
        """
        self.budget.request(now)
        self.hedges.request(now)
        deadline = now + request.timeout_s
        self.probing.asked(request)
        if request.hints.session or request.hints.prefix:
            request = self.stickiness.placed(request, now)
        if request.part is None:
            return Attempts(self, request, deadline)
        sequence = SequenceRouting(
            self.sequences, request.model, request.version, request.part, deadline
        )
        return Attempts(self, request, deadline, sequence)

    def plan_rest(self, request: RoutedRequest, now: float, tried: tuple[NodeId, ...]) -> Attempts:
        """Plan the rest of a stream whose node was lost: a retry, which the budget must grant.

        Args:
            request: What is left to ask for; never of a sequence.
            now: Monotonic seconds.
            tried: Nodes that were lost over it.

        Raises:
            Saturated: if too much is being retried.
        """
        if not self.budget.take(now):
            raise Saturated("too many requests are being tried again; try again later")
        return Attempts(self, request, now + request.timeout_s, tried=tried)

    def answered(self, request: RoutedRequest, node: NodeId, now: float) -> None:
        """A node answered a request to its end."""
        if request.hints.session or request.hints.prefix:
            self.stickiness.answered(request, node, now)

    def candidates(self, model: str, version: int | None) -> Candidates:
        """Return who could serve a model version now.

        Raises:
            ModelNotFound: if it is neither announced by a node nor deployed.
            NoReplica: if it is, but no replica is ready.
        """
        group = self.table.lookup(model, version)
        known = self._candidates.get((model, group.version))
        if known is not None and known.revision == group.revision:
            return known
        standby = group.goal.standby if group.goal is not None else frozenset()
        ready = tuple(
            self._candidate(replica, standby=replica.node in standby) for replica in group.ready
        )
        hosts = None
        if self.has_sequences(model, group.version):
            nodes = sequence_hosts(model, group.version, [each.node for each in group.ready])
            hosts = tuple(each for each in ready if each.replica.node in nodes)
        made = Candidates(
            ready,
            tuple((replica.node_name, reason) for replica, reason in group.excluded),
            group.revision,
            repeatable=group.manifest is None or _is_repeatable(group.manifest.execution),
            hosts=hosts,
        )
        self._candidates[model, group.version] = made
        return made

    def answer_times(self, model: str, version: int) -> AnswerTimes:
        """Return how long a model version's answers take; kept as long as the version is known."""
        found = self._answer_times.get((model, version))
        if found is None:
            found = AnswerTimes(self.config.hedge_quantile)
            if self.table.group(model, version) is not None:
                self._answer_times[model, version] = found
        return found

    def _forget_candidates(self, model: str, version: int) -> None:
        if self.table.group(model, version) is None:
            self._candidates.pop((model, version), None)
            self._answer_times.pop((model, version), None)
            self._served_since.pop((model, version), None)

    def _candidate(self, replica: Replica, *, standby: bool) -> Candidate:
        key = (replica.node, replica.model, replica.version)
        near = replica.region == self._region
        conditions = self.table.conditions(replica.node)
        if standby:
            conditions = conditions._replace(standby=True)
        load = self.book.load(*key, replica.slots, replica.service_ms)
        self.book.sort_in(load, replica.model, replica.version, conditions.device)
        return Candidate(
            replica,
            load,
            self.book.path(replica.node),
            self.breakers.of(*key),
            self.config.near_rtt_ms if near else self.config.far_rtt_ms,
            conditions,
            self.book.sizes(replica.model, replica.version, conditions.device),
        )


def _is_repeatable(execution: Execution) -> bool:
    """Whether a request may be tried elsewhere after it may have run: never one that changes a sequence."""
    return execution.repeatable and execution.sequences is None
