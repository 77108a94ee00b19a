"""A fleet of whole daemons in virtual time: the cases of membership at depth B.

Everything is there that a real mesh has: invites, hellos, links, sealed datagrams, data folders, the
watch over the machine. A statement that a case lets a node hear is handed to its driver as if it had
been opened; records are the real ones, with real signatures.

Other than in `SimFleet` there are no puppets, and ids come to be when a daemon first runs.
"""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING, Any

from meshnode.effects import SendDatagram
from meshnode.events import DatagramReceived, NoteReceived
from meshnode.membership import LAN, Membership, MembershipConfig
from meshnode.membership.messages import CODEC
from meshnode.sim.core_world import NotReachedError
from meshnode.sim.fleet import FleetEvent, Sight
from meshnode.sim.scenario.model import Device
from meshnode.sim.stage import Machine
from meshnode.sim.virtual.mesh import INVITE_TTL_S, VirtualMesh
from meshnode.sim.virtual_fleet import LAN_NETWORK, sees

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from meshnode.effects import Effect, Emit
    from meshnode.events import Event
    from meshnode.membership.messages import Incarnation, MemberRecord
    from meshnode.node import Node
    from meshnode.sim.impairments import Impairment
    from meshnode.sim.network import NetworkConfig
    from meshnode.sim.virtual.daemon import VirtualNode
    from meshnode.wire.codec import Message

QUIET_S = 10.0
"""How long a fleet rests at most before a case begins."""

Tap = "Callable[[float, str, str, bytes], None]"


