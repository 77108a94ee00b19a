"""The oracles: policies that see what no gateway can see, to measure the others by.

All of them look at a `Truth` that the whole mesh shares. `GlobalLeastRequest` sees the true queues,
`SizeBlind` also how fast each node is at this moment, `Omniscient` also how much work each request is,
the new one included. Each takes what is best for the request at hand; none plans for those to come, so
a policy that does could be better than they are.

`Omniscient` also knows what cannot be answered in time, and sends none of that: under more load than
all nodes can do, work that comes too late is what costs answers. As those that just fit are taken, queues
grow until only the small ones still do, so it answers more of them than any policy that is blind to
sizes. The other two send everything, and are no bound there.
"""

from __future__ import annotations

import math
from heapq import heapify, heapreplace
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from meshnode.sim.policies.policy import Job, Policy, ProbeReply, ReplicaKey, key_of

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from meshnode.routing.choice import Candidate
    from meshnode.routing.table import Replica
    from meshnode.types import NodeId


class Surroundings(Protocol):
    """What is true of the mesh that an oracle looks at."""

    def now(self) -> float:
        """Return the seconds of the world: nodes' own clocks may be wrong."""
        ...

    def speed_of(self, node: NodeId) -> float:
        """Return how fast a node's model server is now; 2 halves all run times."""
        ...

    def failing_share(self, node: NodeId) -> float:
        """Return which share of requests a node's model server fails at once, 0 to 1."""
        ...

    def mean_work_s(self, replica: Replica) -> float:
        """Return how long one run takes on a device of speed 1, on average."""
        ...

    def rtt_s(self, node: NodeId, other: NodeId) -> float:
        """Return the mean round trip between two nodes; infinite if nothing gets through."""
        ...


class _Server:
    """What is in one replica's system, and what is on its way there."""

    __slots__ = ("coming", "running", "waiting")

    def __init__(self) -> None:
        self.coming: dict[Job, tuple[float, float]] = {}  # when it arrives, its work
        self.waiting: dict[Job, float] = {}  # its work
        self.running: dict[Job, float] = {}  # when it ends

    def __len__(self) -> int:
        return len(self.coming) + len(self.waiting) + len(self.running)


class Truth:
    """Every request that is on its way to a replica, waits there or runs; bounded by those open."""

    def __init__(self, surroundings: Surroundings) -> None:
        """Know of no request yet."""
        self.surroundings = surroundings
        self._servers: dict[ReplicaKey, _Server] = {}
        self._of: dict[Job, ReplicaKey] = {}
        self._slots: dict[ReplicaKey, int] = {}

    def __repr__(self) -> str:
        return f"<Truth of {len(self._of)} requests at {len(self._servers)} replicas>"

    def sent(self, replica: Replica, job: Job, work_s: float, arrives_at: float) -> None:
        """A request is on its way."""
        key = key_of(replica)
        self._slots[key] = replica.slots
        self._of[job] = key
        self._server(key).coming[job] = (arrives_at, work_s)

    def arrived(self, job: Job) -> None:
        """It is there: it runs if a slot is free, else it waits."""
        key = self._of.get(job)
        if key is None:
            return
        server = self._server(key)
        work_s = server.coming.pop(job, (0.0, 0.0))[1]
        server.waiting[job] = work_s
        self._start(key, server)

    def ended(self, job: Job) -> None:
        """It has left its server, and the next one runs."""
        key = self._of.pop(job, None)
        if key is None:
            return
        server = self._server(key)
        server.running.pop(job, None)
        server.waiting.pop(job, None)
        server.coming.pop(job, None)
        self._start(key, server)

    def withdrawn(self, job: Job) -> None:
        """Nobody waits for it; if it runs it runs on."""
        key = self._of.get(job)
        if key is not None and job not in self._server(key).running:
            self._of.pop(job)
            self._server(key).waiting.pop(job, None)
            self._server(key).coming.pop(job, None)

    def given_up(self, job: Job) -> None:
        """Its gateway no longer counts on it; what is still on its way is taken to be lost."""
        key = self._of.get(job)
        if key is not None and self._server(key).coming.pop(job, None) is not None:
            del self._of[job]

    def lost(self, node: NodeId) -> None:
        """A node's process is gone, with all that it had."""
        for key, server in self._servers.items():
            if key.node == node:
                for job in (*server.waiting, *server.running):
                    del self._of[job]
                server.waiting.clear()
                server.running.clear()

    def in_system(self, replica: Replica) -> int:
        """Return how many requests a replica has or is about to have."""
        return len(self._server(key_of(replica)))

    def finishes_at(self, replica: Replica, work_s: float, arrives_at: float) -> float:
        """Return when a replica would be done with a request that arrives at that time."""
        now = self.surroundings.now()
        server = self._server(key_of(replica))
        speed = self.surroundings.speed_of(replica.node)
        free = [max(now, ends_at) for ends_at in server.running.values()]
        free += [now] * (replica.slots - len(free))
        heapify(free)
        for waiting_s in server.waiting.values():
            heapreplace(free, free[0] + waiting_s / speed)
        for before, coming_s in sorted(server.coming.values()):
            if before <= arrives_at:
                heapreplace(free, max(free[0], before) + coming_s / speed)
        return max(free[0], arrives_at) + work_s / speed

    def _server(self, key: ReplicaKey) -> _Server:
        server = self._servers.get(key)
        if server is None:
            server = self._servers[key] = _Server()
        return server

    def _start(self, key: ReplicaKey, server: _Server) -> None:
        now = self.surroundings.now()
        while server.waiting and len(server.running) < self._slots[key]:
            job = next(iter(server.waiting))
            run_s = server.waiting.pop(job) / self.surroundings.speed_of(key.node)
            server.running[job] = now + run_s


