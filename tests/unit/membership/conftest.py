"""A mesh in virtual time: a heap of events, a lossy network, links that come up when dialled.

Every node's invariants are checked after every event: its own incarnation never falls, it never
believes itself anything but alive before it leaves, and no datagram or note exceeds its limit.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from meshnode.effects import (
    CloseLink,
    Dial,
    Effect,
    Emit,
    Persist,
    SendDatagram,
    SendNote,
    StartTimer,
)
from meshnode.events import (
    DatagramReceived,
    DialFailed,
    Event,
    Leave,
    LinkDown,
    LinkUp,
    NoteReceived,
    Start,
    TimerFired,
)
from meshnode.limits import MAX_META_BYTES
from meshnode.membership import (
    LAN,
    MemberRecord,
    Membership,
    MembershipConfig,
    MembershipTimer,
    sign_record,
)
from meshnode.membership.messages import (
    CODEC,
    STATE_CODES,
    Ack,
    Gossip,
    Incarnation,
    Records,
    Rumour,
    leave_bytes,
    pack_id,
    read_record,
)
from meshnode.membership.timers import RequestRound
from meshnode.types import Address, NodeId, NodeState, node_id_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meshnode.wire.codec import Message


def public_key(name: str) -> bytes:
    return hashlib.sha256(b"key of " + name.encode()).digest()


def signature(key: bytes, data: bytes) -> bytes:
    """Stand in for Ed25519: whoever calls it has the key."""
    return hashlib.sha256(b"signed" + key + data).digest()


def signer(name: str) -> Callable[[bytes], bytes]:
    return lambda data: signature(public_key(name), data)


def verify(key: bytes, data: bytes, signed: bytes) -> bool:
    return signed == signature(key, data)


def verify_record(record: MemberRecord) -> str | None:
    if record.chain == b"revoked":
        return "it was revoked"
    if not verify(record.public_key, record.signed_bytes(), record.signature):
        return "its signature is wrong"
    return None


def build_record(name: str, /, **changes: Any) -> MemberRecord:
    """Return a signed record of the node with this name."""
    number = int(hashlib.sha256(name.encode()).hexdigest()[:4], 16)
    blank = MemberRecord(
        public_key=public_key(name),
        name=name,
        region="eu",
        zone="",
        labels={"rack": "r1"},
        addresses=(Address(f"10.0.{number // 256}.{number % 256}", 8471),),
        http="",
        epoch=1,
        counter=0,
        boot=7,
        capabilities={"cpus": 4, "accelerators": [{"name": "A100", "memory_bytes": 80}]},
        chain=b"chain",
    )
    return sign_record(msgspec.structs.replace(blank, **changes), signer(name))


def build_core(name: str = "me", **options: Any) -> Membership:
    """Return a core on its own, for tests that speak to it directly."""
    arguments: dict[str, Any] = {
        "record": build_record(name),
        "sign": signer(name),
        "verify_record": verify_record,
        "verify_signature": verify,
        "config": LAN,
        "rng": random.Random(1),
    }
    return Membership(**(arguments | options))


class Node:
    """A core and what its driver would hold."""

    def __init__(self, name: str, core: Membership) -> None:
        self.name = name
        self.core = core
        self.id = core.node_id
        self.running = True
        self.asleep_until = 0.0
        self.emitted: list[tuple[float, Emit]] = []
        self.disk: bytes | None = None
        self.greatest = core.record.incarnation

    def __repr__(self) -> str:
        return f"<Node {self.name}>"

    @property
    def address(self) -> Address:
        return self.core.record.addresses[0]

    def emits(self, *kinds: str) -> list[str]:
        """Return the subjects of the events of these kinds, in order."""
        return [emit.subject for _, emit in self.emitted if emit.kind in kinds]

    def view(self) -> dict[NodeId, NodeState]:
        return {node_id: member.state for node_id, member in self.core.members.items()}


class World:
    """Nodes, links between them, and a network that can be hurt."""

    def __init__(self, seed: int = 1, config: MembershipConfig = LAN) -> None:
        self.now = 1000.0
        self.config = config
        self.rng = random.Random(seed)
        self.seed = seed
        self.loss = 0.0
        self.udp_cut: Callable[[Node, Node], bool] | None = None
        self.wire_cut: Callable[[Node, Node], bool] | None = None
        self.nodes: dict[NodeId, Node] = {}
        self.links: dict[tuple[NodeId, NodeId], int] = {}
        self.trace = hashlib.sha256()
        self.datagrams = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0

    # Building.

    def add(
        self,
        name: str,
        *,
        seeds: Iterable[Address] = (),
        known: Iterable[MemberRecord] = (),
        **record: Any,
    ) -> Node:
        """Start a node; one that ran under this name before is gone."""
        core = build_core(
            name,
            record=build_record(name, **record),
            rng=random.Random(f"{self.seed} {name}"),
            config=self.config,
            seeds=tuple(seeds),
            known=known,
        )
        node = Node(name, core)
        self.nodes[node.id] = node
        self.tell(node, Start())
        return node

    def mesh(self, count: int, settle_s: float = 30.0) -> list[Node]:
        """Start nodes that join through the first one, and wait until all know all."""
        first = self.add("n0")
        nodes = [first, *(self.add(f"n{i}", seeds=[first.address]) for i in range(1, count))]
        self.run(settle_s)
        assert self.agree(nodes)
        return nodes

    # Hurting.

    def crash(self, node: Node, *, silently: bool = False) -> None:
        """Stop a node; peers see their links break, unless it was a power cut."""
        node.running = False
        for first, second in list(self.links):
            if node.id in (first, second):
                if silently:
                    del self.links[first, second]
                else:
                    self.unlink(first, second)

    def unlink(self, first: NodeId, second: NodeId) -> None:
        if self.links.pop((min(first, second), max(first, second)), None) is not None:
            for one, other in ((first, second), (second, first)):
                self.tell(self.nodes[one], LinkDown(other, "broken"), 0.001)

    def split(self, *groups: list[Node]) -> None:
        """Cut everything between groups, links included."""
        side = {node.id: index for index, group in enumerate(groups) for node in group}
        self.wire_cut = lambda sender, receiver: side[sender.id] != side[receiver.id]
        for first, second in list(self.links):
            if side[first] != side[second]:
                self.unlink(first, second)

    def heal(self) -> None:
        self.wire_cut = None

    # Running.

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._order, action))

    def run(self, duration_s: float) -> None:
        """Let time pass."""
        end = self.now + duration_s
        while self._heap and self._heap[0][0] <= end:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = end

    def run_until(self, condition: Callable[[], bool], limit_s: float) -> float:
        """Let time pass until a condition holds; return how long it took, or fail."""
        start = self.now
        while not condition():
            assert self.now - start < limit_s, f"not within {limit_s} s (seed {self.seed})"
            self.run(0.1)
        return self.now - start

    def tell(self, node: Node, event: Event, delay_s: float = 0.0) -> None:
        self.at(delay_s, lambda: self._deliver(node, event))

    def leave(self, node: Node) -> None:
        """Let a node say goodbye and stop."""
        self._deliver(node, Leave())
        self.at(0.5, lambda: self.crash(node))

    def agree(self, nodes: Iterable[Node]) -> bool:
        """Whether these nodes believe each other alive, in the same incarnation, and nobody else."""
        truth = {node.id: node.core.record.version for node in nodes}
        views = (
            {
                node_id: member.record.version
                for node_id, member in node.core.members.items()
                if member.live
            }
            for node in nodes
        )
        return all(view == truth for view in views) and not any(
            NodeState.SUSPECT in node.view().values() for node in nodes
        )

    def _deliver(self, node: Node, event: Event) -> None:
        if not node.running:
            return
        if node.asleep_until > self.now:
            self.tell(node, event, node.asleep_until - self.now)
            return
        effects = node.core.handle(event, self.now)
        self.perform(node, effects)
        own = node.core.members[node.id]
        assert own.incarnation >= node.greatest
        node.greatest = own.incarnation
        assert own.state is (NodeState.LEFT if node.core.left else NodeState.ALIVE)

    def perform(self, node: Node, effects: list[Effect]) -> None:
        """Carry out a core's effects."""
        for effect in effects:
            self.trace.update(f"{self.now:.6f} {node.name} {effect!r}\n".encode())
            match effect:
                case SendDatagram(to, payload):
                    assert len(payload) <= self.config.max_payload_bytes
                    self._send_datagram(node, to, payload)
                case SendNote(to, payload):
                    assert len(payload) <= MAX_META_BYTES
                    self._send_note(node, to, payload)
                case Dial(addresses, expect):
                    self._dial(node, addresses, expect)
                case CloseLink(to, _):
                    self.unlink(node.id, to)
                case StartTimer(timer, delay_s):
                    assert isinstance(timer, MembershipTimer)
                    self.tell(node, TimerFired(timer), delay_s)
                case Persist("members", value):
                    node.disk = value
                case Emit():
                    node.emitted.append((self.now, effect))
                case _:
                    raise AssertionError(f"no core of membership asks for {effect!r}")

    def _send_datagram(self, node: Node, to: NodeId, payload: bytes) -> None:
        self.datagrams += 1
        receiver = self.nodes.get(to)
        lost = self.rng.random() < self.loss
        delay_s = self.rng.uniform(0.0005, 0.005)
        if receiver is None or lost or self._is_cut(node, receiver):
            return
        self.tell(receiver, DatagramReceived(node.id, payload), delay_s)

    def _is_cut(self, sender: Node, receiver: Node) -> bool:
        cuts = (self.udp_cut, self.wire_cut)
        return any(cut is not None and cut(sender, receiver) for cut in cuts)

    def _is_severed(self, one: Node, other: Node) -> bool:
        cut = self.wire_cut
        return cut is not None and (cut(one, other) or cut(other, one))

    def _send_note(self, node: Node, to: NodeId, payload: bytes) -> None:
        key = (min(node.id, to), max(node.id, to))
        link = self.links.get(key)

        def arrive() -> None:
            if self.links.get(key) == link:
                self._deliver(self.nodes[to], NoteReceived(node.id, payload))

        if link is not None:
            self.at(0.003, arrive)

    def _dial(self, node: Node, addresses: tuple[Address, ...], expect: NodeId | None) -> None:
        def connect() -> None:
            for address in addresses:
                peer = next((peer for peer in self.nodes.values() if peer.address == address), None)
                if (
                    peer is None
                    or peer is node
                    or not (peer.running and node.running)
                    or expect not in (None, peer.id)
                    or self._is_severed(node, peer)
                ):
                    continue
                self._order += 1
                self.links[min(node.id, peer.id), max(node.id, peer.id)] = self._order
                self._deliver(node, LinkUp(peer.id, address))
                self._deliver(peer, LinkUp(node.id, node.address))
                return
            self._deliver(node, DialFailed(addresses, expect, "nobody there"))

        self.at(0.02, connect)


