"""Relays that say that they would and then swallow, lose or alter bytes, with an honest one beside them."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import HandshakeError, LinkLost, MeshError
from meshnode.limits import RELAY_ASK_TIMEOUT_S, RELAY_STAGGER_S
from meshnode.net import relay as relay_module
from meshnode.net import relayed_links
from meshnode.net.clock import RealClock
from meshnode.net.relayed_links import RelayedLinks
from tests.unit.net.conftest import Mute, eventually
from tests.unit.net.test_links import Answer, ask
from tests.unit.net.test_relay import star

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.net.connection import Connection
    from tests.unit.net.conftest import MeshMaker, Node

    Change = Callable[[bytes], bytes | None]

SOON_S = 2.0
"""What is meant by `within a second or two`; on a quiet machine none of it takes half a second."""


class Every:
    """Does something to every so manieth part."""

    def __init__(self, number: int, change: Change) -> None:
        self._number, self._change, self._count = number, change, 0

    def __call__(self, data: bytes) -> bytes | None:
        self._count += 1
        return data if self._count % self._number else self._change(data)


def swallow(_data: bytes) -> None:
    """Pass nothing on."""


def alter(data: bytes) -> bytes:
    """Change the last byte: of a record's authentication tag, or of the handshake."""
    return data[:-1] + bytes([data[-1] ^ 0x55])


@pytest.fixture
def spoil(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Node, Change], None]:
    """Let a node do this to each part that it relays."""
    changes: dict[object, Change] = {}
    real = relay_module._End.part

    def part(end: relay_module._End, meta: bytes, data: memoryview, is_end: bool) -> None:
        change = changes.get(end._pair._relay)
        if change is not None and data.nbytes:
            changed = change(bytes(data))
            if changed is None:
                end.connection.consumed(end.stream, data.nbytes)
                return
            data = memoryview(changed)
        real(end, meta, data, is_end)

    monkeypatch.setattr(relay_module._End, "part", part)
    return lambda node, change: changes.update({node.relay: change})


async def meet(one: Node, two: Node, bad: Node, *others: Node) -> Connection:
    """Link through one of these, of which the bad one is the nearest."""
    for other in others:
        outer = other.hub.connection(two.id)
        assert outer is not None
        assert outer._link is not None
        outer._link._liveness.rtt_s = 0.1
    relays = [relay.id for relay in (bad, *others)]
    return await RelayedLinks(one.hub, RealClock()).connect(two.id, relays)


def faults(one: Node, relay: Node, two: Node) -> int:
    return one.hub.relay_faults.count(relay.id, two.id, RealClock().now())


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def ask_on_and_on(connection: Connection) -> None:
    while True:
        await ask(connection, data=b"ping", limit_s=5)


async def test_a_relay_that_swallows_costs_a_moment_once(
    mesh: MeshMaker, spoil: Callable[[Node, Change], None]
) -> None:
    one, two, (hole, honest) = await star(mesh, "hole", "honest")
    spoil(hole, swallow)
    began = now_s()
    connection = await meet(one, two, hole, honest)
    assert RELAY_STAGGER_S <= now_s() - began < SOON_S
    assert one.hub.relay(two.id) == honest.id
    assert await ask(connection, data=b"ping") == b"ping"
    assert faults(one, hole, two) == 1
    one.hub.close_link(two.id, "test")
    hole.relay.is_willing = False
    await meet(one, two, hole, honest)
    assert hole.relay.refused == 0, "it is not even asked"
    assert one.hub.relay(two.id) == honest.id


@pytest.mark.parametrize("what", ["loses a part", "alters a byte", "calls somebody else"])
async def test_a_hello_that_fails_for_whatever_reason_leads_on_to_the_next_relay(
    mesh: MeshMaker, spoil: Callable[[Node, Change], None], what: str
) -> None:
    one, two, (bad, honest) = await star(mesh, "bad", "honest")
    if what == "loses a part":
        spoil(bad, Every(2, swallow))
    elif what == "alters a byte":
        spoil(bad, Every(2, alter))
    else:
        three = mesh.build("three")
        await three.join(bad)
        real = bad.hub.connection
        bad.hub.connection = lambda peer: real(three.id if peer == two.id else peer)  # type: ignore[method-assign]
        await eventually(lambda: bad.hub.rtt_s(three.id) is not None)
    began = now_s()
    connection = await meet(one, two, bad, honest)
    assert now_s() - began < SOON_S
    assert await ask(connection, data=b"ping") == b"ping"
    assert one.hub.relay(two.id) == honest.id
    assert faults(one, bad, two) == 1


@pytest.mark.parametrize("change", [swallow, Every(20, swallow), Every(20, alter)])
async def test_a_relay_through_which_a_link_failed_is_left_for_the_honest_one(
    mesh: MeshMaker, spoil: Callable[[Node, Change], None], change: Change
) -> None:
    one, two, (bad, honest) = await star(mesh, "bad", "honest")
    connection = await meet(one, two, bad, honest)
    assert one.hub.relay(two.id) == bad.id
    assert faults(one, bad, two) == 0
    spoil(bad, change)
    began = now_s()
    with pytest.raises(LinkLost):
        await ask_on_and_on(connection)
    assert now_s() - began < SOON_S
    assert faults(one, bad, two) == 1
    began = now_s()
    connection = await meet(one, two, bad, honest)
    assert now_s() - began < SOON_S
    assert one.hub.relay(two.id) == honest.id
    for _ in range(100):
        assert await ask(connection, data=b"ping") == b"ping"
    three = mesh.build("three")
    assert faults(one, bad, three) == 1, "it is proven that the relay was to blame"


