"""The real world's driver of `meshnode.node.Node`: events in, effects carried out.

It owns the sockets and the clock's timers. Everything that happens on a link, in a datagram or when
a timer is due becomes an event; what the node answers is done here, in order.

What cannot be written to disk:

- A change that this node makes itself (`write`: a deployment, an API key) is written before the cores
  hear of it. If that fails, whoever asked gets the error and there is no trace of the change.
- What the cores keep of others (`Persist`) is tried again until it is written or something newer is,
  and once more at the end. Meanwhile this node acts by it, and passes on none of the desired
  state's entries: each is durable at its author, and others get it from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import Counter
from typing import TYPE_CHECKING

from meshnode.daemon.datagrams import Datagrams
from meshnode.daemon.twin_reports import TWIN_MET, TwinReports
from meshnode.effects import (
    CloseLink,
    Dial,
    Effect,
    Emit,
    LoadModel,
    OfferModel,
    Persist,
    SendDatagram,
    SendNote,
    StartTimer,
    UnloadModel,
)
from meshnode.errors import ConfigError, LinkLost, MeshError, NotServing, ProtocolError
from meshnode.events import DatagramReceived, Event, LinkDown, LinkUp, NoteReceived, TimerFired
from meshnode.limits import MAX_EARLY_NOTES, MAX_META_BYTES, PATH_CHECK_S
from meshnode.membership.addresses import Kind, kind_of
from meshnode.net.log_budget import LogBudget
from meshnode.routing.load import LinkState
from meshnode.state.api_keys import is_api_key
from meshnode.state.desired import PERSIST_KEY as DESIRED_KEY
from meshnode.state.desired_messages import DESIRED, DesiredEntries
from meshnode.state.statements import REVOCATION
from meshnode.trust.reasons import Reason, TrustError
from meshnode.trust.twins import TWINS, TwinMet
from meshnode.types import Address, NodeId
from meshnode.wire.codec import message_type
from meshnode.wire.messages import KNOCKS, TOKEN_BYTES, Knock

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    from meshnode.clock import Clock
    from meshnode.daemon.credentials import Credentials
    from meshnode.daemon.relaying import Relaying
    from meshnode.daemon.serving import PeerServer
    from meshnode.datafolder import DataFolder
    from meshnode.net.connection import Connection
    from meshnode.net.links import LinkHub
    from meshnode.net.udp import DatagramSocket
    from meshnode.node import Node
    from meshnode.state.desired import Draft

log = logging.getLogger(__name__)

PERSIST_RETRY_S = 5.0
"""How often something is tried to be written that could not be."""

_STATE_NAMES = {
    DESIRED_KEY: "what other nodes changed about deployments and API keys",
    "members": "the list of members",
}
"""Words for what cores persist. Other nodes have all of it, and tell it at the next start."""

_ENTRIES = message_type(DESIRED.encode(DesiredEntries(())))
_KNOCK = message_type(KNOCKS.encode(Knock(bytes(TOKEN_BYTES))))

_NODE_ID = re.compile(r"\b[a-z2-7]{32}\b")

_NEW_RECORD = frozenset({"member.alive", "member.updated", "member.refuted", "member.conflict"})
"""Events after which a member's record is another one than before."""

ModelEffect = LoadModel | UnloadModel | OfferModel


