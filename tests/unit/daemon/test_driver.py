"""Carrying out effects: in order, durable first, bounded, and told in names."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from meshnode.daemon import driver as driver_module
from meshnode.daemon.credentials import Credentials
from meshnode.daemon.driver import Driver
from meshnode.daemon.surroundings import real_surroundings
from meshnode.datafolder import DataFolder
from meshnode.effects import (
    CloseLink,
    Dial,
    Effect,
    Emit,
    LoadModel,
    Persist,
    SendDatagram,
    SendNote,
    StartTimer,
    UnloadModel,
)
from meshnode.errors import ConfigError, LinkLost, NotServing
from meshnode.events import (
    DatagramReceived,
    DialFailed,
    Event,
    LinkDown,
    LinkUp,
    NoteReceived,
    TimerFired,
)
from meshnode.limits import MAX_EARLY_NOTES, MAX_LOG_LINES
from meshnode.membership.addresses import Kind
from meshnode.net.clock import RealClock
from meshnode.routing.load import LinkState
from meshnode.state.desired import Draft
from meshnode.state.desired_messages import DESIRED, DesiredEntries
from meshnode.trust.datagrams import DatagramSeal
from meshnode.trust.identity import Identity
from meshnode.trust.reasons import Reason, TrustError
from meshnode.trust.twins import TWINS, TwinMet
from meshnode.types import Address, NodeId
from tests.unit.daemon.conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from meshnode.net.connection import Connection
    from meshnode.net.links import LinkHub
    from meshnode.net.udp import DatagramSocket
    from meshnode.node import Node

ENTRIES = DESIRED.encode(DesiredEntries(()))
PEER = NodeId("p" * 32)
WHERE = Address("192.0.2.1", 8471)


class FakeHub:
    """Notes what is asked of the links."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.linked: dict[NodeId, Address] = {}
        self.stalled = False
        self.boots: dict[NodeId, int] = {}

    def boot(self, peer: NodeId) -> int | None:
        return self.boots.get(peer)

    def peers(self) -> tuple[NodeId, ...]:
        return tuple(self.linked)

    def is_stalled(self, peer: NodeId) -> bool:
        return self.stalled

    def relay(self, peer: NodeId) -> NodeId | None:
        return None

    def has_dialled(self, peer: NodeId) -> bool:
        return False

    def remote_address(self, peer: NodeId) -> Address | None:
        return self.linked.get(peer)

    def note(self, *call: Any) -> None:
        self.calls.append(("note", *call))

    def close_link(self, *call: Any, if_idle: bool) -> None:
        self.calls.append(("close_link", *call, if_idle))

    def dial(self, *call: Any) -> None:
        self.calls.append(("dial", *call))

    def tell_health(self) -> None:
        self.calls.append(("tell_health",))


class FakeNode:
    """Answers each event with effects that the test names."""

    me = NodeId("m" * 32)

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.answers: list[Sequence[Effect]] = []
        self.committed: list[Draft] = []
        self.links: list[tuple[NodeId, LinkState, float]] = []
        self.rtts: list[tuple[NodeId, float]] = []
        self.changed_replicas: dict[tuple[NodeId, str], None] = {}
        self.router = SimpleNamespace(
            link_changed=lambda *call, is_relayed=False: self.links.append(call),
            rtt_measured=lambda *call: self.rtts.append(call),
        )
        self.membership = SimpleNamespace(members={}, record=SimpleNamespace(epoch=50))

    def handle(self, event: Event, now: float, wall_s: float) -> Sequence[Effect]:
        self.events.append(event)
        return self.answers.pop(0) if self.answers else ()

    def commit(self, draft: Draft, now: float) -> Sequence[Effect]:
        self.committed.append(draft)
        return [SendNote(PEER, ENTRIES)]

    def knows(self, node: NodeId, name: str, *addresses: Address, boot: int = 0) -> None:
        record = SimpleNamespace(node_id=node, name=name, addresses=addresses, boot=boot)
        self.membership.members[node] = SimpleNamespace(record=record)


class FakeUdp:
    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Address]] = []

    def send(self, data: bytes, to: Address) -> None:
        self.sent.append((data, to))