async def test_a_link_that_was_closed_or_replaced_is_no_fault_of_its_relay(mesh: MeshMaker) -> None:
    one, two, (box, other) = await star(mesh, "box", "other")
    connection = await meet(one, two, box)
    await meet(one, two, other)
    await eventually(lambda: connection.closed, "the former one is parted with")
    two.hub.close_link(one.id, "test")
    await eventually(lambda: two.id not in one.hub.peers())
    for relay in (box, other):
        assert faults(one, relay, two) == faults(two, relay, one) == 0


async def test_both_ends_remember_a_relay_that_died_under_their_link(mesh: MeshMaker) -> None:
    one, two, (box,) = await star(mesh, "box")
    await meet(one, two, box)
    await eventually(lambda: one.id in two.hub.peers())
    await box.hub.close()
    await eventually(lambda: faults(one, box, two) == faults(two, box, one) == 1)


async def test_a_relay_that_failed_is_tried_again_if_there_is_no_other(mesh: MeshMaker) -> None:
    one, two, (box, unwilling) = await star(mesh, "box", "unwilling")
    unwilling.relay.is_willing = False
    one.hub.relay_faults.failed(box.id, two.id, RealClock().now())
    await meet(one, two, box, unwilling)
    assert one.hub.relay(two.id) == box.id


async def test_a_hello_that_is_late_has_its_time_where_there_is_nobody_else(
    mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relayed_links, "RELAY_HELLO_S", 0.01)
    monkeypatch.setattr(relayed_links, "RELAY_HELLO_RTTS", 0.0)
    one, two, (busy,) = await star(mesh, "busy")
    real = relay_module._End.part

    def slow(end: relay_module._End, meta: bytes, data: memoryview, is_end: bool) -> None:
        later = partial(real, end, meta, memoryview(bytes(data)), is_end)
        asyncio.get_running_loop().call_later(0.05, later)

    monkeypatch.setattr(relay_module._End, "part", slow)
    await meet(one, two, busy)
    assert one.hub.relay(two.id) == busy.id
    assert faults(one, busy, two) == 1, "it was late all the same"


async def test_when_no_relay_is_any_good_the_search_ends_and_tells_why(
    mesh: MeshMaker, spoil: Callable[[Node, Change], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.net.outgoing.HANDSHAKE_TIMEOUT_S", 0.5)
    one, two, (hole, liar) = await star(mesh, "hole", "liar")
    spoil(hole, swallow)
    spoil(liar, alter)
    with pytest.raises(MeshError) as failure:
        await meet(one, two, hole, liar)
    assert isinstance(failure.value, HandshakeError | LinkLost)
    assert faults(one, hole, two) == faults(one, liar, two) == 1
    assert two.id not in one.hub.peers()
    await eventually(lambda: not hole.relay.pairs and not liar.relay.pairs)


async def test_a_relay_that_does_not_even_answer_is_not_waited_for_again(
    mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relayed_links, "RELAY_ASK_TIMEOUT_S", RELAY_ASK_TIMEOUT_S / 10)
    one, two, (mute, honest) = await star(mesh, "mute", "honest")
    monkeypatch.setattr(mute.relay, "asked", lambda *_ignored: None)
    with pytest.raises(LinkLost):
        await meet(one, two, mute)
    assert faults(one, mute, two) == 1
    began = now_s()
    await meet(one, two, mute, honest)
    assert now_s() - began < SOON_S
    assert one.hub.relay(two.id) == honest.id


async def test_a_relay_whose_place_has_gone_meanwhile_costs_nothing(
    mesh: MeshMaker, spoil: Callable[[Node, Change], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "RELAY_BEGIN_S", RELAY_STAGGER_S / 5)
    one, two, (hole, honest) = await star(mesh, "hole", "honest")
    spoil(hole, swallow)
    monkeypatch.setattr("meshnode.net.outgoing.HANDSHAKE_TIMEOUT_S", 0.5)
    with pytest.raises(LinkLost, match="you did not begin in time"):
        await meet(one, two, hole, honest)


async def test_requests_that_wait_when_a_link_falls_silent_are_told_at_once(
    mesh: MeshMaker, spoil: Callable[[Node, Change], None]
) -> None:
    one, two, (bad, _) = await star(mesh, "bad", "honest")
    two.user.serve = Mute()
    connection = await meet(one, two, bad)
    spoil(bad, swallow)
    answers = [Answer() for _ in range(3)]
    for answer in answers:
        connection.open(b"?", (), answer)
    for answer in answers:
        with pytest.raises(LinkLost, match="stopped answering"):
            await asyncio.wait_for(answer.done, SOON_S)
    assert faults(one, bad, two) == 1, "a stall counts once, whatever comes of it"
    await eventually(lambda: connection.closed, "it is dead in the end")
    assert faults(one, bad, two) == 1
