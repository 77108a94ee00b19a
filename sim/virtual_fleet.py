"""A fleet in virtual time: real membership cores on a `CoreWorld`, with signatures that cost a hash.

What a driver does around a core is modelled as far as membership can notice it: a datagram opens only
where its sender's boot is known (from its record or from a link), and is sealed for the boot of the
receiver that the sender knows. Byte counts are of whole packets.

After every event of every core it is checked that the node's own incarnation has not fallen, that it
holds itself alive (or left, once it said so), that no datagram or note exceeds its limit, and that
people are told of another node's end exactly once per time that they were told that it is there.
"""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshnode.events import DatagramReceived, NoteReceived
from meshnode.membership import LAN, Membership, MembershipConfig, read_members
from meshnode.membership.messages import CODEC, Incarnation, MemberRecord
from meshnode.sim.core_world import CoreWorld
from meshnode.sim.fleet import (
    FleetEvent,
    Sight,
    Traffic,
    make_record,
    public_key,
    signature,
    verify,
    verify_record,
)
from meshnode.sim.fleet_process import Places, Process, Puppet
from meshnode.sim.network import NetworkConfig
from meshnode.types import NodeId, NodeState, node_id_of
from meshnode.wire.config import LinkConfig
from meshnode.wire.frames import HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from meshnode.effects import Effect
    from meshnode.sim.core_node import Boot
    from meshnode.wire.codec import Message

LAN_NETWORK: Final = NetworkConfig(near_rtt_s=0.002, jitter=0.5, max_retransmits=1)
"""One site: a millisecond each way, half of it uncertain, so that datagrams overtake each other. Its losses
are those of datagrams, as in the published figures; links lose little."""

IDLE_LINK_BYTES_PER_S: Final = (HEADER_BYTES + 8 + 22 + 52 + 52) / LinkConfig().idle_ping_after_s
"""What one end of a link at rest sends: a ping or its answer, in a TLS record and a TCP segment, and an ACK
of the other's. The links of a fleet do not send it, so whoever counts bytes adds it."""

SHARED_FIELDS: Final = (
    "public_key", "name", "region", "addresses", "boot", "capabilities", "chain", "labels", "signature",
)  # fmt: skip
"""The fields of a record that take memory."""