class Setup:
    """A driver between fakes."""

    def __init__(self, folder: DataFolder) -> None:
        self.folder = folder
        self.credentials = Credentials(folder, RealClock())
        self.credentials.found()
        self.driver = Driver(folder=folder, credentials=self.credentials, clock=RealClock())
        self.hub = FakeHub()
        self.node = FakeNode()
        self.udp = FakeUdp()
        self.models: list[Effect] = []
        self.served: list[tuple[Any, ...]] = []
        self.driver.attach(cast("LinkHub", self.hub), ["192.0.2.9"])

    def begin(self) -> Setup:
        server = SimpleNamespace(
            opened=lambda *call: self.served.append(("opened", *call)),
            cancelled=lambda *call: self.served.append(("cancelled", *call)),
            closed=lambda *call: self.served.append(("closed", *call)),
        )
        self.driver.begin(
            cast("Node", self.node),
            cast("DatagramSocket", self.udp),
            cast("Any", server),
            self.models.append,
        )
        return self

    def fails_to_write(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
        def full(key: str, value: bytes) -> None:
            raise ConfigError("the disk is full")

        monkeypatch.setattr(self.folder, "save_state", full)
        return monkeypatch.undo


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Callable[[], Setup]]:
    folder = DataFolder(tmp_path / "data")
    yield lambda: Setup(folder)
    folder.close()


# Effects


async def test_every_effect_reaches_its_part(setup: Callable[[], Setup]) -> None:
    made = setup().begin()
    made.driver.carry_out(
        [
            SendNote(PEER, b"note"),
            SendNote(PEER, bytes(70_000)),
            CloseLink(PEER, "evicted"),
            Dial((WHERE,), PEER),
            Dial((WHERE,), None),
            Persist("members", b"list"),
            StartTimer("tick", 0.0),
            LoadModel("m", 1, "d", ()),
            UnloadModel("m", 1),
            Emit("member.alive", PEER, "joined"),
        ]
    )
    assert made.hub.calls == [
        ("tell_health",),
        ("note", PEER, b"note"),
        ("close_link", PEER, "evicted", False),
        ("dial", (WHERE,), PEER, frozenset({Kind.ROUTED})),
        ("dial", (WHERE,), None, None),
    ]
    assert made.driver.dropped == {"note_too_large": 1}
    assert made.folder.state("members") == b"list"
    assert made.models == [LoadModel("m", 1, "d", ()), UnloadModel("m", 1)]
    assert made.driver.events == {"member.alive": 1}
    await eventually(lambda: made.node.events == [TimerFired("tick")])
    assert repr(made.driver).startswith("<Driver of ")