class Oracle(Policy):
    """What the oracles have in common: the least of some number, and the truth is told what is sent."""

    knows_lateness: ClassVar[bool] = False
    """Whether it sends nothing that would be late, so that no server has to guess."""

    def __init__(self, truth: Truth, node: NodeId) -> None:
        """Choose for this node's gateway."""
        self.truth = truth
        self.node = node

    def pick(self, able: Sequence[Candidate], now: float, rng: random.Random) -> Candidate:
        """Return one of those with the least cost, at random."""
        del now  # the gateway's own
        world_s = self.truth.surroundings.now()
        costs = [self.cost(each.replica, world_s) for each in able]
        least = min(costs)
        equal = [each for each, cost in zip(able, costs, strict=True) if cost == least]
        return equal[int(rng.random() * len(equal))]

    def cost(self, replica: Replica, now: float) -> float:
        """Return what it costs to send the call there."""
        raise NotImplementedError

    def sent(self, replica: Replica, job: Job, work_s: float | None, now: float) -> None:
        """Tell the truth."""
        del now
        surroundings = self.truth.surroundings
        if work_s is None:
            work_s = surroundings.mean_work_s(replica)
        way_s = surroundings.rtt_s(self.node, replica.node) / 2
        self.truth.sent(replica, job, work_s, surroundings.now() + way_s)

    def ended(self, replica: Replica, job: Job, now: float, took_s: float) -> None:
        """Tell the truth of a request that is lost on its way."""
        del replica, now, took_s
        self.truth.given_up(job)


class GlobalLeastRequest(Oracle):
    """The replica with the fewest requests per slot, those of all gateways counted at this moment.

    "Join the shortest queue" (Winston, Journal of Applied Probability 14(1), 1977), which is the best
    there is for equal servers and exponential run times, and blind to how fast servers are.
    """

    def cost(self, replica: Replica, now: float) -> float:
        """Return the requests per slot."""
        del now
        return self.truth.in_system(replica) / replica.slots


class SizeBlind(Oracle):
    """The replica with the least expected completion, by true queues, speeds and round trips.

    The mesh's own formula without what a gateway has to guess: no age, no errors, no correction.
    """

    def cost(self, replica: Replica, now: float) -> float:
        """Return the expected seconds to completion."""
        del now
        truth, slots = self.truth.surroundings, replica.slots
        run_s = truth.mean_work_s(replica) / truth.speed_of(replica.node)
        waiting = max(0, self.truth.in_system(replica) + 1 - slots)
        return truth.rtt_s(self.node, replica.node) + waiting / slots * run_s + run_s


_SPARE_TRIPS: Final = 0.25
"""Round trips that `Omniscient` leaves before a deadline: jitter is not foreseen, nor who overtakes whom."""


class Omniscient(Oracle):
    """The replica that will be done first, as all work that is there, comes there, and this is known.

    One that fails requests is taken only where no other is in time; where none is, nothing is sent.
    """

    knows_lateness = True

    def __init__(self, truth: Truth, node: NodeId) -> None:
        super().__init__(truth, node)
        self._work_s: float | None = None
        self._good_until = math.inf

    def facing(self, work_s: float | None, good_until: float = math.inf) -> None:
        """Learn how large the call is, and when it has to be answered."""
        self._work_s = work_s
        self._good_until = good_until

    def pick(self, able: Sequence[Candidate], now: float, rng: random.Random) -> Candidate:
        """Return the one that is done first, of those that do not fail if one of them is in time."""
        chosen = super().pick(able, now, rng)
        failing = self.truth.surroundings.failing_share
        if not failing(chosen.replica.node):
            return chosen
        sound = [each for each in able if not failing(each.replica.node)]
        if not sound:
            return chosen
        first_sound = super().pick(sound, now, rng)
        return chosen if self.declines(first_sound) else first_sound

    def declines(self, chosen: Candidate) -> bool:
        """Whether the answer would be there too late."""
        world_s, replica = self.truth.surroundings.now(), chosen.replica
        spare_s = _SPARE_TRIPS * self.truth.surroundings.rtt_s(self.node, replica.node)
        return world_s + self.cost(replica, world_s) + spare_s > self._good_until

    def cost(self, replica: Replica, now: float) -> float:
        """Return the seconds until the answer is here."""
        truth, work_s = self.truth.surroundings, self._work_s
        if work_s is None:
            work_s = truth.mean_work_s(replica)
        way_s = truth.rtt_s(self.node, replica.node) / 2
        return self.truth.finishes_at(replica, work_s, now + way_s) + way_s - now


class Witness:
    """A server's part: tells the truth what comes and goes."""

    def __init__(self, truth: Truth, node: NodeId) -> None:
        """Attend this node's server."""
        self._truth = truth
        self._node = node

    def arrived(self, replica: ReplicaKey, job: Job, work_s: float | None, now: float) -> None:
        """Tell that a request is there."""
        del replica, work_s, now
        self._truth.arrived(job)

    def ended(self, job: Job, now: float, *, answered: bool) -> None:
        """Tell that it has gone."""
        del now, answered
        self._truth.ended(job)

    def withdrawn(self, job: Job) -> None:
        """Tell that nobody waits for it."""
        self._truth.withdrawn(job)

    def closed(self) -> None:
        """Tell that the server is gone."""
        self._truth.lost(self._node)

    def probe(self, replica: ReplicaKey) -> ProbeReply:
        """Answer nothing of use: oracles send no probes."""
        del replica
        return ProbeReply(0, 0.0)
