"""Nodes that were let in and turn: an evicted one that goes on, and a plain member that wants more.

They hold real links and real keys, and run our own code, changed to attack.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.datafolder import read_evicted
from meshnode.errors import MeshError, Saturated
from meshnode.limits import MAX_FORWARDED_CALLS_PER_PEER
from meshnode.net.connection import peer_error
from meshnode.sim.serving import sim_manifest
from meshnode.state.api_keys import make_api_key
from meshnode.state.deployment import Deployment
from meshnode.state.desired_messages import DESIRED, DesiredEntries, Entry
from meshnode.state.hybrid_clock import Stamp
from meshnode.state.statements import revocation_key, role_key
from meshnode.trust.chain import admit
from meshnode.trust.identity import Identity
from meshnode.trust.invite import Invite
from meshnode.trust.reasons import Reason, TrustError
from meshnode.trust.statements import Revocation, RoleChange, write_statement
from meshnode.types import Address, NodeId, Role
from meshnode.wire.messages import STREAMS, Failure, Forward, Forwarded
from tests.unit.daemon.conftest import daemons, eventually

if TYPE_CHECKING:
    from meshnode.daemon.driver import Driver
    from meshnode.node import Node
    from tests.unit.daemon.conftest import Daemons, Running

__all__ = ["daemons"]  # the fixture


def driver_of(running: Running) -> Driver:
    driver = running.daemon._driver
    assert driver is not None
    return driver


def node_of(running: Running) -> Node:
    node = driver_of(running).node
    assert node is not None
    return node


async def invite(running: Running, **wish: Any) -> str:
    return str((await running.post("/mesh/v1/invites", wish))["invite"])


def has_links(running: Running, count: int) -> bool:
    return len(tuple(driver_of(running).hub.peers())) == count


def has_dropped(driver: Driver, count: int) -> bool:
    return driver.dropped.total() >= count


async def trio(daemons: Daemons) -> tuple[Running, Running, Running]:
    alpha = await daemons.start("alpha", http=Address("127.0.0.1", 0)).ready()
    rogue = await daemons.start("rogue", await invite(alpha)).ready()
    gamma = await daemons.start("gamma", await invite(alpha)).ready()
    for running in (alpha, rogue, gamma):
        await running.sees(3)
        await eventually(partial(has_links, running, 2))
    return alpha, rogue, gamma


async def test_an_evicted_node_that_goes_on_gets_no_link_no_datagram_and_lets_nobody_in(
    daemons: Daemons,
) -> None:
    """It ignores that it was evicted, and knows everyone's address and key."""
    alpha, rogue, gamma = await trio(daemons)
    unused = await invite(rogue)
    driver = driver_of(rogue)
    driver.on_evicted = lambda _: None
    rogue_member = driver._credentials.member
    addresses = {
        running: tuple(
            Address(*each)
            for each in node_of(running).membership.members[node_of(running).me].record.addresses
        )
        for running in (alpha, gamma)
    }
    before = asyncio.get_running_loop().time()
    await alpha.post("/mesh/v1/evictions", {"node": "rogue", "reason": "it turned"})
    await eventually(lambda: not tuple(driver.hub.peers()), "both have closed its links")
    assert asyncio.get_running_loop().time() - before < 1

    for running in (alpha, gamma):
        me = node_of(running).me
        with pytest.raises(TrustError) as refused:
            await driver.hub.connect(addresses[running], me)
        assert refused.value.reason is Reason.REVOKED
        assert refused.value.by_peer
        assert refused.value.evidence
        hub, there = driver_of(running).hub, driver_of(running)
        assert hub.refused > 0  # meshnode_links_refused_total
        dropped = there.dropped.total()
        driver.datagrams.send(me, b"\x93\x14\x01\x02")
        await eventually(partial(has_dropped, there, dropped + 1), "it is dropped, and counted")

    credentials = driver._credentials
    later = credentials.create_invite(600, addresses[gamma]).to_text()
    for name, line in (("early", unused), ("late", later)):
        joiner = daemons.start(name, line)
        joiner.daemon._may_begin_anew = False  # as in its second try, with another key of its own
        with pytest.raises(MeshError):
            await joiner.end()
    # It admits a friend by itself, and writes a time on that at which it might have.
    friend, old = Identity(bytes(32)), Invite.parse(unused)
    admitted = admit(
        witness=credentials.identity,
        witness_member=rogue_member,
        inviter=rogue_member,
        grant=old.signed_grant,
        subject=friend.public_key,
        invite_proof=old.prove(friend.public_key),
        now_wall_s=old.grant.issued_at_s,
    )
    for running in (alpha, gamma):
        reason = driver_of(running)._credentials.authority.learn(admitted)
        assert reason is not None
        assert "was evicted" in reason
        rows = (await running.get("/mesh/v1/trust"))["members"]
        assert {row["name"] for row in rows} == {"alpha", "gamma"}


