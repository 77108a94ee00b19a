"""What must hold whatever happens: the invariants that every run checks all the time.

| name | what must hold | checked |
|---|---|---|
| `one-answer` | every call gets exactly one outcome, and a gateway that lives has answered by its own deadline (depth B: on the wire, once, and nothing unasked) | at each outcome, and when all is quiet |
| `no-hang` | no call takes longer than its client waits | at each outcome |
| `attempts-within-budget` | a request is sent to at most `1 + max_retries` replicas per gateway, and a gateway's retries and hedges of any 10 s stay within their shares of its requests; beside a try that is out goes only a hedge, elsewhere, and of a model that may run twice; depth B: models are given a call no more often than its gateway says | at each send |
| `not-to-the-left` | nothing is sent to a node that the gateway knows to have left | at each send |
| `in-flight-conserved` | each send is counted once and ends once, no count is below zero, none stays open beyond every time-out, none when its request has an end, and none when all is quiet (depth B: nor does a request wait for a replica then) | at each send and end, at each look |
| `incarnation-never-falls` | a node's own incarnation never falls, across its boots | at each event |
| `suspicion-time` | who is held dead was suspected before, for just as long as Lifeguard gives it with so many accusers | at each event |
| `views-agree` | when all is quiet, all running nodes take exactly the running nodes to be alive, and have the same desired state | at the end |
| `no-leak` | a node's timers stay as few as its members allow (depth B: tasks and timers of its process too, by what they do) | at each look |
| `tables-bounded` | no table of a node (depth B: of its whole daemon) grows beyond what members and models allow, no bytes-like value beyond what bodies and records do | at each look, in turn |
| `no-error` | no core raises an exception | at each event |
| `no-unhandled` | depth B: no daemon leaves an exception to its event loop, or writes one to its log as an error | at each |

They watch the real cores from outside: `watch_node` is told of each boot's `Node` and puts itself
around what goes into that instance and comes out of it. Each rule is written a second time here, from
the papers and from docs/ARCHITECTURE.md; it is not asked of the code that it checks.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NoReturn

from meshnode.limits import KIB, MAX_META_BYTES, MAX_REMEMBERED_ANSWERS
from meshnode.routing.config import RoutingConfig
from meshnode.sim.flight_watch import FlightWatch
from meshnode.sim.node_watch import NodeWatch, Steps
from meshnode.sim.table_sizes import table_sizes

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.node import Node
    from meshnode.sim.running.result import Step
    from meshnode.sim.stage import Call, Outcome, Sample

SLACK_S: Final = 1.0
"""Seconds that an outcome may come after its client's patience: the way back of the last word."""

OPEN_SLACK_S: Final = 10.0
"""Seconds that a send may stay open beyond the longest patience: a peer's cancellation in transit."""

TABLES_PER_LOOK: Final = 2
"""Nodes whose tables are measured at one look, in turn: looks are many, and tables grow slowly."""

DAEMONS_PER_LOOK: Final = 1
"""The same at depth B, where a node has ten times as many objects."""

TEXT_FLOOR_BYTES: Final = MAX_META_BYTES
"""Bytes that any bytes-like value may have: the largest head of a message."""

TEXT_PER_MEMBER_BYTES: Final = 2 * KIB
"""Bytes per node that was ever there, and per replica that it may have: lists of all records."""

TEXT_PER_BODY: Final = 4
"""Times the largest body that a value may have, per open call: a body in JSON, in a buffer that is being read."""

TABLE_FLOOR: Final = 128
"""Entries that any table may have: the fixed ones (64 ranges of members, a window's seconds) are smaller."""

TABLE_PER_MEMBER: Final = 8
"""Entries per node that was ever there, and per replica that it may have: records, states, hints of
each, and the tombstones of the former."""


class InvariantBroken(AssertionError):
    """Something that must always hold did not.

    Attributes:
        invariant: Its name.
        what: What was seen, without the name, seed and time.
        seed: Of the world in which it happened.
        time_s: Stage seconds.
    """

    def __init__(self, invariant: str, message: str, seed: int, time_s: float) -> None:
        """Say what broke."""
        super().__init__(f"{invariant}: {message} (seed {seed}, at {time_s:.3f} s)")
        self.invariant = invariant
        self.what = message
        self.seed = seed
        self.time_s = time_s


