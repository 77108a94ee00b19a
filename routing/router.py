"""Routing as one object: the doors through which a gateway tells it what happened, and `plan`.

It owns the table, the beliefs about load, the breakers and the budget, so that what is forgotten
in one is forgotten in all. On the way of a request it only looks things up: the candidates of a
model version are put together when the table has changed, not when a request comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.routing.attempts import Attempts
from meshnode.routing.breaker import Breakers
from meshnode.routing.budget import RetryBudget
from meshnode.routing.choice import Candidate, Candidates, Chooser, choose
from meshnode.routing.config import RoutingConfig
from meshnode.routing.load import LinkState, LoadBook
from meshnode.routing.table import Goal, Replica, ReplicaTable

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from meshnode.types import NodeId, NodeState
    from meshnode.wire.messages import LoadReport


class Router:
    """Where this gateway's requests go.

    Attributes:
        table: Who serves what. Read it freely; change it through the methods here.
        book: Beliefs about loads and paths.
        breakers: One per replica.
        budget: The retries that are left.
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
        self._me = me
        self._region = region
        self._candidates: dict[tuple[str, int], Candidates] = {}
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
        if known is not None and known != replica:
            self.breakers.of(replica.node, replica.model, replica.version).renewed(now)
        return True

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

    def node_changed(self, node: NodeId, state: NodeState) -> None:
        """Membership has a new opinion of a node."""
        self.table.node_state(node, state)

    def node_removed(self, node: NodeId) -> None:
        """Membership forgot a node; so does everything here."""
        for model, version in self.table.served_by(node):
            self.replica_removed(node, model, version)
        self.table.remove_node(node)
        if node != self._me:
            self.book.forget_path(node)

    def link_changed(self, node: NodeId, state: LinkState) -> None:
        """The link to a node came up, stalled, is going away or is gone."""
        self.book.path(node).link = state

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

    # What is asked.

    def resolve(self, model: str, version: int | None) -> int:
        """Return the version to use (`ReplicaTable.resolve`): ModelNotFound or NoReplica if none."""
        return self.table.resolve(model, version)

    def plan(self, model: str, version: int | None, timeout_s: float, now: float) -> Attempts:
        """Plan one request.

        Args:
            model: Public name of the model.
            version: The version to use, or None for the highest with a ready replica, looked up
                anew for each try.
            timeout_s: Seconds that remain for the answer.
            now: Monotonic seconds.
        """
        self.budget.request(now)
        return Attempts(self, model, version, now + timeout_s)

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
        made = Candidates(
            tuple(self._candidate(replica) for replica in group.ready),
            tuple((replica.node_name, reason) for replica, reason in group.excluded),
            group.revision,
        )
        self._candidates[model, group.version] = made
        return made

    def _forget_candidates(self, model: str, version: int) -> None:
        if self.table.group(model, version) is None:
            self._candidates.pop((model, version), None)

    def _candidate(self, replica: Replica) -> Candidate:
        key = (replica.node, replica.model, replica.version)
        near = replica.region == self._region
        return Candidate(
            replica,
            self.book.load(*key, replica.slots),
            self.book.path(replica.node),
            self.breakers.of(*key),
            self.config.near_rtt_ms if near else self.config.far_rtt_ms,
        )