class Driver:
    """Carries out a node's effects, and turns what happens into its events.

    Attributes:
        node: The cores; None until the node is a member of a mesh.
        peer_server: What answers peers; None as long.
        relaying: Links through other nodes; None as long.
        on_api_key: Called after an API key was made, revoked or dropped, here or elsewhere.
        on_evicted: Called with why when this node is no member any more.
        on_report: Called with everything that the cores report.
        on_replicas: Called with the replicas that changed: their nodes, and their keys in the nodes' states.
        on_revocation: Called after it was stated that a key is out, here or elsewhere.
        on_knock: Called with the sender and the payload of a checkup's datagram.
        dropped: Datagrams and notes that were not accepted or could not be sent, by reason.
        events: What the cores reported, by kind.
        datagrams: Seals, opens and addresses them, and counts those of members.
        notes_sent: Notes by the number of their message's type.
        notes_received: Likewise.
    """

    def __init__(
        self,
        *,
        folder: DataFolder,
        credentials: Credentials,
        clock: Clock,
        reported: Callable[[Emit], None] = lambda _emit: None,
    ) -> None:
        """Begin without links and without a node; `reported` is told of what the cores report."""
        self._folder = folder
        self._credentials = credentials
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._log = LogBudget(log, clock)
        self._reported = reported
        self._hub: LinkHub | None = None
        self._early: list[Event] = []
        self._stopped = False
        self._unsaved: dict[str, bytes] = {}
        self._retries = False  # whether a timer for `_persist_again` runs
        self._on_model: Callable[[ModelEffect], None] | None = None
        self._kinds = frozenset({Kind.ROUTED})
        self.on_api_key: Callable[[], None] = lambda: None
        self.on_evicted: Callable[[str], None] = lambda _why: None
        self.on_report: Callable[[Emit], None] = lambda _emit: None
        self.on_replicas: Callable[[Sequence[tuple[NodeId, str]]], None] = lambda _changed: None
        self.on_revocation: Callable[[], None] = lambda: None
        self.on_knock: Callable[[NodeId, bytes], None] = lambda _sender, _payload: None
        self.peer_server: PeerServer | None = None
        self.relaying: Relaying | None = None
        self.node: Node | None = None
        self.dropped: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self._twins = TwinReports(credentials, clock, self.events, self._named)
        self.datagrams = Datagrams(credentials, clock, self.dropped)
        self.notes_sent: Counter[int] = Counter()
        self.notes_received: Counter[int] = Counter()

    def __repr__(self) -> str:
        return f"<Driver of {self.node!r}>"

    @property
    def hub(self) -> LinkHub:
        """The links of this node."""
        assert self._hub is not None
        return self._hub

    @property
    def twins(self) -> Mapping[NodeId, float]:
        """Nodes whose key was seen to run twice, with the time (monotonic seconds) of the last sign."""
        return self._twins.seen

    @property
    def twin_of_mine(self) -> str:
        """A sentence if this node's own key was seen to run elsewhere lately, or an empty text."""
        return self._twins.about_me

    def attach(self, hub: LinkHub, hosts: Iterable[str]) -> None:
        """Take the hub, before it accepts or dials.

        Args:
            hub: The links.
            hosts: Where peers reach this node. Loopback and link-local addresses of others are
                dialled only if it listens there itself: a peer elsewhere must not make it talk to
                its own machine or to a cloud's metadata service.
        """
        self._hub = hub
        self.reached_at(hosts)

    def reached_at(self, hosts: Iterable[str]) -> None:
        """Take note of where peers reach this node, at first and whenever that has changed."""
        hosts = tuple(hosts)
        self._kinds = frozenset({Kind.ROUTED, *map(kind_of, hosts)} - {Kind.NOWHERE})
        self.datagrams.attach(self.hub, self._kinds, hosts)

    def begin(
        self,
        node: Node,
        udp: DatagramSocket,
        peer_server: PeerServer,
        on_model: Callable[[ModelEffect], None],
    ) -> None:
        """Take the node, and hand it what happened on links before it was there."""
        self.node = node
        self.peer_server = peer_server
        self._on_model = on_model
        early, self._early = self._early, []
        for event in early:
            self.handle(event)
        self.hub.tell_health()
        self.datagrams.begin(udp, node.membership.members)
        self._loop.call_later(PATH_CHECK_S, self._keep_paths)

    @property
    def mesh_id(self) -> str | None:
        """The mesh that this node is a member of."""
        return self._credentials.mesh_id

    @property
    def kinds(self) -> frozenset[Kind]:
        """Where addresses may lead that other nodes claim."""
        return self._kinds

    def addresses_of(self, node: NodeId) -> tuple[Address, ...]:
        """Return the addresses of a member's signed record; none if it is not known."""
        member = None if self.node is None else self.node.membership.members.get(node)
        return () if member is None else tuple(Address(*each) for each in member.record.addresses)

    def dial_heard(self, addresses: tuple[Address, ...], node: NodeId) -> None:
        """Dial a node of the mesh that announced itself on the local network."""
        if not self._stopped and node not in self.hub.peers():
            self.hub.dial(addresses, node, self._kinds)

    def linked(self, node: NodeId) -> Connection | None:
        """Return the link to a node if something can be asked on it."""
        return self.hub.connection(node)

    async def link(self, node: NodeId) -> Connection | None:
        """Make a link to a member, at the addresses of its record or through a relay; None if that fails."""
        member = None if self.node is None else self.node.membership.members.get(node)
        if self._stopped or member is None:
            return None
        addresses = tuple(Address(*each) for each in member.record.addresses)
        with contextlib.suppress(MeshError):
            if self.relaying is not None:
                return await self.relaying.link(node, addresses)
            return await self.hub.connect(addresses, node, self._kinds)
        return None

    def rtt_s(self, node: NodeId) -> float | None:
        """Return the round trip of the link to a node, if there is one that was measured."""
        return self.hub.rtt_s(node)

    def relay(self, node: NodeId) -> NodeId | None:
        """Return the node through which the link to a node goes; None if it is direct, or there is none."""
        return self.hub.relay(node)

    def stop(self) -> None:
        """Carry out nothing more and ignore timers; write what could not be written, if it can be."""
        if self._stopped:
            return
        self._stopped = True
        for key, value in self._unsaved.items():
            try:
                self._folder.save_state(key, value)
            except ConfigError as error:
                what = _STATE_NAMES.get(key, key)
                log.error("%s could not be saved before the end: %s", what, error)
        self._unsaved.clear()

    def handle(self, event: Event) -> None:
        """Tell the node; do what it asks."""
        if self._stopped:
            return
        if self.node is None:
            if not isinstance(event, NoteReceived) or len(self._early) < MAX_EARLY_NOTES:
                self._early.append(event)
            return
        effects = self.node.handle(event, self._clock.now(), self._clock.wall_s())
        try:
            self.carry_out(effects)
        except MeshError as error:
            self._log.write(logging.ERROR, "effects", f"not everything could be done: {error}")

    def write(self, draft: Draft) -> None:
        """Make a change of this node durable, then let it count and tell the mesh.

        Raises:
            ConfigError: if it could not be written to disk; nothing has changed then.
        """
        assert self.node is not None
        if draft.persist is not None:
            self._folder.save_state(draft.persist.key, draft.persist.value)
            self._unsaved.pop(draft.persist.key, None)  # the draft has it too
        self.carry_out(self.node.commit(draft, self._clock.now()))

    def carry_out(self, effects: Sequence[Effect]) -> None:
        """Do what a core asked for, in order; what cannot be written is tried again later."""
        for effect in effects:
            self._carry_out(effect)
        if self.node is not None and self.node.changed_replicas:
            changed = tuple(self.node.changed_replicas)
            self.node.changed_replicas.clear()
            self.on_replicas(changed)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case SendDatagram(to, payload):
                self.datagrams.send(to, payload)
            case SendNote(to, payload):
                self._send_note(to, payload)
            case StartTimer(timer, delay_s):
                self._loop.call_later(delay_s, self._timer_due, timer)
            case Dial(addresses, expect):
                # A seed is what this node's owner named; all else is a claim of other nodes.
                self.hub.dial(addresses, expect, None if expect is None else self._kinds)
            case CloseLink(to, reason, only_if_idle):
                self.hub.close_link(to, reason, if_idle=only_if_idle)
            case Persist(key, value):
                self._persist(key, value)
            case LoadModel() | UnloadModel() | OfferModel():
                assert self._on_model is not None
                self._on_model(effect)
            case Emit():
                self._emitted(effect)

    def datagram_received(self, data: bytes, source: Address) -> None:
        """Open a datagram; one that is not a member's is dropped without an answer."""
        if self.node is None or self._stopped:
            return
        opened = self.datagrams.receive(data, source)
        if opened is None:
            return
        sender, payload = opened
        if _note_type(payload) == _KNOCK:
            self.on_knock(sender, payload)
        else:
            self.handle(DatagramReceived(sender, payload))

    # LinkUser

    def link_event(self, event: Event) -> None:
        """A link came up or went down, or a dial failed."""
        if isinstance(event, LinkDown) and self.node is not None:
            self.node.router.link_changed(event.peer, LinkState.DOWN, self._clock.now())
            self.datagrams.link_down(event.peer)
        self.handle(event)
        if isinstance(event, LinkUp):
            self.datagrams.link_up(event.peer)
        if self.relaying is not None:
            self.relaying.link_event(event)

    def link_established(self, connection: Connection) -> None:
        """A hello succeeded: the peer is a member, and its datagrams can be opened."""
        assert connection.hello is not None
        hello = connection.hello
        if connection.dialler and hello.admitted is not None:
            self._credentials.admitted(hello.admitted)
        self._credentials.authority.learn(hello.peer)
        peer = hello.peer.node_id
        if self.datagrams.seal.set_peer_boot(peer, hello.peer_boot):
            return
        self._twins.report(peer, "an earlier start of it is back")
        if self.hub.boot(peer) not in (None, hello.peer_boot):
            # Both would take each other's place for ever; the earlier may come when the later is gone.
            raise LinkLost("a later start of the same node is linked; does it run twice?")

    def twin_met(self, peer: NodeId, boot: int, remote: Address) -> None:
        """Report a copy of a member that was refused, and tell the member itself."""
        self._twins.report(peer, f"a second one, at {remote.host}, was refused")
        self.hub.note(peer, TWINS.encode(TwinMet(boot)))

    def hello_refused(self, error: TrustError) -> None:
        """Heed what concerns this node itself: its key runs elsewhere too, or it was evicted.

        The latter not on anybody's word: what was shown for it are statements of the mesh's admins, which
        are checked like all others.
        """
        if error.reason is Reason.TWIN:
            self._twins.refused(str(error))
        elif (
            _note_type(error.evidence) == _ENTRIES
        ):  # anybody may have sent it: nothing else is heard
            self.handle(NoteReceived(self._credentials.node_id, error.evidence))

    def link_health(self, peer: NodeId, rtt_s: float | None, usable: bool) -> None:
        """Tell routing about a link's state and round trip."""
        if self.node is None:
            return
        router = self.node.router
        if usable:
            is_relayed = self.hub.relay(peer) is not None
            router.link_changed(peer, LinkState.UP, self._clock.now(), is_relayed=is_relayed)
        elif peer in self.hub.peers():
            stalled = self.hub.is_stalled(peer)
            state = LinkState.STALLED if stalled else LinkState.GOING_AWAY
            router.link_changed(peer, state, self._clock.now())
        if rtt_s is not None:
            router.rtt_measured(peer, rtt_s)
        if not usable and self.relaying is not None:
            self.relaying.look_soon()

    def note_received(self, peer: NodeId, payload: bytes) -> None:
        """A one-way message for the cores."""
        number = _note_type(payload)
        self.notes_received[number] += 1
        if number == TWIN_MET:
            self._twins.told(peer, payload)
        else:
            self.handle(NoteReceived(peer, payload))

    def stream_opened(
        self, connection: Connection, stream: int, meta: bytes, data: memoryview
    ) -> None:
        """A peer asks something."""
        if self.peer_server is None:
            connection.refuse(stream, NotServing("this node is still starting"))
        else:
            self.peer_server.opened(connection, stream, meta, data)

    def conversation_opened(self, connection: Connection, stream: int, meta: bytes) -> None:
        """A peer wants to talk: relays do, and who is relayed."""
        if self.relaying is None:
            raise NotServing("this node is still starting")
        self.relaying.conversation_opened(connection, stream, meta)

    def stream_cancelled(self, connection: Connection, stream: int) -> None:
        """A peer does not want its answer any more."""
        if self.peer_server is not None:
            self.peer_server.cancelled(connection, stream)

    def connection_closed(self, connection: Connection) -> None:
        """Nobody waits for answers on this connection any more."""
        if self.peer_server is not None:
            self.peer_server.closed(connection)

    # Inside

    def _keep_paths(self) -> None:
        if not self._stopped:
            self.datagrams.keep_paths()
            self._loop.call_later(PATH_CHECK_S, self._keep_paths)

    def _timer_due(self, timer: Hashable) -> None:
        self.handle(TimerFired(timer))

    def _send_note(self, to: NodeId, payload: bytes) -> None:
        number = _note_type(payload)
        if len(payload) > MAX_META_BYTES:
            self.dropped["note_too_large"] += 1
        elif number == _ENTRIES and DESIRED_KEY in self._unsaved:
            self.dropped["not_durable"] += 1
        else:
            self.hub.note(to, payload)
            self.notes_sent[number] += 1

    def _persist(self, key: str, value: bytes) -> None:
        try:
            self._folder.save_state(key, value)
        except ConfigError as error:
            self._log.write(logging.ERROR, "disk", str(error))
            if not self._retries:
                self._retries = True
                self._loop.call_later(PERSIST_RETRY_S, self._persist_again)
            self._unsaved[key] = value
            return
        self._unsaved.pop(key, None)

    def _persist_again(self) -> None:
        self._retries = False
        if self._stopped:
            return
        for key, value in tuple(self._unsaved.items()):
            try:
                self._folder.save_state(key, value)
            except ConfigError as error:
                self._log.write(logging.ERROR, "disk", str(error))
                self._retries = True
                self._loop.call_later(PERSIST_RETRY_S, self._persist_again)
                return
            del self._unsaved[key]

    def _emitted(self, emit: Emit) -> None:
        self.events[emit.kind] += 1
        self._reported(emit)
        self.on_report(emit)
        about_strangers = emit.kind.endswith(
            ("refused", "overtaken", "dropped", "conflict", "overwritten")
        )
        level = logging.WARNING if about_strangers else logging.INFO
        assert self.node is not None
        is_own_change = emit.kind == "member.updated" and emit.subject == self.node.me
        if is_own_change:
            return  # its owner knows
        text = f"{emit.kind} {self._named(emit.subject)} {self._named(emit.detail)}".rstrip()
        if about_strangers:
            self._log.write(level, emit.kind, text)
        else:
            log.log(level, "%s", text)
        self._follow_member(emit)
        if emit.kind == "member.conflict":
            self._twins.note(NodeId(emit.subject))
        if emit.kind == "member.conflict" and emit.subject == self.node.me:
            self._keep_epoch(self.node)
        if emit.kind == "desired.changed" and is_api_key(emit.subject):
            self.on_api_key()
        if emit.kind == "desired.changed" and emit.subject.startswith(REVOCATION):
            self.on_revocation()
        if emit.kind == "trust.evicted":
            self.on_evicted(self._named(emit.detail))

    def _follow_member(self, emit: Emit) -> None:
        """Let datagrams follow what membership and trust have learnt about a member."""
        assert self.node is not None
        subject = NodeId(emit.subject)
        if emit.kind in _NEW_RECORD and subject != self.node.me:
            member = self.node.membership.members.get(subject)
            if member is not None:
                self.datagrams.learn(member.record)
        elif emit.kind in ("member.dead", "member.left", "member.evicted"):
            self.datagrams.gone(subject)

    def _keep_epoch(self, node: Node) -> None:
        """Remember an epoch that outbids another process's: the next start must exceed it."""
        try:
            self._folder.keep_epoch(node.membership.record.epoch)
        except ConfigError as error:
            self._log.write(logging.ERROR, "disk", str(error))

    def _named(self, text: str) -> str:
        """Put names where NodeIds are, as far as they are known; safe to show in a terminal."""
        members = {} if self.node is None else self.node.membership.members

        def name(match: re.Match[str]) -> str:
            member = members.get(NodeId(match[0]))
            return member.record.name if member else match[0]

        named = _NODE_ID.sub(name, text)
        return "".join(character if character.isprintable() else "?" for character in named)


def _note_type(payload: bytes) -> int:
    """Return the type number of a note, 0 if it has none; at most 256 of them differ."""
    try:
        return message_type(payload)
    except ProtocolError:
        return 0
