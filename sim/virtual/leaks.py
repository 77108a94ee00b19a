"""What must not be left over in a daemon: requests when it has come to rest, tasks and timers at any time.

How many tasks and timers a daemon may have follows from what it has to do: so much for each HTTP connection,
link, request and node that it looks for. Each *kind* of them is counted for itself, by the function that it
runs, so that a leak of a few is seen beside a hundred connections. Nothing is compared with an earlier count, so it
holds for a daemon that was started a moment ago, too.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from meshnode.sim.node_watch import TIMER_FLOOR, TIMERS_PER_MEMBER
from meshnode.sim.virtual.daemon import work_of
from meshnode.types import ReplicaState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Iterator

    from meshnode.daemon.assembly import Assembly
    from meshnode.sim.virtual.daemon import VirtualNode

SPARE: Final = 4
"""Tasks or timers of one kind that any daemon may have at once. Over the scenarios of the library one was
the most, and four sleeps of four tasks that run for ever."""

PER_REQUEST: Final = 2
"""Of one kind per request that is worked on: its handler and what it was handed on to."""

PER_MISSING: Final = 2
"""Dials of one kind per node to which there is no direct link, as two addresses are tried in a race. One behind a
relay counts, too: what was dialled directly when the relay was found goes on to its end, and is tried anew later."""

NODES_PER_LOOK: Final = 10
"""Daemons that are looked at at one look, in turn: of a larger mesh, counting all costs too much."""


class Kind(NamedTuple):
    """What a task or timer does.

    Attributes:
        what: `tasks` or `timers`.
        module: Where its function is.
        name: The function's name.
    """

    what: str
    module: str
    name: str


class Leftover(NamedTuple):
    """Something that is left over: which invariant it breaks, and what it is."""

    invariant: str
    message: str


class LeakWatch:
    """The tasks and timers of all daemons of a world."""

    def __init__(
        self, nodes: Callable[[], Iterable[VirtualNode]], broken: Callable[[str, str], NoReturn]
    ) -> None:
        """Watch these.

        Args:
            nodes: Returns all there are.
            broken: Reports an invariant and what was seen; raises.
        """
        self._nodes = nodes
        self._broken = broken
        self._turn = 0
        self._over: dict[str, frozenset[tuple[int, Kind]]] = {}

    def __repr__(self) -> str:
        return f"<LeakWatch: {sum(map(len, self._over.values()))} kinds above their bounds>"

    def look(self) -> None:
        """Check some daemons; what is above its bound twice running is a leak, not a moment's rush."""
        nodes = [*self._nodes()]
        for _ in range(min(NODES_PER_LOOK, len(nodes))):
            self._turn += 1
            self._check(nodes[self._turn % len(nodes)], len(nodes))

    def quiet(self) -> None:
        """Check all daemons, which are at rest."""
        nodes = [*self._nodes()]
        for node in nodes:
            found = left_over(node)
            if found is not None:
                self._broken(found.invariant, found.message)
            for kind, (count, allowed) in above(node, len(nodes)).items():
                self._leaks(node, kind, count, allowed)

    def _check(self, node: VirtualNode, nodes: int) -> None:
        found = above(node, nodes)
        before = self._over.get(node.name, frozenset())
        for kind, (count, allowed) in found.items():
            if (node.boots, kind) in before:
                self._leaks(node, kind, count, allowed)
        self._over[node.name] = frozenset((node.boots, kind) for kind in found)

    def _leaks(self, node: VirtualNode, kind: Kind, count: int, allowed: int) -> NoReturn:
        self._broken(
            "no-leak",
            f"{node.name} has {count} {kind.what} of {kind.module}.{kind.name}; what it has to do "
            f"allows {allowed}",
        )


def above(node: VirtualNode, nodes: int) -> dict[Kind, tuple[int, int]]:
    """Return the kinds of which a daemon has more than it may, with how many it has and may have.

    Args:
        node: The daemon's; there is nothing above where none runs, or it stands still.
        nodes: How many there are in the world.
    """
    mesh, server = node.mesh, node.models
    if node.state != "up" or mesh is None or server is None:
        return {}
    peers = [*mesh.hub.peers()]
    links = len(peers)
    direct = sum(mesh.hub.relay(peer) is None for peer in peers)
    missing = PER_MISSING * max(0, nodes - 1 - direct)
    loading = sum(each.state is not ReplicaState.READY for each in mesh.node.own.values())
    working = mesh._pipeline.in_flight + mesh._peer_server.running + work_of(server).in_system
    base = SPARE + PER_REQUEST * working + loading
    process = node.host.process
    tasks = process.live_tasks()
    found = Counter(map(_task_kind, tasks))
    found.update(map(_timer_kind, _callbacks(process.live_timers())))

    def allowed(kind: Kind) -> int:
        if kind.module.startswith("aiohttp."):
            return base + mesh.http_connections
        if kind.what == "timers" and kind.module.startswith("asyncio."):  # sleeps and time-outs
            return base + len(tasks)
        if kind.module == "meshnode.daemon.driver":  # the cores' timers
            return base + TIMER_FLOOR + TIMERS_PER_MEMBER * nodes
        if kind.module.startswith("meshnode.net."):
            return base + missing + (links if kind.what == "timers" else 0)
        if kind.module.startswith("meshnode.sim."):  # of the sockets
            return base + missing + links + mesh.http_connections
        return base

    return {
        kind: (count, allowed(kind))
        for kind, count in found.items()
        if count > SPARE and count > allowed(kind)
    }


def left_over(node: VirtualNode) -> Leftover | None:
    """Return which requests a node at rest has left over, or None; no call is open."""
    mesh, server = node.mesh, node.models
    if node.state != "up" or mesh is None or server is None:
        return None
    invariant = "in-flight-conserved"
    if mesh.busy:
        return Leftover(invariant, f"{node.name} still works on a request that nobody waits for")
    if waiting := mesh._pipeline.cold_starts.waiting:
        return Leftover(invariant, f"{waiting} requests at {node.name} still wait for a replica")
    if routed := _outstanding(mesh):
        return Leftover(invariant, f"{node.name} counts {routed} requests of its own as in flight")
    if (work := work_of(server)).in_system:
        return Leftover(invariant, f"{work.in_system} runs of {node.name} have not ended")
    return None


def _task_kind(task: asyncio.Task[Any]) -> Kind:
    coroutine: Any = task.get_coro()
    frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
    module = "" if frame is None else frame.f_globals.get("__name__", "")
    return Kind("tasks", module, getattr(coroutine, "__qualname__", type(coroutine).__name__))


def _callbacks(timers: Iterable[asyncio.TimerHandle]) -> Iterator[Any]:
    return (timer._callback for timer in timers)  # type: ignore[attr-defined]


def _timer_kind(callback: Any) -> Kind:
    while isinstance(callback, partial):
        callback = callback.func
    named = callback if hasattr(callback, "__qualname__") else type(callback)
    return Kind("timers", named.__module__ or "", named.__qualname__)


def _outstanding(mesh: Assembly) -> int:
    """Return how many requests routing counts as in flight, to all replicas that it knows."""
    router = mesh.node.router
    return sum(
        router.book.load(replica.node, model, version).outstanding
        for model, versions in router.table.models().items()
        for version in versions
        for replica in router.table.replicas(model, version)
    )
