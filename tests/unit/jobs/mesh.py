"""A mesh of job books in virtual time: no disk, no sockets, messages that take a while or never arrive."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from meshnode.jobs.book import JobBook
from meshnode.jobs.effects import Drop, JobEffect, Save, Send, Start, Stop, Tell
from meshnode.jobs.job import NEW, Job, JobState, JobStatus, Outcome, Webhook
from meshnode.jobs.messages import WANTS_JOB
from meshnode.types import NodeId

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

START_MS = 1_700_000_000_000
LATENCY_MS = 10
DETECTION_MS = 3000
"""How long membership takes to see that a node is gone."""


def job(job_id: str, **fields: Any) -> Job:
    """Return a job with an id of one letter repeated, or of 26 letters."""
    known = {
        "id": job_id if len(job_id) == 26 else job_id * 26, "path": "/v2/models/m/infer", "query": "", "headers": (),
        "body_sha256": bytes(32), "body_bytes": 10, "created_at_ms": START_MS, "accepted_by": "",
    }  # fmt: skip
    return Job(**{**known, **fields})


HOOK = Webhook("https://example.org/hook", "s" * 20)


@dataclass
class Peer:
    """One node: its book, and what its disk and its callers see."""

    name: NodeId
    book: JobBook
    disk: dict[str, tuple[Job, JobState]] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    up: bool = True


class JobMesh:
    """Nodes, a clock and a network that can be cut."""

    def __init__(self, *names: str, run_ms: int = 1000, max_running: int = 8) -> None:
        self.now_ms = START_MS
        self.run_ms = run_ms
        self.max_running = max_running
        self.peers: dict[NodeId, Peer] = {}
        self.cut: set[frozenset[NodeId]] = set()
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.ran: list[tuple[str, NodeId, int]] = []
        self.told: list[tuple[str, NodeId, JobStatus]] = []
        self.result = "r"
        self.leaving: set[NodeId] = set()
        for name in names:
            self.peers[NodeId(name)] = Peer(NodeId(name), self._book(name))
        self.see()
        for name in names:
            self._tick(NodeId(name))

    def _book(self, name: str) -> JobBook:
        return JobBook(NodeId(name), max_running=self.max_running)

    def _tick(self, name: NodeId) -> None:
        peer = self.peers[name]
        if peer.up:
            self._do(peer, peer.book.tick(self.now_ms))
        self.later(1000, lambda: self._tick(name))

    def later(self, after_ms: int, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now_ms + after_ms, next(self.order), what))

    def run(self, for_ms: int) -> None:
        """Let so much time pass."""
        end = self.now_ms + for_ms
        while self.events and self.events[0][0] <= end:
            self.now_ms, _, what = heapq.heappop(self.events)
            what()
        self.now_ms = end

    def reach(self, one: NodeId, other: NodeId) -> bool:
        return (
            self.peers[one].up and self.peers[other].up and frozenset((one, other)) not in self.cut
        )

    def see(self) -> None:
        """Every node learns at once whom it can reach."""
        for name, peer in self.peers.items():
            if peer.up:
                live = {other for other in self.peers if other == name or self.reach(name, other)}
                self._do(peer, peer.book.members(live, self.now_ms, self.leaving))

    def hand_back(self, name: str) -> None:
        """Let a node that is emptied give up what it still runs."""
        peer = self.peers[NodeId(name)]
        self._do(peer, peer.book.hand_back(self.now_ms))

    def kill(self, name: str) -> None:
        """Stop a node; the others see it later. Its disk stays."""
        peer = self.peers[NodeId(name)]
        peer.up = False
        peer.runs.clear()
        self.later(DETECTION_MS, self.see)

    def start(self, name: str) -> None:
        """Start a node anew on its disk."""
        peer = self.peers[NodeId(name)]
        peer.up, peer.book = True, self._book(name)
        self._do(peer, peer.book.load(list(peer.disk.values()), self.now_ms))
        self.see()

    def join(self, name: str) -> None:
        self.peers[NodeId(name)] = Peer(NodeId(name), self._book(name))
        self._tick(NodeId(name))
        self.see()

    def split(self, *sides: Sequence[str]) -> None:
        """Cut all links between sides; who is where is seen later."""
        where = {NodeId(name): i for i, side in enumerate(sides) for name in side}
        self.cut = {
            frozenset((one, other))
            for one in self.peers
            for other in self.peers
            if where[one] != where[other]
        }
        self.later(DETECTION_MS, self.see)

    def heal(self) -> None:
        self.cut = set()
        self.see()

    def accept(self, name: str, what: Job) -> None:
        peer = self.peers[NodeId(name)]
        peer.book.check(what, self.now_ms)
        self._keep(peer, what, NEW, None)

    def cancel(self, name: str, job_id: str) -> None:
        peer = self.peers[NodeId(name)]
        self._do(peer, peer.book.cancel(job_id, self.now_ms))

    def holders(self, job_id: str) -> set[str]:
        """Nodes that are up and have a job."""
        return {name for name, peer in self.peers.items() if peer.up and job_id in peer.book.held}

    def states(self, job_id: str) -> set[JobState]:
        return {self.peers[NodeId(name)].book.held[job_id].state for name in self.holders(job_id)}

    def status(self, job_id: str) -> JobStatus:
        (state,) = self.states(job_id)
        return state.status

    # Carrying out

    def _keep(self, peer: Peer, what: Job, state: JobState, source: NodeId | None) -> None:
        peer.disk.setdefault(what.id, (what, state))
        self._do(peer, peer.book.keep(what, state, self.now_ms, source))

    def _do(self, peer: Peer, effects: list[JobEffect]) -> None:
        for effect in effects:
            self._carry_out(peer, effect)

    def _carry_out(self, peer: Peer, effect: JobEffect) -> None:
        match effect:
            case Save(job_id, state):
                peer.disk[job_id] = (peer.disk[job_id][0], state)
            case Drop(job_id):
                peer.disk.pop(job_id, None)
            case Send(to, job_id, state):
                what = peer.disk[job_id][0]
                self.later(LATENCY_MS, lambda: self._arrive(peer.name, to, what, state))
            case Start(what, attempt):
                peer.runs[what.id] = attempt
                self.ran.append((what.id, peer.name, attempt))
                self.later(self.run_ms, lambda: self._finish(peer, what.id, attempt))
            case Stop(job_id):
                peer.runs.pop(job_id, None)
            case Tell(what, state):
                assert state.outcome is not None
                end = state.outcome
                self.told.append((what.id, peer.name, end.status))
                self.later(
                    LATENCY_MS,
                    lambda: (
                        self._do(
                            peer, peer.book.told(what.id, end, delivered=True, now_ms=self.now_ms)
                        )
                        if peer.up
                        else None
                    ),
                )

    def _arrive(self, source: NodeId, to: NodeId, what: Job, state: JobState) -> None:
        sender, receiver = self.peers[source], self.peers[to]
        if not sender.up:
            return
        if not self.reach(source, to):
            self._do(sender, sender.book.refused(to, what.id, self.now_ms))
            return
        if receiver.book.wants(what.id, state, what.fingerprint) == WANTS_JOB:
            self._keep(receiver, what, state, source)
        else:
            self._do(receiver, receiver.book.learn(what.id, state, self.now_ms, source))
        self.later(
            LATENCY_MS,
            lambda: (
                self._do(sender, sender.book.acked(to, what.id, state, self.now_ms))
                if sender.up
                else None
            ),
        )

    def _finish(self, peer: Peer, job_id: str, attempt: int) -> None:
        if peer.up and peer.runs.get(job_id) == attempt:
            del peer.runs[job_id]
            digest = peer.name.encode().ljust(32, b"\0")
            end = Outcome(JobStatus.SUCCEEDED, attempt, peer.name, self.now_ms, 200, (), digest, 5)
            self._do(peer, peer.book.finished(job_id, attempt, end, self.now_ms))
