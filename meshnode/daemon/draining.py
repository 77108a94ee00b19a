"""Empties this node when the mesh wants that, and answers for every node how far it is.

The wish is an entry of the desired state and the answer one of the node's own state (`meshnode.state.drain`), so
that any gateway may be asked about any node, and a node that is restarted goes on where it was. What is to be done
in which order is decided by `meshnode.draining`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from meshnode.daemon.named import name_of, node_named
from meshnode.draining import WITHDRAWN, Course, Work
from meshnode.errors import MeshError, ProtocolError
from meshnode.limits import DRAIN_LOOK_S, DRAIN_TELL_S
from meshnode.node_events import DrainReported
from meshnode.state.drain import REPORT_KEY, Drain, DrainReport, DrainState
from meshnode.trust.records import rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.clock import Clock
    from meshnode.daemon.driver import Driver
    from meshnode.daemon.jobs import Jobs
    from meshnode.draining import Step
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.node import Node
    from meshnode.types import NodeId

log = logging.getLogger(__name__)

IDLE_LOOK_S = 1.0
"""How often a node looks whether it is to be emptied."""


class Draining:
    """The drains of a mesh, and this node's own; `DrainControl` for the gateway.

    Attributes:
        work: Returns what this node still does; set once the parts that know are made.
        give_sequences: Begins to give its sequences to other nodes; likewise.
        end_work: Ends what its models run and what waits for them; likewise.
    """

    def __init__(
        self,
        node: Node,
        driver: Driver,
        clock: Clock,
        require_operator: Callable[[], None],
        jobs: Jobs,
    ) -> None:
        """Drain nothing yet.

        Args:
            node: This node.
            driver: Takes what is to happen.
            clock: Says when.
            require_operator: Raises Forbidden where this node's role does not allow it to empty a node.
            jobs: This node's.
        """
        self.work: Callable[[], Work] = Work
        self.give_sequences: Callable[[], None] = lambda: None
        self.end_work: Callable[[], None] = lambda: None
        self._node = node
        self._driver = driver
        self._clock = clock
        self._require_operator = require_operator
        self._jobs = jobs
        self._course: Course | None = None
        self._told: DrainReport | None = None
        self._told_at = float("-inf")
        self._trouble = ""

    def __repr__(self) -> str:
        return f"<Draining {self._course!r}>"

    # What is asked

    @property
    def state(self) -> DrainState | None:
        """How far this node is that is to be emptied; None if it is not."""
        return self.state_of(self._node.me)

    def state_of(self, node: NodeId) -> DrainState | None:
        """How far a node is that is to be emptied, as it says itself; None if it is not to be."""
        drain = self._node.drains.get(node)
        if drain is None:
            return None
        report = self._report(node, drain)
        return DrainState.DRAINING if report is None else report.state

    def view(self, name: str) -> dict[str, Any]:
        """Describe whether a node is to be emptied, and how far it is.

        Raises:
            InvalidRequest: if no node is called so, or several are.
        """
        return self._view(node_named(self._node.membership.members, name))

    def begin(self, name: str, *, force: bool, wait_s: int, caller: Caller) -> dict[str, Any]:
        """Have a node emptied; describe how far it is. One that is emptied already goes on, by the new settings.

        Args:
            name: Its name or id.
            force: Give up what nobody else can take over.
            wait_s: For how long what began there may go on, in seconds.
            caller: Who wants it, for the log.

        Raises:
            Forbidden: if this node's role does not allow it.
            InvalidRequest: if no node is called so, or several are.
            ConfigError: if it could not be written to disk.
        """
        self._require_operator()
        node = node_named(self._node.membership.members, name)
        before = self._node.drains.get(node)
        if before is None or (before.force, before.wait_s) != (force, wait_s):
            since_s = int(self._clock.wall_s()) if before is None else before.since_s
            drain = Drain(since_s, force, wait_s)
            self._driver.write(self._node.drafts.drain(node, drain, self._clock.wall_s()))
            log.info("node %s is to be drained, as %s asked", self._name(node), caller)
        return self._view(node)

    def undo(self, name: str, caller: Caller) -> dict[str, Any]:
        """Take a drain back: the node serves again as if there had been none; nothing happens without one.

        Raises:
            Forbidden: if this node's role does not allow it.
            InvalidRequest: if no node is called so, or several are.
            ConfigError: if it could not be written to disk.
        """
        self._require_operator()
        node = node_named(self._node.membership.members, name)
        if self._node.drains.get(node) is not None:
            self._driver.write(self._node.drafts.drain(node, None, self._clock.wall_s()))
            log.info("the drain of node %s was taken back by %s", self._name(node), caller)
        return self._view(node)

    # This node's own

    async def follow(self) -> None:
        """Empty this node whenever the mesh wants that; never returns."""
        while True:
            try:
                self._look()
                self._trouble = ""
            except MeshError as error:  # what cannot be told now can be told later
                if str(error) != self._trouble:  # not at each look
                    self._trouble = str(error)
                    log.error(
                        "the drain of this node does not go on, and is tried again: %s", error
                    )
            await asyncio.sleep(IDLE_LOOK_S if self._course is None else DRAIN_LOOK_S)

    def _look(self) -> None:
        drain = self._node.drains.get(self._node.me)
        if drain is None:
            if self._course is not None:
                log.info("the drain of this node was taken back; it serves again")
            self._course = self._told = None
            return
        now = self._clock.now()
        if self._course is None or self._course.drain != drain:
            if self._course is None:
                log.info("this node is being drained: it hands over what it serves")
            self._course = Course(drain, now)
        self._jobs.follow_members()
        self.give_sequences()
        step = self._course.look(self._node.kept_replicas(), self.work(), now)
        if step.is_overdue:
            self._jobs.hand_back()
            if step.is_withdrawn:
                self.end_work()
        self._tell(step, now)

    def _tell(self, step: Step, now: float) -> None:
        report, before = step.report, self._told
        if report == before:
            return
        is_other = before is None or (report.state, report.replicas, report.blocked_by) != (
            before.state,
            before.replicas,
            before.blocked_by,
        )
        if not is_other and now - self._told_at < DRAIN_TELL_S:
            return
        self._driver.handle(DrainReported(report, WITHDRAWN if step.is_withdrawn else ""))
        self._told, self._told_at = report, now
        if report.state is DrainState.DRAINED and (
            before is None or before.state is not DrainState.DRAINED
        ):
            log.info("this node is drained: it may be stopped (meshnode stop)")
        for sentence in report.blocked_by:
            if before is None or sentence not in before.blocked_by:
                log.warning("this node cannot be drained yet: %s", sentence)

    # Inside

    def _report(self, node: NodeId, drain: Drain) -> DrainReport | None:
        value = self._node.owners.get(node, REPORT_KEY)
        if value is None:
            return None
        try:
            report = DrainReport.decode(value)
        except ProtocolError:
            return None
        # One that was made before the node heard that it is to be forced says that it cannot go on.
        is_of_this = (report.since_s, report.force) == (drain.since_s, drain.force)
        return report if is_of_this else None

    def _view(self, node: NodeId) -> dict[str, Any]:
        drain = self._node.drains.get(node)
        named = {"node": node, "name": self._name(node)}
        if drain is None:
            return {**named, "state": "serving"}
        member = self._node.membership.members.get(node)
        report = self._report(node, drain)
        state = str(self.state_of(node))
        if member is None or not member.live:
            state = "away"
        report = report or DrainReport(DrainState.DRAINING)
        return {
            **named,
            "state": state,
            "since": rfc3339(drain.since_s),
            "force": drain.force,
            "wait_s": drain.wait_s,
            "requests": report.requests,
            "sequences": report.sequences,
            "jobs": report.jobs,
            "replicas": report.replicas,
            "waits_for": [*report.waits_for],
            "blocked_by": [*report.blocked_by],
            "ended": report.ended,
        }

    def _name(self, node: NodeId) -> str:
        return name_of(self._node.membership.members, node)
