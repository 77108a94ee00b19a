"""Where devices ask to join, with connections that are none: what is hard to bring about with real ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from meshnode.daemon.pairing import JoinDesk
from meshnode.errors import LinkLost, NotFound
from meshnode.gateway.protocols.caller import OWNER
from meshnode.limits import MAX_JOIN_REQUESTS_PER_SOURCE
from meshnode.net.clock import RealClock
from meshnode.trust.chain import found_mesh
from meshnode.trust.identity import Identity
from meshnode.trust.invite import create_invite
from meshnode.trust.pairing import Pairing
from meshnode.trust.reasons import Reason, TrustError
from meshnode.trust.records import MeshId
from meshnode.types import Address, NodeId, Role

if TYPE_CHECKING:
    from meshnode.net.connection import Connection

WALL_S = 1_800_000_000.0
HOST = Address("192.0.2.9", 4000)


class Waiting:
    """The connection of a device."""

    def __init__(self, device: str, code: str, fails: Exception | None = None) -> None:
        self.pairing = Pairing(NodeId(device * 32), "camera", code, MeshId("a" * 32))
        self.remote = HOST
        self.fails = fails
        self.turned_away: list[TrustError] = []
        self.approved = False

    def turn_away(self, error: TrustError) -> None:
        self.turned_away.append(error)

    def approve(self, *_: Any) -> None:
        if self.fails is not None:
            raise self.fails
        self.approved = True


def begin(desk: JoinDesk, waiting: Waiting) -> Waiting:
    desk.pairing_begun(cast("Connection", waiting))
    return waiting


@pytest.fixture
def desk() -> JoinDesk:
    """A desk on the founder's node, which may do everything."""
    founder = Identity(b"f" * 32)
    member = found_mesh(founder, b"r" * 32, WALL_S)
    invite = create_invite(
        identity=founder, member=member, role=Role.OPERATOR, ttl_s=60, now_wall_s=WALL_S, seeds=(),
        random_seed=b"i" * 32,
    )  # fmt: skip
    made = {"invite": invite.to_text(), "invite_id": invite.grant.invite_id}
    roster = SimpleNamespace(role=lambda _: Role.ADMIN)
    credentials = SimpleNamespace(member=member, node_id=founder.node_id, roster=roster)
    record = SimpleNamespace(name="alpha")
    node = SimpleNamespace(membership=SimpleNamespace(record=record, members={}))
    desk = JoinDesk(cast("Any", credentials), RealClock())
    trust = SimpleNamespace(create_invite=lambda *_: made, require_inviting=lambda *_: None)
    desk.open(cast("Any", node), cast("Any", trust))
    return desk


async def test_who_asks_before_the_node_is_a_member_is_told_to_come_again(desk: JoinDesk) -> None:
    starting = JoinDesk(desk._credentials, RealClock())
    with pytest.raises(TrustError, match="still starting"):
        starting.pairing_asked(NodeId("d" * 32), HOST)
    assert starting.requests.events["refused"] == 1


async def test_a_device_that_asks_twice_at_once_waits_once(desk: JoinDesk) -> None:
    former = begin(desk, Waiting("d", "111111"))
    newer = begin(desk, Waiting("d", "222222"))
    (told,) = former.turned_away
    assert "asked anew" in str(told)
    desk.pairing_ended(cast("Connection", former))  # it closes after that
    assert len(desk.view()) == 1
    with pytest.raises(NotFound):
        desk.approve("111111", Role.OPERATOR, "", OWNER)
    desk.approve("222222", Role.OPERATOR, "", OWNER)
    assert (former.approved, newer.approved) == (False, True)
    assert desk.requests.events == {"withdrawn": 1, "approved": 1}
    assert not desk._timers  # nobody is reminded


async def test_a_device_for_which_there_is_no_room_after_all_is_refused_and_counted(
    desk: JoinDesk,
) -> None:
    """Several were let go on at once, and came to their codes later."""
    for number in range(MAX_JOIN_REQUESTS_PER_SOURCE):
        begin(desk, Waiting("abcdefgh"[number], f"{number:06d}"))
    with pytest.raises(TrustError) as caught:
        begin(desk, Waiting("z", "999999"))
    assert caught.value.reason is Reason.THROTTLED
    assert desk.requests.events["refused"] == 1
    assert len(desk.view()) == MAX_JOIN_REQUESTS_PER_SOURCE


async def test_a_device_that_goes_while_it_is_approved_is_no_member_and_waits_no_more(
    desk: JoinDesk,
) -> None:
    begin(desk, Waiting("d", "111111", LinkLost("the device has gone")))
    with pytest.raises(LinkLost):
        desk.approve("111111", Role.OPERATOR, "", OWNER)
    assert desk.view() == []
    assert desk.requests.events == {"withdrawn": 1}


async def test_a_device_that_may_not_be_admitted_now_waits_on(desk: JoinDesk) -> None:
    waiting = begin(desk, Waiting("d", "111111", TrustError(Reason.FULL, "no room")))
    with pytest.raises(TrustError, match="no room"):
        desk.approve("111111", Role.OPERATOR, "", OWNER)
    assert len(desk.view()) == 1
    waiting.fails = None
    desk.approve("111111", Role.OPERATOR, "", OWNER)
    assert desk.requests.events == {"approved": 1}
    assert repr(desk).startswith("<JoinDesk <JoinRequests 0 waiting")