class SimFleet:
    """A `Fleet` in virtual time.

    Attributes:
        config: Of all nodes.
        seed: Decides everything.
        world: Time, network, links, disks.
        places: Who is where, and what cores told people.
    """

    _process_type: type[Process] = Process

    def __init__(
        self,
        seed: int = 1,
        config: MembershipConfig = LAN,
        network: NetworkConfig = LAN_NETWORK,
        **record: Any,
    ) -> None:
        """Begin without nodes.

        Args:
            seed: Decides everything.
            config: Of all nodes.
            network: How the network behaves.
            record: Fields of all nodes' records, such as a short `chain` for very large meshes.
        """
        self.seed = seed
        self.config = config
        self.world = CoreWorld(seed, network)
        self.places = Places()
        self._record = record
        self._processes: dict[str, Process] = {}  # the present or last boot of each node
        self._seeds: dict[str, tuple[str, ...]] = {}
        self._genuine: dict[bytes, MemberRecord] = {}  # by signature
        self._disagreeing = ""

    def __repr__(self) -> str:
        return f"<SimFleet {self.world!r}>"

    # Nodes.

    def now(self) -> float:
        """Return virtual seconds since the fleet began."""
        return self.world.now()

    def core(self, name: str) -> Membership:
        """Return a node's present core."""
        return self._processes[name].membership

    def add(self, name: str, *, seeds: Iterable[str] = (), **record: Any) -> NodeId:
        """Start a node that looks for the mesh at these nodes; `record` sets fields of its record."""
        self._seeds[name] = tuple(seeds)
        fields = self._record | record

        def boot(boot: Boot) -> Process:
            return self._boot(boot, fields)

        return self.world.add_node(name, "eu", boot, node_id_of(public_key(name)))

    def add_copy(self, name: str, original: str, *, seeds: Iterable[str] = ()) -> None:
        """Start a copy of a node's disk and key as another process, on another machine."""
        self._seeds[name] = tuple(seeds)
        place, node_id = node_id_of(public_key(name)), node_id_of(public_key(original))
        self.places.copies[place] = node_id
        saved = self.world.disk_of(original)
        fields = self._record | {"epoch": self.record(original).epoch + 1}

        def boot(boot: Boot) -> Process:
            return self._boot(dataclasses.replace(boot, disk=boot.disk or saved), fields, original)

        self.world.add_node(name, "eu", boot, place)

    def add_puppet(self, name: str) -> Puppet:
        """Start a member without a mind. Nobody knows it until somebody is told of its record."""
        key = public_key(name)

        def boot(boot: Boot) -> Puppet:
            puppet = Puppet(name, make_record(name, addresses=(boot.address,)))
            self.places.put(boot.node, boot.address, puppet)
            return puppet

        self.world.add_node(name, "eu", boot, node_id_of(key))
        puppet: Puppet = self.world.core(name)
        return puppet

    def _boot(self, boot: Boot, fields: dict[str, Any], identity: str = "") -> Process:
        name, key = boot.name, public_key(identity or boot.name)
        nonce = boot.rng.getrandbits(63)
        record: dict[str, Any] = {
            "addresses": (boot.address,),
            "epoch": boot.epoch,
            "boot": nonce,
        } | fields
        saved = boot.disk.get("members")
        membership = Membership(
            record=make_record(identity or name, **record),
            sign=lambda data: signature(key, data),
            verify_record=self._verify_record,
            verify_signature=verify,
            config=self.config,
            rng=random.Random(boot.rng.getrandbits(64)),
            seeds=[self.world.address_of(seed) for seed in self._seeds[name]],
            known=() if saved is None else read_members(saved),
        )
        process = self._process_type(self.places, boot.node, name, membership, record["boot"])
        self._processes[name] = process
        self.places.put(boot.node, boot.address, process)
        return process

    def _verify_record(self, record: MemberRecord) -> str | None:
        """Check a signature, and let all holders of a record share its parts: N² of them are held."""
        genuine = self._genuine.get(record.signature)
        if genuine != record:
            reason = verify_record(record)
            if reason is None:
                self._genuine[record.signature] = record
            return reason
        for field in SHARED_FIELDS:
            msgspec.structs.force_setattr(record, field, getattr(genuine, field))
        return None

    def settled(self, count: int, *, limit_s: float = 60.0, quiet_s: float = 30.0) -> list[str]:
        """Start nodes n0, n1 ... that join through the first one; wait until all know all, and rest."""
        names = [f"n{number}" for number in range(count)]
        self.add(names[0])
        for name in names[1:]:
            self.add(name, seeds=names[:1])
        self.run_until(lambda: self.agree(names), limit_s)
        self.run_for(quiet_s)
        self.forget_events()
        self.reset_traffic()
        return names

    def names(self) -> list[str]:
        """Return the nodes that run, frozen ones included."""
        return self.world.running()

    # Time.

    def run_for(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.world.run_for(seconds)

    def run_until(
        self, condition: Callable[[], bool], limit_s: float, step_s: float = 0.05
    ) -> float:
        """Let time pass until a condition holds, looked at every `step_s`; return how long it took.

        Raises:
            NotReachedError: if it does not hold within `limit_s`; it names the seed.
        """
        return self.world.run_until(condition, limit_s, step_s)

    # What happens to nodes and between them.

    def crash(self, name: str) -> None:
        """Kill a node's process; the kernel closes its links."""
        self.world.crash(name)

    def power_off(self, name: str) -> None:
        """Cut a node's power: not even its links say so."""
        self.world.power_off(name)

    def restart(self, name: str, *, seeds: Iterable[str] = ()) -> None:
        """Boot a node that crashed, lost power or left, from its disk: a later epoch."""
        self._seeds[name] = tuple(seeds)
        self.world.restart(name)

    def freeze(self, name: str) -> None:
        """Stop a node's process as SIGSTOP does."""
        self.world.freeze(name)

    def thaw(self, name: str) -> None:
        """Let a frozen node run on."""
        self.world.thaw(name)

    def stall(self, names: Iterable[str]) -> None:
        """Keep back everything that these nodes send and are sent, while their timers run on.

        This is how the Lifeguard paper (section V) stalls a member: its messages wait, its failure
        detector does not.
        """
        stalled, everybody = [*names], self.world.running()
        self.world.hold(stalled, everybody)
        self.world.hold(everybody, stalled)

    def resume(self) -> None:
        """End all stalls: what was kept back is on its way now."""
        self.world.release()

    def leave(self, name: str) -> None:
        """Let a node say goodbye and end."""
        self.world.leave(name)

    def update(self, name: str, **changes: Any) -> None:
        """Change fields of a node's own record."""
        process = self._processes[name]

        def act(now: float, _wall_s: float) -> list[Effect]:
            return process.carry_out(process.membership.update_record(now, **changes), now)

        self.world.act(name, act)

    def partition(self, *groups: Iterable[str]) -> None:
        """Cut everything between nodes of different groups."""
        self.world.partition(*groups)

    def one_way(self, sources: Iterable[str], targets: Iterable[str]) -> None:
        """Lose everything that the sources send to the targets."""
        self.world.partition_one_way(sources, targets)

    def block_udp(self, sources: Iterable[str], targets: Iterable[str]) -> None:
        """Lose datagrams from the sources to the targets; links stay."""
        self.world.block_datagrams(sources, targets)

    def heal(self) -> None:
        """Undo partitions and blocks."""
        self.world.heal()

    def set_loss(self, loss: float) -> None:
        """Lose this share of all datagrams, 0 to 1."""
        network = self.world.network
        network.config = dataclasses.replace(network.config, loss=loss)

    def say(self, sender: str, to: str, message: Message, *, by_datagram: bool = True) -> None:
        """Let a node hear a message that a member has really sent: sealed by it, whatever it says."""
        source, payload = node_id_of(public_key(sender)), CODEC.encode(message)
        event = (DatagramReceived if by_datagram else NoteReceived)(source, payload)
        process = self._processes[to]

        def act(now: float, _wall_s: float) -> list[Effect]:
            return process.carry_out(process.membership.handle(event, now), now)

        self.world.act(to, act)

    def watch(self, tap: Callable[[float, str, str, bytes], None] | None) -> None:
        """Show every datagram's payload from now on: seconds, sender, receiver, payload."""
        self.places.tap = tap

    # Looking.

    def view(self, name: str) -> Mapping[str, Sight]:
        """Return how a node sees all nodes, itself included, by name."""
        return {
            self.places.name_at(node_id): Sight(
                member.state, member.incarnation, member.record.boot
            )
            for node_id, member in self._processes[name].membership.members.items()
        }

    def record(self, name: str) -> MemberRecord:
        """Return a node's own record as it spreads it."""
        return self._processes[name].membership.record

    def incarnation(self, name: str) -> Incarnation:
        """Return a node's own incarnation."""
        return self.record(name).incarnation

    def acquainted(self, names: Iterable[str] | None = None) -> bool:
        """Whether these nodes (all that run) hold each other for live, suspect or not, and nobody else."""
        processes = [self._processes[name] for name in names or self.world.running()]
        wanted = {process.node_id for process in processes}
        return all(
            wanted
            == {node_id for node_id, member in each.membership.members.items() if member.live}
            for each in processes
        )

    def agree(self, names: Iterable[str] | None = None) -> bool:
        """Whether these nodes (all that run) see each other alive, as they are, and nobody else live."""
        wanted = [*(self.world.running() if names is None else names)]
        processes = {name: self._processes[name] for name in wanted}
        truth = {each.node_id: each.membership.record.version for each in processes.values()}
        if self._disagreeing in processes:  # most likely it still does
            wanted.insert(0, self._disagreeing)
        for name in wanted:
            if not sees(processes[name].membership, truth):
                self._disagreeing = name
                return False
        return True

    def events(
        self, *kinds: str, node: str | None = None, subject: str | None = None
    ) -> list[FleetEvent]:
        """Return what cores told people, oldest first; of all kinds if none is named."""
        found = [
            event
            for kind in (kinds or tuple(self.places.log))
            for event in self.places.log.get(kind, ())
            if node in (None, event.node) and subject in (None, event.subject)
        ]
        found.sort(key=lambda event: event.time_s)
        return found

    def forget_events(self) -> None:
        """Drop the events until now."""
        self.places.log.clear()

    def traffic(self, name: str) -> Traffic:
        """Return what a node has said and heard since its start, or since `reset_traffic`."""
        return self._processes[name].traffic

    def reset_traffic(self) -> None:
        """Count anew from here."""
        for process in self._processes.values():
            process.traffic = Traffic()

    def close(self) -> None:
        """Nothing outlives a virtual fleet."""


def sees(membership: Membership, truth: Mapping[NodeId, tuple[int, int, int]]) -> bool:
    """Whether a core sees just these nodes alive, in these versions, and nobody else live or suspect."""
    live = 0
    for node_id, member in membership.members.items():
        state = member.state
        if state is NodeState.ALIVE:
            if truth.get(node_id) != member.record.version:
                return False
            live += 1
        elif state is NodeState.SUSPECT:
            return False
    return live == len(truth)