def records_of(*records: MemberRecord) -> Records:
    """Return the message that carries these."""
    return Records(tuple(msgspec.Raw(CODEC.encode(record)) for record in records))


class Stage:
    """One core under direct questioning: what it is told, and what it does about it."""

    def __init__(self, name: str = "me", **options: Any) -> None:
        self.name = name
        self.now = 100.0
        self.core = build_core(name, **options)
        self.id = self.core.node_id

    def tell(self, event: Event) -> list[Effect]:
        return self.core.handle(event, self.now)

    def fire(self, timer: MembershipTimer, after_s: float = 0.0) -> list[Effect]:
        self.now += after_s
        return self.tell(TimerFired(timer))

    def tell_at(self, time: float, timer: MembershipTimer) -> list[Effect]:
        """Let a timer be due at a monotonic second."""
        return self.fire(timer, max(0.0, time - self.now))

    def link(self, name: str) -> list[Effect]:
        return self.tell(LinkUp(node_id_of(public_key(name)), build_record(name).addresses[0]))

    def note(self, sender: str, message: Message) -> list[Effect]:
        return self.tell(NoteReceived(node_id_of(public_key(sender)), CODEC.encode(message)))

    def datagram(self, sender: str, message: Message) -> list[Effect]:
        return self.tell(DatagramReceived(node_id_of(public_key(sender)), CODEC.encode(message)))

    def ack(self, to: NodeId, sequence: int) -> list[Effect]:
        """Let a probe be answered directly."""
        return self.tell(DatagramReceived(to, CODEC.encode(Ack(sequence))))

    def asked(self, after_s: float = 0.2) -> list[tuple[NodeId, Any]]:
        """Let records be asked for that are due after a while, and return what is sent."""
        return messages(self.fire(RequestRound(), after_s))

    def unlink(self, name: str) -> list[Effect]:
        return self.tell(LinkDown(node_id_of(public_key(name)), "broken"))

    def learn(self, *names: str, **record: Any) -> list[Effect]:
        """Let the first of these bring the records of all."""
        return self.note(names[0], records_of(*(build_record(name, **record) for name in names)))

    def hear(
        self,
        subject: str,
        state: NodeState,
        *,
        sender: str = "gossip",
        epoch: int = 1,
        counter: int = 0,
        signed_by: str = "",
        accuser: str = "",
    ) -> list[Effect]:
        """Let a rumour come by datagram; a leave with the subject's proof unless told otherwise."""
        proof = b""
        if state is NodeState.LEFT:
            claim = leave_bytes(public_key(subject), Incarnation(epoch, counter))
            proof = signature(public_key(signed_by or subject), claim)
        raw = pack_id(node_id_of(public_key(subject)))
        origin = pack_id(node_id_of(public_key(accuser))) if accuser else b""
        rumour = Rumour(raw, epoch, counter, STATE_CODES.index(state), origin, proof)
        return self.datagram(sender, Gossip((rumour,)))

    def state(self, name: str) -> NodeState | None:
        member = self.core.members.get(node_id_of(public_key(name)))
        return None if member is None else member.state