async def test_a_plain_member_cannot_write_what_its_role_does_not_allow(daemons: Daemons) -> None:
    """It signs whatever it likes with its own, valid key and pushes it over its link."""
    alpha = await daemons.start("alpha").ready()
    rogue = await daemons.start("rogue", await invite(alpha, role="member")).ready()
    await alpha.sees(2)
    await eventually(lambda: node_of(alpha).me in driver_of(rogue).hub.peers())
    me, victim = node_of(rogue), node_of(alpha)
    credentials = driver_of(rogue)._credentials
    own_key, its_key = credentials.identity.public_key, credentials.roster.public_key(victim.me)
    assert its_key is not None
    wall_s = rogue.daemon._clock.wall_s()
    key, _ = make_api_key("mine", ["admin"], None, wall_s, bytes(42), [])
    values = {
        key.key: key.encode(),
        "deployment/evil": Deployment("evil", (sim_manifest("evil"),), 1, ()).encode(),
        role_key(me.me): write_statement(RoleChange(own_key, Role.ADMIN)),
        role_key(victim.me): write_statement(RoleChange(its_key, Role.MEMBER)),
        revocation_key(victim.me): write_statement(Revocation(its_key, "mine now", int(wall_s))),
    }
    entries = []
    for counter, (name, value) in enumerate(values.items()):
        entry = Entry(name, Stamp(int(wall_s * 1000), counter), me.me, value)
        signature = credentials.identity.sign(credentials.authority.bound(entry.signed_bytes))
        entries.append(Entry(name, entry.stamp, me.me, value, signature))
    refused = driver_of(alpha).events["desired.refused"]
    driver_of(rogue).hub.note(victim.me, DESIRED.encode(DesiredEntries(tuple(entries))))
    await eventually(lambda: driver_of(alpha).events["desired.refused"] >= refused + len(entries))
    assert all(victim.desired.get(name) is None for name in values)
    assert (await alpha.get("/mesh/v1/status"))["role"] == "admin"
    rows = (await alpha.get("/mesh/v1/trust"))["members"]
    assert {row["name"]: row["role"] for row in rows} == {"alpha": "admin", "rogue": "member"}
    assert read_evicted(alpha.folder.path) is None


class Answer:
    """What one forwarded call came to."""

    def __init__(self) -> None:
        self.came: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def part(self, meta: bytes, data: memoryview, end: bool) -> None:
        self.came.set_result(STREAMS.decode(meta))

    def lost(self, error: MeshError) -> None:
        if not self.came.done():
            self.came.set_exception(error)


async def forward(rogue: Running, to: NodeId, ask: Forward, body: bytes = b"{}") -> Any:
    connection = driver_of(rogue).hub.connection(to)
    assert connection is not None
    answer = Answer()
    connection.open(STREAMS.encode(ask), [body], answer)
    message = await asyncio.wait_for(answer.came, 10)
    if isinstance(message, Failure):
        raise peer_error(message.code, message.message)
    assert isinstance(message, Forwarded)
    return message


async def test_a_member_that_passes_calls_on_gets_no_further_than_the_keys_it_was_shown(
    daemons: Daemons,
) -> None:
    alpha = await daemons.start("alpha").ready()
    rogue = await daemons.start("rogue", await invite(alpha, role="member")).ready()
    to = node_of(alpha).me
    await eventually(lambda: to in driver_of(rogue).hub.peers())
    made = await alpha.post("/mesh/v1/keys", {"name": "shown", "scopes": ["deploy"]})
    shown = made["key"]
    before = dict(node_of(alpha).desired.items())

    calls = {
        ("POST", "/mesh/v1/keys", ""): 401,
        ("POST", "/mesh/v1/keys", "mesh_" + "a" * 16 + "_" + "b" * 52): 401,
        ("POST", "/mesh/v1/keys", shown): 403,
        ("POST", "/mesh/v1/evictions", shown): 403,
        ("PUT", "/mesh/v1/roles/rogue", shown): 403,
        ("POST", "/mesh/v1/shutdown", shown): 403,
        ("POST", "/mesh/v1/trust/seal", shown): 403,
        ("GET", "/mesh/v1/status", shown): 403,
        ("POST", "/mesh/v1/nothing", shown): 404,
        ("BREW", "/mesh/v1/keys", shown): 405,
        ("POST", "/mesh/v1/" + "x" * 20_000, shown): 414,
    }
    for (method, path, key), status in calls.items():
        answered = await forward(rogue, to, Forward(method, path, "", key))
        assert answered.status == status, (method, path[:40])
    assert dict(node_of(alpha).desired.items()) == before
    mesh = alpha.daemon._mesh
    assert mesh is not None
    forwards = mesh._peer_server.forwards
    assert forwards is not None
    assert forwards.outcomes["unauthenticated"] == 2  # meshnode_forwarded_calls_answered_total
    assert forwards.outcomes["forbidden"] == 6


async def test_a_member_that_passes_on_more_than_it_may_takes_no_more_than_its_places(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = await daemons.start("alpha").ready()
    rogue = await daemons.start("rogue", await invite(alpha, role="member")).ready()
    to = node_of(alpha).me
    await eventually(lambda: to in driver_of(rogue).hub.peers())
    made = await alpha.post("/mesh/v1/keys", {"name": "shown", "scopes": ["deploy"]})
    mesh = alpha.daemon._mesh
    assert mesh is not None
    gate = asyncio.Event()

    async def slow(*_: object) -> dict[str, Any]:
        await gate.wait()
        return {"id": "u"}

    monkeypatch.setattr(mesh.control._uploads, "begin", slow)
    ask = Forward("POST", "/mesh/v1/uploads", "", made["key"])
    body = b'{"files":[{"path":"a.onnx","size_bytes":1}]}'
    tasks = [
        asyncio.ensure_future(forward(rogue, to, ask, body))
        for _ in range(4 * MAX_FORWARDED_CALLS_PER_PEER)
    ]
    done, running = await asyncio.wait(tasks, timeout=1)
    assert len(running) == MAX_FORWARDED_CALLS_PER_PEER
    assert all(isinstance(task.exception(), Saturated) for task in done)
    gate.set()
    assert {(await task).status for task in running} == {201}