async def test_entries_are_kept_back_until_they_are_durable_and_all_else_goes_on(
    setup: Callable[[], Setup], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = setup().begin()
    answer = [
        Persist("desired", b"theirs"),
        SendNote(PEER, ENTRIES),
        SendNote(PEER, b"another core's"),
        StartTimer("tick", 0.0),
        LoadModel("m", 1, "d", ()),
    ]
    with monkeypatch.context() as patch:
        made.fails_to_write(patch)
        made.node.answers = [answer]
        made.driver.handle(TimerFired(1))
    assert made.hub.calls[1:] == [("note", PEER, b"another core's")]
    assert made.driver.dropped == {"not_durable": 1}
    assert made.models == [LoadModel("m", 1, "d", ())]
    assert "the disk is full" in caplog.text
    await eventually(lambda: made.node.events[1:] == [TimerFired("tick")])
    made.driver._persist_again()
    assert made.folder.state("desired") == b"theirs"
    made.driver.carry_out([SendNote(PEER, ENTRIES)])
    assert made.hub.calls[2:] == [("note", PEER, ENTRIES)]


async def test_what_could_not_be_written_is_written_once_there_is_room(
    setup: Callable[[], Setup], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = setup().begin()
    monkeypatch.setattr(driver_module, "PERSIST_RETRY_S", 0.01)
    with monkeypatch.context() as patch:
        made.fails_to_write(patch)
        made.node.answers = [[Persist("desired", b"old")], [Persist("desired", b"new")]]
        made.driver.handle(TimerFired(1))
        made.driver.handle(TimerFired(2))
        await eventually(lambda: "ERROR" in caplog.text and caplog.text.count("disk") > 3)
        patch.undo()
    await eventually(lambda: made.folder.state("desired") == b"new")
    assert made.driver._unsaved == {}


async def test_a_later_write_of_the_same_supersedes_what_waits(
    setup: Callable[[], Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = setup().begin()
    with monkeypatch.context() as patch:
        made.fails_to_write(patch)
        made.driver.carry_out([Persist("desired", b"old")])
    made.driver.carry_out([Persist("desired", b"new")])
    made.driver._persist_again()
    assert made.folder.state("desired") == b"new"


async def test_an_own_change_that_cannot_be_written_never_was(
    setup: Callable[[], Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = setup().begin()
    draft = Draft((), Persist("desired", b"mine"))
    with monkeypatch.context() as patch:
        made.fails_to_write(patch)
        made.driver.carry_out([Persist("desired", b"theirs")])
        with pytest.raises(ConfigError, match="the disk is full"):
            made.driver.write(draft)
    assert made.node.committed == []
    made.driver._persist_again()
    assert made.folder.state("desired") == b"theirs"
    made.driver.write(draft)
    assert made.node.committed == [draft]
    assert made.folder.state("desired") == b"mine"
    assert made.hub.calls[1:] == [("note", PEER, ENTRIES)]


async def test_an_own_change_brings_to_disk_what_waited_to_be_written(
    setup: Callable[[], Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A draft has all that the core holds, so the older value must not follow it."""
    made = setup().begin()
    with monkeypatch.context() as patch:
        made.fails_to_write(patch)
        made.driver.carry_out([Persist("desired", b"theirs")])
    made.driver.write(Draft((), Persist("desired", b"theirs and mine")))
    made.driver._persist_again()
    assert made.folder.state("desired") == b"theirs and mine"


async def test_stopping_writes_what_waits_or_says_what_is_lost(
    setup: Callable[[], Setup], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = setup().begin()
    with monkeypatch.context() as patch:
        made.fails_to_write(patch)
        made.driver.carry_out([Persist("desired", b"theirs"), Persist("members", b"list")])
    save = made.folder.save_state

    def full_again(key: str, value: bytes) -> None:
        if key == "desired":
            raise ConfigError("the disk is full")
        save(key, value)

    with monkeypatch.context() as patch:
        patch.setattr(made.folder, "save_state", full_again)
        made.driver.stop()
    assert made.folder.state("members") == b"list"
    assert (
        "what other nodes changed about deployments and API keys could not be saved" in caplog.text
    )
    assert "the list of members could not" not in caplog.text
    made.driver.stop()
    made.driver._persist_again()
    assert made.folder.state("desired") is None


async def test_a_stopped_driver_does_nothing(setup: Callable[[], Setup]) -> None:
    made = setup().begin()
    made.driver.stop()
    made.driver.handle(TimerFired(1))
    made.driver.dial_heard((WHERE,), PEER)
    assert made.node.events == []
    assert made.hub.calls == [("tell_health",)]


async def test_what_happens_before_the_node_is_there_is_kept_and_notes_are_bounded(
    setup: Callable[[], Setup],
) -> None:
    made = setup()
    made.driver.link_event(LinkUp(PEER, WHERE))
    for index in range(2000):
        made.driver.note_received(PEER, b"%d" % index)
    made.driver.link_event(LinkDown(PEER, "gone"))
    made.driver.link_health(PEER, 0.1, True)
    made.driver.datagram_received(b"x", WHERE)
    made.begin()
    assert made.node.events[0] == LinkUp(PEER, WHERE)
    assert made.node.events[1] == NoteReceived(PEER, b"0")
    assert made.node.events[-1] == LinkDown(PEER, "gone")
    assert len(made.node.events) == 1 + MAX_EARLY_NOTES
    assert made.hub.calls == [("tell_health",)]


# Where others may send this node


@pytest.mark.parametrize(
    ("hosts", "kinds"),
    [
        (["192.0.2.9"], {Kind.ROUTED}),
        (["127.0.0.1"], {Kind.ROUTED, Kind.LOOPBACK}),
        (["localhost"], {Kind.ROUTED, Kind.LOOPBACK}),
        (["fe80::1"], {Kind.ROUTED, Kind.LINK_LOCAL}),
        (["0.0.0.0"], {Kind.ROUTED}),
    ],
)
async def test_addresses_of_others_lead_only_to_where_this_node_listens_itself(
    setup: Callable[[], Setup], hosts: list[str], kinds: set[Kind]
) -> None:
    made = setup().begin()
    made.driver.attach(cast("LinkHub", made.hub), hosts)
    made.driver.dial_heard((WHERE,), PEER)
    assert made.hub.calls[-1] == ("dial", (WHERE,), PEER, frozenset(kinds))
    made.hub.linked[PEER] = WHERE
    made.driver.dial_heard((WHERE,), PEER)
    assert len(made.hub.calls) == 2


# Datagrams


async def test_datagrams_are_sealed_for_their_member_and_opened_from_it(
    setup: Callable[[], Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = setup().begin()
    other = Identity(bytes(range(32)))
    monkeypatch.setattr(
        made.credentials.roster, "public_key", {other.node_id: other.public_key}.get
    )
    made.node.knows(other.node_id, "other", WHERE)
    made.driver.carry_out([SendDatagram(other.node_id, b"early")])
    assert made.driver.dropped == {"peer": 1}  # no link since both started
    theirs = DatagramSeal(other, 2)
    assert theirs.set_peer_boot(made.credentials.node_id, made.credentials.boot)
    made.driver.datagrams.seal.set_peer_boot(other.node_id, 2)
    made.driver.carry_out([SendDatagram(other.node_id, b"hello")])
    data, to = made.udp.sent[0]
    assert to == WHERE
    mine = made.credentials.identity
    assert theirs.open(data, {mine.node_id: mine.public_key}.get)[1] == b"hello"
    answer = theirs.seal(mine.node_id, mine.public_key, b"world")
    made.driver.datagram_received(answer, WHERE)
    assert made.node.events == [DatagramReceived(other.node_id, b"world")]
    made.driver.datagram_received(answer, WHERE)
    made.driver.datagram_received(b"garbage", WHERE)
    assert made.driver.dropped == {"peer": 1, "replayed": 1, "malformed": 1}
    made.driver.carry_out([SendDatagram(other.node_id, bytes(1400))])
    assert made.driver.dropped["too_large"] == 1


async def test_a_member_s_record_is_enough_for_datagrams_and_an_eviction_ends_them(
    setup: Callable[[], Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links are no full mesh: most members are known only by what others pass on."""
    made = setup().begin()
    other = Identity(bytes(range(32)))
    monkeypatch.setattr(
        made.credentials.roster, "public_key", {other.node_id: other.public_key}.get
    )
    made.node.knows(other.node_id, "other", WHERE, boot=2)
    theirs = DatagramSeal(other, 2)
    assert theirs.follow_record(made.credentials.node_id, made.credentials.boot)
    mine = made.credentials.identity
    made.driver.carry_out([Emit("member.suspect", other.node_id, "says nothing of a new record")])
    made.driver.carry_out([SendDatagram(other.node_id, b"early")])
    assert made.udp.sent == []
    made.driver.carry_out([Emit("member.alive", other.node_id, "joined")])
    made.driver.carry_out([SendDatagram(other.node_id, b"hello")])
    data, _ = made.udp.sent[0]
    assert theirs.open(data, {mine.node_id: mine.public_key}.get)[1] == b"hello"
    made.driver.datagram_received(theirs.seal(mine.node_id, mine.public_key, b"world"), WHERE)
    assert made.node.events == [DatagramReceived(other.node_id, b"world")]
    made.driver.carry_out([Emit("member.evicted", other.node_id, "revoked")])
    monkeypatch.setattr(made.credentials.roster, "public_key", lambda _: None)
    made.driver.datagram_received(theirs.seal(mine.node_id, mine.public_key, b"again"), WHERE)
    assert len(made.node.events) == 1
    assert made.driver.dropped["unknown"] == 1


@pytest.mark.parametrize(
    ("advertised", "remote", "to"),
    [
        ([Address("192.0.2.1", 1), Address("192.0.2.2", 2)], None, Address("192.0.2.1", 1)),
        (
            [Address("192.0.2.1", 1), Address("192.0.2.2", 2)],
            Address("192.0.2.2", 55_555),
            Address("192.0.2.2", 2),
        ),
        ([Address("192.0.2.1", 1)], Address("203.0.113.9", 55_555), Address("203.0.113.9", 1)),
        ([Address("node.example", 1), Address("192.0.2.1", 1)], None, Address("192.0.2.1", 1)),
        ([Address("127.0.0.1", 1), Address("169.254.169.254", 1)], None, None),
        ([Address("node.example", 1)], None, None),
        ([], None, None),
    ],
)
async def test_datagrams_go_to_the_signed_address_or_where_the_link_ends(
    setup: Callable[[], Setup],
    advertised: list[Address],
    remote: Address | None,
    to: Address | None,
) -> None:
    made = setup().begin()
    made.node.knows(PEER, "peer", *advertised)
    if remote is not None:
        made.hub.linked[PEER] = remote
    assert made.driver.datagrams._address(PEER, 0.0) == to
    assert made.driver.datagrams._address(NodeId("nobody"), 0.0) is None
    made.driver.carry_out([SendDatagram(PEER, b"x")])
    assert made.driver.dropped == {"no_address": 1}  # not in the roster


# Links


async def test_those_who_follow_the_mesh_hear_of_reports_and_of_changed_replicas_once(
    setup: Callable[[], Setup],
) -> None:
    made = setup().begin()
    heard: list[Any] = []
    made.driver.on_report = lambda emit: heard.append(emit.kind)
    made.driver.on_replicas = heard.append
    made.node.changed_replicas[PEER, "replica/digits/1"] = None
    made.driver.carry_out([Emit("desired.changed", "deployment/digits", "")])
    made.driver.carry_out([])
    assert heard == ["desired.changed", ((PEER, "replica/digits/1"),)]


async def test_routing_hears_of_every_link(setup: Callable[[], Setup]) -> None:
    made = setup().begin()
    made.driver.link_health(PEER, 0.01, True)
    made.driver.link_health(PEER, None, False)  # it is gone: LinkDown tells
    made.hub.linked[PEER] = WHERE
    made.driver.link_health(PEER, None, False)
    made.hub.stalled = True
    made.driver.link_health(PEER, 0.02, False)
    made.driver.link_event(LinkDown(PEER, "gone"))
    made.driver.link_event(DialFailed((WHERE,), PEER, "refused"))
    assert [state for _, state, _ in made.node.links] == [
        LinkState.UP,
        LinkState.GOING_AWAY,
        LinkState.STALLED,
        LinkState.DOWN,
    ]
    assert made.node.rtts == [(PEER, 0.01), (PEER, 0.02)]


async def test_streams_are_refused_until_there_is_something_to_answer_them(
    setup: Callable[[], Setup],
) -> None:
    made = setup()
    refused: list[tuple[int, Exception]] = []
    fake = SimpleNamespace(refuse=lambda *call: refused.append(call))
    connection = cast("Connection", fake)
    made.driver.stream_opened(connection, 1, b"", memoryview(b""))
    made.driver.stream_cancelled(connection, 1)
    made.driver.connection_closed(connection)
    assert refused[0][0] == 1
    assert isinstance(refused[0][1], NotServing)
    made.begin()
    made.driver.stream_opened(connection, 3, b"m", memoryview(b"d"))
    made.driver.stream_cancelled(connection, 3)
    made.driver.connection_closed(connection)
    assert [call[0] for call in made.served] == ["opened", "cancelled", "closed"]


async def test_a_node_that_runs_twice_is_told(
    setup: Callable[[], Setup], caplog: pytest.LogCaptureFixture
) -> None:
    made = setup().begin()
    peer = replace(made.credentials.member)

    def established(boot: int) -> None:
        hello = SimpleNamespace(peer=peer, peer_boot=boot, admitted=None)
        fake = SimpleNamespace(dialler=True, hello=hello)
        made.driver.link_established(cast("Connection", fake))

    for boot in (1, 2, 1):
        established(boot)
    assert "this node runs twice: an earlier start of it is back" in caplog.text
    made.hub.boots[peer.node_id] = 1
    established(1)
    made.hub.boots[peer.node_id] = 2  # the later start has the link: they do not take turns
    for _ in range(100):
        with pytest.raises(LinkLost, match="a later start of the same node is linked"):
            established(1)
    assert caplog.text.count("this node runs twice") == MAX_LOG_LINES
    assert made.driver.mesh_id == made.credentials.mesh_id


async def test_a_copy_of_a_member_that_was_refused_is_reported_here_and_to_the_member(
    setup: Callable[[], Setup], caplog: pytest.LogCaptureFixture
) -> None:
    made = setup().begin()
    made.node.knows(PEER, "beta")
    made.driver.twin_met(PEER, 7, WHERE)
    assert made.hub.calls[-1] == ("note", PEER, TWINS.encode(TwinMet(7)))
    assert "node beta runs twice: a second one, at 192.0.2.1, was refused" in caplog.text
    assert list(made.driver.twins) == [PEER]
    assert made.driver.twin_of_mine == ""
    assert made.driver.events["member.conflict"] == 1


async def test_a_node_that_is_told_of_a_copy_of_itself_says_so(
    setup: Callable[[], Setup], caplog: pytest.LogCaptureFixture
) -> None:
    made = setup().begin()
    own = made.credentials.boot
    for payload in (TWINS.encode(TwinMet(own)), TWINS.encode(TwinMet(own))[:2], b"\x91\x50"):
        made.driver.note_received(PEER, payload)
    assert made.driver.twin_of_mine == ""
    made.driver.note_received(PEER, TWINS.encode(TwinMet(own ^ 1)))
    assert "another process runs with this node's key" in made.driver.twin_of_mine
    assert "this node runs twice" in caplog.text
    made.driver.hello_refused(TrustError(Reason.TWIN, "both answer", by_peer=True))
    assert "this node runs twice: both answer" in caplog.text
    assert made.node.events == []


# What people are told


async def test_log_lines_show_names_and_nothing_that_a_terminal_obeys(
    setup: Callable[[], Setup], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    made = setup().begin()
    other = NodeId("a" * 32)
    made.node.knows(PEER, "beta")
    made.driver.carry_out([Emit("member.dead", PEER, f"told by {other} and {PEER}\x1b[2J")])
    assert f"member.dead beta told by {other} and beta?[2J" in caplog.text


async def test_a_nodes_own_changes_are_no_news_to_its_owner(
    setup: Callable[[], Setup], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    made = setup().begin()
    made.driver.carry_out([Emit("member.updated", made.node.me, "changed its http")])
    assert "changed its http" not in caplog.text
    made.driver.carry_out([Emit("member.updated", PEER, "incarnation 1.2")])
    assert "incarnation 1.2" in caplog.text
    assert made.driver.events["member.updated"] == 2


async def test_a_flood_of_bad_messages_is_counted_and_not_logged(
    setup: Callable[[], Setup], caplog: pytest.LogCaptureFixture
) -> None:
    made = setup().begin()
    for _ in range(1000):
        made.driver.carry_out([Emit("member.dropped", PEER, "nonsense")])
    assert made.driver.events == {"member.dropped": 1000}
    assert len(caplog.records) < 10


async def test_an_epoch_that_outbids_another_process_survives_a_restart(
    setup: Callable[[], Setup], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = setup().begin()
    made.driver.carry_out([Emit("member.conflict", PEER, "two processes")])
    assert made.folder._epoch() == 0
    made.driver.carry_out([Emit("member.conflict", made.node.me, "two processes")])
    assert made.folder._epoch() == 50

    def full(epoch: int) -> None:
        raise ConfigError("the disk is full")

    monkeypatch.setattr(made.folder, "keep_epoch", full)
    made.driver.carry_out([Emit("member.conflict", made.node.me, "two processes")])
    assert "the disk is full" in caplog.text


def test_chance_differs_at_each_start() -> None:
    here = real_surroundings()
    assert here.rng().random() != here.rng().random()


async def test_the_loop_of_a_driver_is_the_running_one(setup: Callable[[], Setup]) -> None:
    assert setup().driver._loop is asyncio.get_running_loop()