def messages(effects: Iterable[Effect]) -> list[tuple[NodeId, Any]]:
    """Return receiver and decoded message of everything that is sent."""
    return [
        (effect.to, CODEC.decode(effect.payload))
        for effect in effects
        if isinstance(effect, SendDatagram | SendNote)
    ]


def timers(effects: Iterable[Effect], kind: type[Any]) -> list[Any]:
    """Return the timers of a kind that are started."""
    started = (effect.timer for effect in effects if isinstance(effect, StartTimer))
    return [timer for timer in started if isinstance(timer, kind)]


def emits(effects: Iterable[Effect]) -> list[tuple[str, str]]:
    """Return kind and subject of what people are told."""
    return [(effect.kind, effect.subject) for effect in effects if isinstance(effect, Emit)]


class Tools:
    """Functions of this file for tests, which cannot import it."""

    messages = staticmethod(messages)
    timers = staticmethod(timers)
    emits = staticmethod(emits)
    record = staticmethod(build_record)
    records = staticmethod(records_of)
    stage = Stage
    sign = staticmethod(signature)
    encode = staticmethod(CODEC.encode)
    decode = staticmethod(CODEC.decode)

    @staticmethod
    def carried(message: Records) -> tuple[MemberRecord, ...]:
        """Return the records that a message carries."""
        return tuple(read_record(raw)[0] for raw in message.records)

    @staticmethod
    def id(name: str) -> NodeId:
        return node_id_of(public_key(name))

    @staticmethod
    def raw(name: str) -> bytes:
        return pack_id(node_id_of(public_key(name)))

    @staticmethod
    def sorted_names(count: int) -> list[str]:
        """Return names of nodes in the order of their ids."""
        return sorted((f"s{i}" for i in range(count)), key=lambda n: node_id_of(public_key(n)))


@pytest.fixture(scope="session")  # it has no state
def tools() -> type[Tools]:
    return Tools


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def make_world() -> type[World]:
    return World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def make_record() -> Callable[..., MemberRecord]:
    return build_record


@pytest.fixture
def make_core() -> Callable[..., Membership]:
    return build_core
