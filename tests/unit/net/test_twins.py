"""A key that runs twice is told from a node that started again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import LinkLost, MeshError
from meshnode.events import DialFailed
from meshnode.limits import TWIN_ANSWER_S
from meshnode.trust.reasons import Reason, TrustError
from tests.unit.net.conftest import eventually
from tests.unit.net.test_links import Answer, only_links

if TYPE_CHECKING:
    from tests.unit.net.conftest import MeshMaker, Node


def silence(node: Node, peer: Node) -> None:
    """Let a node hear nothing more on its link, as a machine without power; its peer sees no end."""
    connection: Any = node.hub.connection(peer.id)
    connection._transport.pause_reading()


async def link(one: Node, two: Node) -> None:
    """The second dials the first."""
    await two.hub.connect((one.address,), one.id)
    await eventually(lambda: one.hub.connection(two.id))


async def test_a_second_process_with_a_linked_node_s_key_is_refused_and_both_are_told(
    mesh: MeshMaker,
) -> None:
    one, two, copy = await mesh.start("one"), mesh.build("two", boot=1), mesh.build("two", boot=2)
    await link(one, two)
    with pytest.raises(TrustError, match="a data folder was copied") as caught:
        await copy.hub.connect((one.address,), one.id)
    assert caught.value.reason is Reason.TWIN
    assert caught.value.by_peer
    assert one.user.twins == [(two.id, 2)]
    assert [error.reason for error in copy.user.refusals] == [Reason.TWIN]
    assert one.user.refusals == []
    assert one.user.downs() == two.user.downs() == []
    assert only_links(one, two)
    assert one.hub.boot(two.id) == 1


async def test_a_copy_that_dials_again_is_refused_again_and_taken_when_the_other_is_gone(
    mesh: MeshMaker,
) -> None:
    one, two, copy = await mesh.start("one"), mesh.build("two", boot=1), mesh.build("two", boot=2)
    await link(one, two)
    for _ in range(2):
        copy.hub.dial((one.address,), one.id)
        await eventually(lambda: not copy.hub._dials)
    assert [type(event) for event in copy.user.events] == [DialFailed] * 2
    await two.hub.close()
    await eventually(lambda: not one.hub.peers())
    await link(one, copy)
    assert one.user.twins == [(two.id, 2)] * 2


async def test_a_node_that_lost_its_power_and_is_back_replaces_its_former_link(
    mesh: MeshMaker,
) -> None:
    one, two, again = await mesh.start("one"), mesh.build("two", boot=1), mesh.build("two", boot=2)
    await link(one, two)
    silence(two, one)
    former = one.hub.connection(two.id)
    assert former is not None
    waiting = Answer()
    former.open(b"x", [], waiting)
    began = asyncio.get_running_loop().time()
    await again.hub.connect((one.address,), one.id)
    assert asyncio.get_running_loop().time() - began < TWIN_ANSWER_S + 0.5
    with pytest.raises(LinkLost, match=r"restarted|stopped answering"):
        await asyncio.wait_for(waiting.done, 5)
    assert one.hub.boot(two.id) == 2
    assert one.user.ups() == [two.id, two.id]
    assert one.user.twins == []


async def test_a_node_whose_former_process_ends_meanwhile_is_taken_at_once(mesh: MeshMaker) -> None:
    one, two, again = await mesh.start("one"), mesh.build("two", boot=1), mesh.build("two", boot=2)
    await link(one, two)
    silence(two, one)
    began = asyncio.get_running_loop().time()
    coming = asyncio.ensure_future(again.hub.connect((one.address,), one.id))
    await eventually(lambda: one.hub._twins._doubts)
    assert repr(one.hub._twins) == "<Twins 1 newcomers wait>"
    two_s: Any = two.hub.connection(one.id)
    two_s._transport.abort()  # the kernel tells, once the process is gone
    await coming
    assert asyncio.get_running_loop().time() - began < TWIN_ANSWER_S / 2
    assert repr(one.hub._twins) == "<Twins 0 newcomers wait>"
    await eventually(lambda: one.hub.boot(two.id) == 2)


async def test_a_node_that_stops_welcomes_nobody_any_more(mesh: MeshMaker) -> None:
    one, two, again = await mesh.start("one"), mesh.build("two", boot=1), mesh.build("two", boot=2)
    await link(one, two)
    silence(two, one)
    coming = asyncio.ensure_future(again.hub.connect((one.address,), one.id))
    await eventually(lambda: one.hub._twins._doubts)
    await one.hub.close()
    with pytest.raises(MeshError):
        await coming
    assert len(one.user.established) == 1


async def test_a_newcomer_that_does_not_wait_for_its_welcome_is_cut_off(mesh: MeshMaker) -> None:
    one, two, rude = await mesh.start("one"), mesh.build("two", boot=1), mesh.build("two", boot=2)
    await link(one, two)
    silence(two, one)
    coming = asyncio.ensure_future(rude.hub.connect((one.address,), one.id))
    await eventually(lambda: one.hub._twins._doubts)
    ((newcomer, _),) = next(iter(one.hub._twins._doubts.values()))
    newcomer.data_received(b"more")
    assert newcomer.closed
    with pytest.raises((TrustError, LinkLost)):
        await coming
    assert one.hub.boot(two.id) == 1


async def test_two_processes_with_one_key_that_dial_each_other_are_told_both(
    mesh: MeshMaker,
) -> None:
    one, copy = await mesh.start("one", boot=1), mesh.build("one", boot=2)
    with pytest.raises(TrustError, match="runs with the identity") as caught:
        await copy.hub.connect((one.address,), None)
    assert caught.value.reason is Reason.TWIN
    await eventually(lambda: one.user.refusals)
    assert [error.reason for error in one.user.refusals] == [Reason.TWIN]
    assert [error.reason for error in copy.user.refusals] == [Reason.TWIN]