class Invariants:
    """Watches one stage; see the module's table.

    Attributes:
        first: What broke first, or None: a daemon that swallows exceptions cannot hide it.
        models: How many model versions there may be at most, for the bounds of tables.
        largest_body_bytes: Of all requests and answers, for the bounds of bytes-like values.
        falls_back: Models of which there is a release: their requests may be sent once more, to the old version.
        daemon_of: Returns what there is of a node beside its cores, by its name; None where there is
            nothing (depth A), or no more. Its tables are measured too.
        looks: What else is checked at each look; each raises what it finds with `broken`.
    """

    def __init__(self, seed: int, now: Callable[[], float]) -> None:
        """Watch nobody yet.

        Args:
            seed: Of the stage, for messages.
            now: Its seconds.
        """
        self.first: InvariantBroken | None = None
        self.models = 1
        self.largest_body_bytes = 0
        self.falls_back: set[str] = set()
        self.daemon_of: Callable[[str], object | None] = lambda _name: None
        self.looks: list[Callable[[], None]] = []
        self._seed = seed
        self._now = now
        self._calls: dict[int, Call] = {}
        self._ended: set[int] = set()
        self._nodes: dict[str, NodeWatch] = {}
        self._ever: dict[str, None] = {}
        self._names: dict[str, str] = {}
        self._incarnations: dict[str, tuple[int, int]] = {}
        self._steps = Steps(now)
        self._patience_s = 0.0
        self._turn = 0
        self._were_up: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"<Invariants of {len(self._nodes)} nodes, {len(self._calls)} calls open>"

    def broken(self, invariant: str, message: str) -> NoReturn:
        """Report that an invariant does not hold.

        Raises:
            InvariantBroken: always.
        """
        found = InvariantBroken(invariant, self.named(message), self._seed, self._now())
        if self.first is None:
            self.first = found
        raise found

    def check(self) -> None:
        """Raise what broke first, if something did."""
        if self.first is not None:
            raise self.first

    def last_steps(self) -> list[Step]:
        """Return what nodes were told last, routine left out, in stage seconds."""
        return self._steps.steps(self.named)

    def named(self, text: str) -> str:
        """Return a text with the names of nodes in the place of their ids."""
        return _NODE_ID.sub(lambda found: self._names.get(found[0], found[0]), text)

    # Calls.

    def call_made(self, call: Call) -> None:
        """A client makes a call."""
        if call.number in self._calls or call.number in self._ended:
            self.broken("one-answer", f"call {call.number} was made twice")
        self._calls[call.number] = call
        self._patience_s = max(self._patience_s, call.timeout_s)
        body_bytes = max(call.request_bytes, call.response_bytes)
        self.largest_body_bytes = max(self.largest_body_bytes, body_bytes)

    def call_ended(self, call: Call, outcome: Outcome) -> None:
        """A call has its outcome."""
        where = f"call {call.number} of {call.model!r} at {call.gateway}"
        if call.number in self._ended:
            self.broken("one-answer", f"{where} ended a second time, with {outcome.code}")
        if self._calls.pop(call.number, None) is None:
            self.broken("one-answer", f"{where} was never made and ended with {outcome.code}")
        self._ended.add(call.number)
        if outcome.took_s > call.timeout_s + SLACK_S:
            self.broken(
                "no-hang",
                f"{where} took {outcome.took_s:.3f} s; its client waits {call.timeout_s:g} s",
            )
        sends = 1 + _ROUTING.max_retries + (call.model in self.falls_back)
        allowed = sends * outcome.gateways
        if outcome.attempts > allowed:
            self.broken(
                "attempts-within-budget",
                f"{where} was sent to {outcome.attempts} replicas by {outcome.gateways} gateways; "
                f"allowed are {allowed}",
            )

    def all_answered(self) -> None:
        """Check that every call has its outcome, when all had the time for it."""
        if self._calls:
            numbers = ", ".join(map(str, [*self._calls][:5]))
            self.broken(
                "one-answer",
                f"{len(self._calls)} calls never got an outcome, such as those numbered {numbers}",
            )

    # Nodes.

    def watch_node(self, name: str, node: Node) -> None:
        """A node boots with these cores; call it before they are told anything."""
        self._ever[name] = None
        self._names[node.me] = name
        flights = FlightWatch(name, node, self._now, self.broken)
        self._nodes[name] = NodeWatch(
            name, node, flights, self._steps, self._incarnations, self.broken
        )

    def node_gone(self, name: str) -> None:
        """A node's process is gone, with all that it had."""
        self._nodes.pop(name, None)

    def disk_restored(self, name: str) -> None:
        """A node boots with an older disk: its next incarnation may be lower, until the mesh tells it."""
        self._incarnations.pop(name, None)

    # Now and then.

    def look(self, sample: Sample) -> None:
        """Check what is too dear to be checked at each event.

        Args:
            sample: How the nodes fare now.
        """
        self.check()
        up = frozenset(name for name, node in sample.nodes.items() if node.state == "up")
        for name, watch in self._nodes.items():
            if name in up and name in self._were_up:  # a frozen one's time-outs wait for the thaw
                watch.flights.look(self._patience_s + OPEN_SLACK_S)
            watch.look()
        self._were_up = up
        for check in self.looks:
            check()
        names = [*self._nodes]
        has_daemons = any(self.daemon_of(name) is not None for name in names)
        for _ in range(min(DAEMONS_PER_LOOK if has_daemons else TABLES_PER_LOOK, len(names))):
            self._turn += 1
            self._measure(names[self._turn % len(names)], self._turn // len(names))

    def quiet(self) -> None:
        """Check what must hold when no call is open, no fault stands and all had time to agree."""
        self.check()
        self.all_answered()
        for name, watch in self._nodes.items():
            watch.look()
            watch.flights.look(0.0)
            watch.flights.quiet()
            if len(self._nodes) <= _MEASURE_ALL:
                self._measure(name, None if len(self._nodes) <= _MEASURE_WHOLE else self._turn)
        self._agree()

    def _measure(self, name: str, turn: int | None = None) -> None:
        """Check how large a node's tables are: all entries, or one window of them (`table_sizes`)."""
        daemon = self.daemon_of(name)
        root = self._nodes[name].node if daemon is None else daemon
        sizes = table_sizes(root, turn)
        nodes, calls = len(self._ever), len(self._calls)
        there_are = f"{nodes} nodes, {self.models} model versions and {calls} open calls allow"
        replicas = nodes * (1 + self.models)
        entries = TABLE_FLOOR + TABLE_PER_MEMBER * replicas + calls
        for path, size in sizes.tables.items():
            if size > entries and not self._is_remembered(path, size):
                message = f"{path} of {name} has {size} entries; {there_are} {entries}"
                self.broken("tables-bounded", message)
        bodies = TEXT_PER_BODY * (1 + calls) * self.largest_body_bytes
        most = TEXT_FLOOR_BYTES + TEXT_PER_MEMBER_BYTES * replicas + bodies
        for path, size in sizes.texts.items():
            if size > most:
                message = f"{path} of {name} has {size} bytes; {there_are} {most}"
                self.broken("tables-bounded", message)

    def _is_remembered(self, path: str, size: int) -> bool:
        """Whether a table remembers what was answered, for people's feedback: each call once, up to its own limit."""
        return path.endswith(_REMEMBERS) and size <= min(MAX_REMEMBERED_ANSWERS, len(self._ended))

    def _agree(self) -> None:
        """All running nodes see exactly the running nodes, and have the same desired state."""
        running = {watch.node.me: name for name, watch in self._nodes.items()}
        states: dict[tuple[tuple[str, bytes], ...], str] = {}
        for name, watch in self._nodes.items():
            members = watch.node.membership.members
            seen = {each for each, member in members.items() if member.live}
            missed = sorted(running[each] for each in running.keys() - seen)
            ghosts = sorted(members[each].record.name for each in seen - running.keys())
            if missed or ghosts:
                self.broken(
                    "views-agree",
                    f"{name} does not see {missed} and takes {ghosts} to be alive that do not run",
                )
            states.setdefault(tuple(watch.node.desired.items()), name)
        if len(states) > 1:
            first, second = [*states.values()][:2]
            self.broken("views-agree", f"{first} and {second} have different desired states")


_REMEMBERS: Final = "releasing.answers._given"
_NODE_ID: Final = re.compile(r"\b[a-z2-7]{32}\b")
_ROUTING: Final = RoutingConfig()
_MEASURE_ALL: Final = 100  # nodes whose tables are all measured at the end
_MEASURE_WHOLE: Final = 20  # nodes of whose tables all entries are looked into then
