"""Checkups between two nodes: what an attacker among the members may make of them, and what it may not."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from meshnode.daemon import checkup
from meshnode.daemon.checkup import Checkups
from meshnode.errors import DeadlineExceeded, LinkLost, MeshError, NotServing, Saturated
from meshnode.limits import CHECKUP_KNOCKS, MAX_CHECKUPS, MAX_MEMBER_ADDRESSES
from meshnode.observations import Outcome, Trial
from meshnode.trust.reasons import Reason
from meshnode.types import Address, NodeId
from meshnode.wire.messages import (
    KNOCKS,
    STREAMS,
    TOKEN_BYTES,
    BlobChunk,
    Checkup,
    CheckupAnswer,
    Failure,
    Knock,
    Reached,
)
from tests.unit.daemon.conftest import eventually

if TYPE_CHECKING:
    from meshnode.net.link_owner import StreamHandler

PEER = NodeId("p" * 32)
OTHER = NodeId("q" * 32)
TOKEN = b"t" * TOKEN_BYTES
WALL_S = 1_800_000_000.0
NO_DATA = memoryview(b"")
ANSWER = CheckupAnswer(WALL_S, "1.0", (1, 1), "192.0.2.7:1", 3)


class Clock:
    def __init__(self) -> None:
        self.at = 100.0

    def now(self) -> float:
        return self.at

    def wall_s(self) -> float:
        return WALL_S


class FakeConnection:
    """Keeps what is opened and replied."""

    def __init__(self, peer: NodeId = PEER) -> None:
        self.hello = SimpleNamespace(peer=SimpleNamespace(node_id=peer))
        self.remote = Address("192.0.2.7", 1)
        self.rtt_s = 0.2
        self.opened: list[tuple[Any, StreamHandler]] = []
        self.replies: list[Any] = []
        self.cancelled: list[int] = []

    def open(self, meta: bytes, data: object, handler: StreamHandler) -> int:
        self.opened.append((STREAMS.decode(meta), handler))
        return len(self.opened)

    def cancel(self, stream: int) -> None:
        self.cancelled.append(stream)

    def reply(self, stream: int, meta: bytes, data: object = (), *, end: bool) -> None:
        assert end
        self.replies.append(STREAMS.decode(meta))


class FakeDriver:
    """One peer with a link; its datagrams are counted."""

    def __init__(self) -> None:
        self.connection: FakeConnection | None = FakeConnection()
        self.hub = SimpleNamespace(connection=lambda _: self.connection)
        self.sent: Counter[NodeId] = Counter()
        self.datagrams = SimpleNamespace(send=self._send)
        self.kinds: frozenset[Any] = frozenset()
        self.on_knock: Any = None
        self.dropped: Counter[str] = Counter()

    def _send(self, to: NodeId, payload: bytes) -> None:
        assert isinstance(KNOCKS.decode(payload), Knock)
        self.sent[to] += 1

    def addresses_of(self, node: NodeId) -> tuple[Address, ...]:
        return (Address("203.0.113.9", 8471),) if node == PEER else ()


class Rig:
    """Checkups of one node."""

    def __init__(self) -> None:
        self.driver, self.clock = FakeDriver(), Clock()
        credentials = SimpleNamespace(identity=None, member=None, boot=1, random_bytes=os.urandom)
        self.checkups = Checkups(
            cast("Any", self.driver), cast("Any", credentials), cast("Any", self.clock)
        )

    async def asked(self) -> tuple[asyncio.Task[Any], Checkup, StreamHandler]:
        connection = self.driver.connection
        assert connection is not None
        asking = asyncio.ensure_future(self.checkups.ask(PEER))
        await eventually(lambda: connection.opened)
        return (asking, *connection.opened[0])


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(checkup, "CHECKUP_KNOCK_INTERVAL_S", 0.005)
    monkeypatch.setattr(checkup, "CHECKUP_WAIT_S", 0.05)
    monkeypatch.setattr(checkup, "CHECKUP_LAST_S", 0.05)
    monkeypatch.setattr(checkup, "CHECKUP_TIMEOUT_S", 0.2)
    return Rig()


async def test_datagrams_of_this_checkup_from_this_peer_count_and_no_others(rig: Rig) -> None:
    asking, question, handler = await rig.asked()
    knock = KNOCKS.encode(Knock(question.token))
    rig.driver.on_knock(OTHER, knock)
    rig.driver.on_knock(PEER, KNOCKS.encode(Knock(TOKEN)))
    rig.driver.on_knock(PEER, knock[:-1])
    rig.driver.on_knock(PEER, STREAMS.encode(Checkup(TOKEN)))
    rig.driver.on_knock(PEER, knock)
    rig.driver.on_knock(PEER, knock)
    handler.part(STREAMS.encode(ANSWER), NO_DATA, True)
    seen = await asking
    assert seen.datagrams.arrived_here == 2
    assert (seen.datagrams.arrived_there, seen.datagrams.sent) == (3, CHECKUP_KNOCKS)
    rig.driver.on_knock(PEER, knock)  # it is over: nobody waits for it
    assert rig.driver.dropped == {"knock": 5}
    assert repr(rig.checkups) == "<Checkups: 0 answered, 0 expect datagrams>"


async def test_the_clocks_are_compared_at_the_time_of_the_question(rig: Rig) -> None:
    asking, _, handler = await rig.asked()
    late = CheckupAnswer(WALL_S + 600.1, "1.0", (1, 1), "192.0.2.7:1", 0)
    handler.part(STREAMS.encode(late), NO_DATA, True)
    assert (await asking).ahead_s == pytest.approx(600)  # half a round trip is its way


async def test_what_a_peer_says_is_cut_and_made_printable(rig: Rig) -> None:
    asking, _, handler = await rig.asked()
    reached = [Reached("a\x1b[2J" * 100, "closed", "x" * 1000), Reached("b", "no such outcome")]
    lies = CheckupAnswer(WALL_S, "\x07" * 1000, (1, 1), "y" * 1000, -5, tuple(reached * 50))
    handler.part(STREAMS.encode(lies), NO_DATA, True)
    seen = await asking
    assert seen.datagrams.arrived_there == 0
    assert len(seen.reached) <= MAX_MEMBER_ADDRESSES
    assert {each.outcome for each in seen.reached} == {Outcome.CLOSED}
    for text in (seen.version, seen.seen_at, seen.reached[0].address, seen.reached[0].reason):
        assert text.isprintable()
        assert len(text) <= 100


@pytest.mark.parametrize(
    ("meta", "error"),
    [
        (STREAMS.encode(Failure("not_serving", "not now")), NotServing),
        (STREAMS.encode(BlobChunk(0, 0)), MeshError),
        (b"\x00", MeshError),
    ],
)
async def test_another_answer_than_a_checkups_is_an_error(
    rig: Rig, meta: bytes, error: type[MeshError]
) -> None:
    asking, _, handler = await rig.asked()
    handler.part(meta, NO_DATA, True)
    handler.part(STREAMS.encode(ANSWER), NO_DATA, True)  # too late
    with pytest.raises(error):
        await asking


async def test_a_peer_that_says_nothing_is_waited_for_only_so_long(rig: Rig) -> None:
    connection = rig.driver.connection
    assert connection is not None
    with pytest.raises(DeadlineExceeded):
        await rig.checkups.ask(PEER)
    assert connection.cancelled == [1]
    assert rig.driver.sent[PEER] == CHECKUP_KNOCKS
    rig.driver.connection = None
    with pytest.raises(LinkLost):
        await rig.checkups.ask(PEER)


async def test_only_the_addresses_of_the_askers_own_record_are_dialled(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled: list[Address] = []

    async def tried(addresses: Any, *_: object) -> tuple[Any, ...]:
        dialled.extend(addresses)
        return (Trial("203.0.113.9:8471", Outcome.REFUSED, Reason.TWIN),)

    monkeypatch.setattr(checkup, "try_addresses", tried)
    connection = FakeConnection()
    await rig.checkups.answer(cast("Any", connection), 1, Checkup(TOKEN))
    assert dialled == [Address("203.0.113.9", 8471)]
    (answer,) = connection.replies
    assert answer.reached == (Reached("203.0.113.9:8471", "refused", "twin"),)
    assert (answer.wall_s, answer.knocks, answer.seen_at) == (WALL_S, 0, "192.0.2.7:1")
    assert rig.driver.sent == {PEER: CHECKUP_KNOCKS}


async def test_a_node_that_asks_again_and_again_is_told_to_wait(rig: Rig) -> None:
    connection = FakeConnection(OTHER)
    for pause_s, is_taken in ((0.0, True), (0.5, False), (2.0, True)):
        rig.clock.at += pause_s
        answering = rig.checkups.answer(cast("Any", connection), 1, Checkup(TOKEN))
        if is_taken:
            await answering
        else:
            with pytest.raises(Saturated):
                await answering
    assert len(connection.replies) == 2
    assert rig.checkups.outcomes == {"ok": 2, "saturated": 1}


async def test_so_many_checkups_are_answered_at_once_and_no_more(rig: Rig) -> None:
    askers = [FakeConnection(NodeId(letter * 32)) for letter in "abcdefgh"]
    done = await asyncio.gather(
        *(rig.checkups.answer(cast("Any", each), 1, Checkup(TOKEN)) for each in askers),
        return_exceptions=True,
    )
    assert sum(each is None for each in done) == MAX_CHECKUPS
    assert all(isinstance(each, Saturated) for each in done if each is not None)
