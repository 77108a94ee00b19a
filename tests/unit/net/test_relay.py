"""Links through a relay: three and more nodes in one process, over real sockets, on both event loops."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import HandshakeError, LinkLost, MeshError
from meshnode.limits import MAX_RELAYED_LINKS_PER_NODE, MIB
from meshnode.net import relay as relay_module
from meshnode.net import relayed_links
from meshnode.net.clock import RealClock
from meshnode.net.relay_budget import RelayBudget
from meshnode.net.relayed_links import RelayedLinks
from meshnode.wire.relaying import RELAYING, BeginRelay
from tests.unit.net.conftest import FAST, Mute, eventually
from tests.unit.net.test_links import Answer, ask

if TYPE_CHECKING:
    from meshnode.net.connection import Connection
    from tests.unit.net.conftest import MeshMaker, Node


async def star(mesh: MeshMaker, *relays: str) -> tuple[Node, Node, list[Node]]:
    """Two nodes that nobody can dial, each with links to some that it dialled."""
    one, two = mesh.build("one", config=FAST), mesh.build("two", config=FAST)
    middle = [await mesh.start(name, config=FAST) for name in relays]
    for relay in middle:
        await one.join(relay)
        await two.join(relay)
        for end in (one, two):
            await eventually(partial(measured, relay, end))
            await eventually(partial(measured, end, relay))
    return one, two, middle


def measured(one: Node, other: Node) -> bool:
    return one.hub.rtt_s(other.id) is not None


async def meet(one: Node, two: Node, *relays: Node) -> Connection:
    return await RelayedLinks(one.hub, RealClock()).connect(two.id, [relay.id for relay in relays])


async def test_two_nodes_that_cannot_dial_each_other_meet_through_a_third(mesh: MeshMaker) -> None:
    one, two, (box,) = await star(mesh, "box")
    connection = await meet(one, two, box)
    assert connection.hello is not None
    assert connection.hello.peer.node_id == two.id
    assert await ask(connection, data=b"ping") == b"ping"
    await eventually(lambda: one.id in two.hub.peers())
    back = two.hub.connection(one.id)
    assert back is not None
    assert await ask(back, data=b"pong") == b"pong"
    assert one.hub.relay(two.id) == two.hub.relay(one.id) == box.id
    assert one.hub.relay(box.id) is None
    assert one.user.ups() == [box.id, two.id]
    assert two.user.ups() == [box.id, one.id]
    assert box.relay.pairs == ((one.id, two.id),)


async def test_a_large_answer_comes_whole_through_a_relay_and_is_counted_there(
    mesh: MeshMaker,
) -> None:
    one, two, (box,) = await star(mesh, "box")
    connection = await meet(one, two, box)
    data = bytes(range(256)) * (6 * MIB // 256)  # several windows
    assert await ask(connection, data=data, limit_s=20) == data
    assert box.relay.budget.bytes > 2 * len(data)


async def test_what_the_relay_passes_on_is_not_what_was_said(
    mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[bytes] = []
    real = relay_module._End.part

    def watched(end: relay_module._End, meta: bytes, data: memoryview, is_end: bool) -> None:
        passed.append(bytes(data))
        real(end, meta, data, is_end)

    monkeypatch.setattr(relay_module._End, "part", watched)
    one, two, (box,) = await star(mesh, "box")
    connection = await meet(one, two, box)
    secret = b"a sentence that nobody between the two may read" * 8
    assert await ask(connection, data=secret) == secret
    assert passed
    assert not any(secret[:20] in piece for piece in passed)
    assert not any(one.id.encode() in piece for piece in passed)


async def test_a_relay_that_calls_another_node_than_was_asked_for_is_found_out(
    mesh: MeshMaker,
) -> None:
    one, two, (box,) = await star(mesh, "box")
    three = mesh.build("three", config=FAST)
    await three.join(box)
    real = box.hub.connection
    box.hub.connection = lambda peer: real(three.id if peer == two.id else peer)  # type: ignore[method-assign]
    with pytest.raises(HandshakeError, match=f"{three.id} answered where {two.id} was dialled"):
        await meet(one, two, box)
    assert two.id not in one.hub.peers()


async def test_of_several_relays_the_one_with_the_shortest_way_is_taken(mesh: MeshMaker) -> None:
    one, two, (near, far) = await star(mesh, "near", "far")
    connection = far.hub.connection(two.id)
    assert connection is not None
    assert connection._link is not None
    connection._link._liveness.rtt_s = 0.5  # the far one is far from the other end
    await meet(one, two, far, near)
    assert one.hub.relay(two.id) == near.id


async def test_a_relay_that_refuses_is_passed_over(mesh: MeshMaker) -> None:
    one, two, (unwilling, box) = await star(mesh, "unwilling", "box")
    unwilling.relay.is_willing = False
    await meet(one, two, unwilling, box)
    assert one.hub.relay(two.id) == box.id
    assert unwilling.relay.refused == 1


async def test_without_a_relay_the_reasons_are_told(mesh: MeshMaker) -> None:
    one, two, (box,) = await star(mesh, "box")
    box.relay.is_willing = False
    with pytest.raises(LinkLost, match="this node relays for nobody"):
        await meet(one, two, box)
    with pytest.raises(LinkLost, match="no node is there to relay"):
        await meet(one, two)
    box.relay.is_willing = True
    box.hub.close_link(two.id, "test")
    await eventually(lambda: two.id not in box.hub.peers())
    with pytest.raises(LinkLost, match="no direct link to both"):
        await meet(one, two, box)


async def test_a_relay_never_relays_over_a_relayed_link(mesh: MeshMaker) -> None:
    one, two, (box,) = await star(mesh, "box")
    await meet(one, two, box)
    await eventually(lambda: one.id in two.hub.peers())
    three = mesh.build("three", config=FAST)
    two_address = await two.hub.listen(box.address._replace(port=0))
    two.hub.start_accepting()
    await three.hub.connect((two_address,), two.id)
    with pytest.raises(LinkLost, match="no direct link to both"):
        await RelayedLinks(three.hub, RealClock()).connect(one.id, [two.id])


async def test_the_death_of_a_relay_fails_what_runs_and_another_one_takes_its_place(
    mesh: MeshMaker,
) -> None:
    one, two, (first, second) = await star(mesh, "first", "second")
    two.user.serve = Mute()
    connection = await meet(one, two, first)
    answer = Answer()
    connection.open(b"?", (), answer)
    await eventually(lambda: two.user.serve.asked)  # type: ignore[attr-defined]
    await first.hub.close()
    with pytest.raises(LinkLost):
        await asyncio.wait_for(answer.done, 1)
    await eventually(lambda: two.id not in one.hub.peers())
    await eventually(lambda: one.id not in two.hub.peers())
    await meet(one, two, second)
    assert one.hub.relay(two.id) == second.id


async def test_a_frozen_relay_is_noticed_as_a_frozen_peer_is(mesh: MeshMaker) -> None:
    one, two, (box,) = await star(mesh, "box")
    two.user.serve = Mute()
    connection = await meet(one, two, box)
    answer = Answer()
    connection.open(b"?", (), answer)
    await eventually(lambda: box.relay.pairs)
    for pair in box.relay._pairs:
        pair.opposite = lambda end: Deaf()  # type: ignore[method-assign, assignment, return-value]
    started = asyncio.get_running_loop().time()
    with pytest.raises(LinkLost, match="stopped answering"):
        await asyncio.wait_for(answer.done, 5)
    assert asyncio.get_running_loop().time() - started < 2


class Deaf:
    """Takes everything and passes nothing on."""

    has_ended = False
    stream = 0

    @property
    def connection(self) -> Deaf:
        return self

    def reply(self, *args: object, **named: object) -> None: ...

    def queued_bytes(self, stream: int) -> int:
        return 0


async def test_a_direct_link_takes_the_place_of_a_relayed_one_and_what_runs_finishes(
    mesh: MeshMaker,
) -> None:
    one, two, (box,) = await star(mesh, "box")
    two.user.serve = held = Mute()
    relayed = await meet(one, two, box)
    answer = Answer()
    stream = relayed.open(b"?", (), answer)
    await eventually(lambda: held.asked)
    old = two.hub.connection(one.id)
    assert old is not None
    two_address = await two.hub.listen(box.address._replace(port=0))
    two.hub.start_accepting()
    one.hub.dial((two_address,), two.id)
    await eventually(lambda: one.hub.relay(two.id) is None)
    await eventually(lambda: two.hub.relay(one.id) is None)
    assert one.hub.connection(two.id) is not relayed
    old.reply(stream, b"!", (b"late",), end=True)
    assert await asyncio.wait_for(answer.done, 2) == (b"!", b"late")
    await eventually(lambda: relayed.closed, "the relayed link is closed when nothing runs on it")
    await eventually(lambda: not box.relay.pairs)
    assert not one.user.downs()
    assert not two.user.downs()


async def test_a_relayed_link_never_takes_the_place_of_a_direct_one(mesh: MeshMaker) -> None:
    one, two, (box,) = await star(mesh, "box")
    await two.listen()
    direct = await one.join(two)
    await meet(one, two, box)
    assert one.hub.connection(two.id) is direct
    assert one.hub.relay(two.id) is None
    await eventually(lambda: not box.relay.pairs, "the relayed one is parted with")
    assert one.hub.connection(two.id) is direct


async def test_one_node_cannot_take_all_of_a_relay(mesh: MeshMaker) -> None:
    one, two, (box,) = await star(mesh, "box")
    for number in range(MAX_RELAYED_LINKS_PER_NODE):
        box.relay.budget.begin(number, one.id, box.id)
    with pytest.raises(LinkLost, match="links of one of the two already"):
        await meet(one, two, box)
    box.relay.budget.end(0)
    await meet(one, two, box)


async def test_a_relay_slows_a_pair_down_to_its_rate_and_neither_end_takes_that_for_a_stall(
    mesh: MeshMaker,
) -> None:
    one, two, (box,) = await star(mesh, "box")
    # Half a window takes a quarter of a second each way: longer than the silence that `FAST` allows.
    box.relay.budget = RelayBudget(pair_bytes_per_s=4 * MIB)
    connection = await meet(one, two, box)
    loop = asyncio.get_running_loop()
    started = loop.time()
    data = bytes(10 * MIB)
    assert await ask(connection, data=data, limit_s=30) == data
    # 20 MiB both ways at 4 MiB/s, less a burst of a quarter of a second and a window each way.
    assert 4.2 < loop.time() - started < 10.0


async def test_a_place_that_is_not_used_is_free_again_soon(
    mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "RELAY_BEGIN_S", 0.05)
    one, two, (box,) = await star(mesh, "box")
    call = relayed_links._Call(box.id, one.hub)
    call.ask(two.id)
    await eventually(lambda: call.is_willing)
    await eventually(lambda: not box.relay._waiting)


async def test_who_sends_something_malformed_instead_of_beginning_keeps_no_place(
    mesh: MeshMaker,
) -> None:
    one, two, (box,) = await star(mesh, "box")
    call = relayed_links._Call(box.id, one.hub)
    call.ask(two.id)
    await eventually(lambda: call.is_willing)
    assert call.outer is not None
    call.outer.reply(call._stream, b"\xc1", end=False)
    await eventually(lambda: not box.relay._waiting)


async def test_bytes_that_are_no_tls_end_the_conversation_and_nothing_else(mesh: MeshMaker) -> None:
    one, two, (box,) = await star(mesh, "box")
    call = relayed_links._Call(box.id, one.hub)
    call.ask(two.id)
    await eventually(lambda: call.is_willing)
    assert call.outer is not None
    ended: list[MeshError] = []

    class Garbage:
        def part(self, meta: bytes, data: memoryview, end: bool) -> None: ...

        def lost(self, error: MeshError) -> None:
            ended.append(error)

    call._within = Garbage()
    call.outer.reply(call._stream, RELAYING.encode(BeginRelay()), end=False)
    call.outer.reply(call._stream, b"", (b"this is no TLS" * 20,), end=False)
    await eventually(lambda: ended)
    assert one.hub.connection(box.id) is not None
    assert two.hub.connection(box.id) is not None
    assert not box.relay.pairs
    assert not two.hub.incoming.connections


async def test_a_conversation_about_anything_else_is_refused(mesh: MeshMaker) -> None:
    one, _, (box,) = await star(mesh, "box")
    outer = one.hub.connection(box.id)
    assert outer is not None
    answer = Answer()
    outer.open(b"\x91\x01", (), answer, end=False)
    with pytest.raises(MeshError, match="does not know what is asked"):
        await asyncio.wait_for(answer.done, 2)


async def test_an_idle_relayed_link_owes_nothing_on_the_links_below(mesh: MeshMaker) -> None:
    one, two, (box,) = await star(mesh, "box")
    await meet(one, two, box)
    outer = one.hub.connection(box.id)
    assert outer is not None
    assert outer._link is not None
    assert outer._link._ours == outer._link._conversations == 1


async def test_closing_a_relayed_link_tells_the_other_end_and_frees_the_relay(
    mesh: MeshMaker,
) -> None:
    one, two, (box,) = await star(mesh, "box")
    await meet(one, two, box)
    await eventually(lambda: one.id in two.hub.peers())
    one.hub.close_link(two.id, "test")
    await eventually(lambda: one.id not in two.hub.peers())
    await eventually(lambda: not box.relay.pairs)
    outer = one.hub.connection(box.id)
    assert outer is not None
    await eventually(lambda: outer.idle)