class DaemonFleet:
    """A `Fleet` of whole daemons.

    Attributes:
        config: Of all nodes' membership.
        seed: Decides everything.
    """

    def __init__(
        self,
        seed: int = 1,
        config: MembershipConfig = LAN,
        network: NetworkConfig = LAN_NETWORK,
    ) -> None:
        """Begin without nodes.

        Args:
            seed: Decides everything.
            config: Of all nodes' membership.
            network: How the network behaves.
        """
        self.seed = seed
        self.config = config
        self._network = network
        self._mesh: VirtualMesh | None = None
        self._events: list[FleetEvent] = []
        self._tap: Callable[[float, str, str, bytes], None] | None = None

    def __repr__(self) -> str:
        return f"<DaemonFleet {self._mesh!r}>"

    @property
    def mesh(self) -> VirtualMesh:
        """The mesh; there is one once a node was added."""
        assert self._mesh is not None, "the fleet has no nodes"
        return self._mesh

    # Nodes.

    def now(self) -> float:
        """Return the world's seconds."""
        return 0.0 if self._mesh is None else self._mesh.loop.now()

    def core(self, name: str) -> Membership:
        """Return a node's present core of membership."""
        return self.mesh.nodes[name].parts.node.membership

    def add(self, name: str, *, seeds: Iterable[str] = ()) -> None:
        """Start a node that joins through these nodes' invite; the first one founds the mesh."""
        machine = Machine(name, "eu", "mini-pc", Device())
        if self._mesh is None:
            self._mesh = VirtualMesh([machine], self.seed, self._network)
            self._prepare(self._mesh.nodes[name])
            self._mesh.on_emit = self._emitted
            self._mesh.on_made = self._made
            self._mesh.start()
            return
        node = self._mesh.add(machine)
        self._prepare(node)
        node.start(self._invite_of(next(iter(seeds))))

    def add_copy(self, name: str, original: str, *, seeds: Iterable[str] = ()) -> None:
        """Start a copy of a node's data folder on another machine; it finds the mesh by what lies there."""
        del seeds
        source = self.mesh.nodes[original]
        node = self.mesh.add(Machine(name, "eu", "mini-pc", Device()))
        self._prepare(node)
        shutil.copytree(source.path, node.path)
        node.start()

    def _prepare(self, node: VirtualNode) -> None:
        """Set what of the fleet's configuration is not the preset's."""
        preset, own = dataclasses.asdict(LAN), dataclasses.asdict(self.config)
        node.membership = {key: value for key, value in own.items() if value != preset[key]}

    def _invite_of(self, name: str) -> str:
        node = self.mesh.nodes[name]
        control = node.parts.control
        return str(node.host.call(control.trust.create_invite, INVITE_TTL_S)["invite"])

    def settled(self, count: int, *, limit_s: float = 60.0, quiet_s: float = QUIET_S) -> list[str]:
        """Start nodes n0, n1 ... that join through the first one; wait until all know all, and rest."""
        names = [f"n{number}" for number in range(count)]
        self.add(names[0])
        for name in names[1:]:
            self.add(name, seeds=names[:1])
        self.run_until(lambda: self.agree(names), limit_s)
        self.run_for(min(quiet_s, QUIET_S))
        self.forget_events()
        return names

    def names(self) -> list[str]:
        """Return the nodes that run, frozen ones included."""
        return [name for name, node in self.mesh.nodes.items() if node.state in ("up", "frozen")]

    # Time.

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        self.mesh.loop.run_for(seconds)

    def run_until(
        self, condition: Callable[[], bool], limit_s: float, step_s: float = 0.05
    ) -> float:
        """Let time pass until a condition holds, looked at every `step_s`; return how long it took.

        Raises:
            NotReachedError: if it does not hold within `limit_s`; it names the seed.
        """
        began = self.now()
        while not condition():
            if self.now() - began >= limit_s:
                raise NotReachedError(
                    f"not true within {limit_s} s, at {self.now():.3f} s of DaemonFleet(seed={self.seed})"
                )
            self.run_for(step_s)
        return self.now() - began

    # What happens to nodes and between them.

    def crash(self, name: str) -> None:
        """Kill a node's process; the kernel closes its links."""
        self.mesh.nodes[name].crash()

    def power_off(self, name: str) -> None:
        """Cut a node's power: not even its links say so."""
        self.mesh.nodes[name].power_off()

    def restart(self, name: str, *, seeds: Iterable[str] = ()) -> None:
        """Boot a node that crashed, lost power or left, from its disk: a later epoch."""
        del seeds  # what lies on its disk is enough
        self.mesh.start_again(self.mesh.nodes[name])

    def freeze(self, name: str) -> None:
        """Stop a node's process as SIGSTOP does."""
        self.mesh.nodes[name].host.freeze()

    def thaw(self, name: str) -> None:
        """Let a frozen node run on."""
        self.mesh.nodes[name].host.thaw()

    def leave(self, name: str) -> None:
        """Let a node say goodbye and end."""
        self.mesh.nodes[name].leave()

    def update(self, name: str, **changes: Any) -> None:
        """Change fields of a node's own record."""
        node = self.mesh.nodes[name]
        parts = node.parts

        def act() -> None:
            membership = parts.node.membership
            parts.driver.carry_out(membership.update_record(node.host.clock.now(), **changes))

        node.host.call(act)

    def partition(self, *groups: Iterable[str]) -> None:
        """Cut everything between nodes of different groups."""
        sides = [[*group] for group in groups]
        for side in sides:
            for other in sides:
                if other is not side:
                    self.mesh.loop.network.cut(side, other)

    def one_way(self, sources: Iterable[str], targets: Iterable[str]) -> None:
        """Lose everything that the sources send to the targets."""
        self.mesh.loop.network.cut(sources, targets)

    def block_udp(self, sources: Iterable[str], targets: Iterable[str]) -> None:
        """Lose datagrams from the sources to the targets; links stay."""
        self.mesh.loop.network.block(sources, targets)

    def heal(self) -> None:
        """Undo partitions and blocks."""
        self.mesh.loop.network.mend_all(_is_cut_or_block)

    def set_loss(self, loss: float) -> None:
        """Lose this share of all packets, 0 to 1; on links they come later."""
        network = self.mesh.loop.network
        network.config = dataclasses.replace(network.config, loss=loss)

    def say(self, sender: str, to: str, message: Message, *, by_datagram: bool = True) -> None:
        """Let a node hear a message that a member has really sent, whatever it says."""
        source = self.record(sender).node_id
        payload = CODEC.encode(message)
        event = (DatagramReceived if by_datagram else NoteReceived)(source, payload)
        node = self.mesh.nodes[to]
        node.host.call(node.parts.driver.handle, event)

    def watch(self, tap: Callable[[float, str, str, bytes], None] | None) -> None:
        """Show every datagram of the cores from now on: seconds, sender, receiver, payload."""
        self._tap = tap

    # Looking.

    def view(self, name: str) -> Mapping[str, Sight]:
        """Return how a node sees all nodes, itself included, by name."""
        return {
            self.mesh.name_of(node_id): Sight(member.state, member.incarnation, member.record.boot)
            for node_id, member in self.core(name).members.items()
        }

    def record(self, name: str) -> MemberRecord:
        """Return a node's own record as it spreads it."""
        return self.core(name).record

    def incarnation(self, name: str) -> Incarnation:
        """Return a node's own incarnation."""
        return self.record(name).incarnation

    def acquainted(self, names: Iterable[str] | None = None) -> bool:
        """Whether these nodes (all that run) hold each other for live, suspect or not, and nobody else."""
        cores = self._cores(names)
        if cores is None:
            return False
        wanted = {core.record.node_id for core in cores}
        return all(
            wanted == {node_id for node_id, member in core.members.items() if member.live}
            for core in cores
        )

    def agree(self, names: Iterable[str] | None = None) -> bool:
        """Whether these nodes (all that run) see each other alive, as they are, and nobody else live."""
        cores = self._cores(names)
        if cores is None:
            return False
        truth = {core.record.node_id: core.record.version for core in cores}
        return all(sees(core, truth) for core in cores)

    def _cores(self, names: Iterable[str] | None) -> list[Membership] | None:
        """Return the cores of these nodes; None while one of them is not a member yet."""
        nodes = [self.mesh.nodes[name] for name in (self.names() if names is None else names)]
        if not all(node.ready and node.mesh is not None for node in nodes):
            return None
        return [node.parts.node.membership for node in nodes]

    def events(
        self, *kinds: str, node: str | None = None, subject: str | None = None
    ) -> list[FleetEvent]:
        """Return what cores told of members, oldest first; of all kinds if none is named."""
        return [
            event
            for event in self._events
            if (not kinds or event.kind in kinds)
            and node in (None, event.node)
            and subject in (None, event.subject)
        ]

    def forget_events(self) -> None:
        """Drop the events until now."""
        self._events.clear()

    def reset_traffic(self) -> None:
        """Do nothing: what daemons say is not only membership's, so it is not counted."""

    def close(self) -> None:
        """End all nodes and remove their files."""
        if self._mesh is not None:
            self._mesh.close()

    # What nodes tell.

    def _emitted(self, node: VirtualNode, emit: Emit) -> None:
        if emit.kind.startswith("member."):
            subject = self.mesh.name_of(emit.subject)
            self._events.append(FleetEvent(self.now(), node.name, emit.kind, subject, emit.detail))

    def _made(self, node: VirtualNode, cores: Node) -> None:
        """Look at what the cores send, for `watch`."""
        handle = cores.handle

        def watched(event: Event, now: float, wall_s: float) -> list[Effect]:
            effects = handle(event, now, wall_s)
            tap = self._tap
            if tap is not None:
                for effect in effects:
                    if isinstance(effect, SendDatagram):
                        receiver = self.mesh.name_of(effect.to)
                        tap(self.now(), node.name, receiver, effect.payload)
            return effects

        cores.handle = watched  # type: ignore[method-assign]


def _is_cut_or_block(impairment: Impairment) -> bool:
    return impairment.cut or impairment.blocked
