"""News over links, the comparison of large views in parts, and members that are evicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from meshnode.effects import CloseLink, Dial, Effect, Emit, Persist, StartTimer
from meshnode.events import Leave, Start
from meshnode.membership import LAN, read_members
from meshnode.membership.member import LAST_ID, MemberTable, bucket_range
from meshnode.membership.messages import (
    BUCKETS,
    Digest,
    Ping,
    Records,
    Rumour,
    Summary,
    Sync,
    read_record,
)
from meshnode.membership.timers import CheckDue, PersistDue, ProbePeriod, PushRound
from meshnode.types import NodeState

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.membership import MemberRecord
    from tests.unit.membership.conftest import Node, Stage, Tools, World

DEAD, SUSPECT = NodeState.DEAD, NodeState.SUSPECT


def pushed(stage: Stage, tools: type[Tools], after_s: float = 0.0) -> dict[str, Records]:
    """Let a push go out; return what each peer of the names below is sent."""
    sent = tools.messages(stage.fire(PushRound(), after_s))
    names = {tools.id(name): name for name in ("a", "b", "c", "d", "e", "f")}
    return {names[to]: message for to, message in sent if isinstance(message, Records)}


# Pushing.


def test_a_new_record_is_passed_on_at_once_to_three_linked_peers_but_not_to_its_teller(
    stage: Stage, tools: type[Tools]
) -> None:
    for name in ("a", "b", "c", "d"):
        stage.link(name)
    effects = stage.note("a", tools.records(tools.record("x")))
    assert tools.timers(effects, PushRound) == [PushRound()]
    sent = pushed(stage, tools)
    assert set(sent) <= {"b", "c", "d"}
    assert len(sent) >= 2
    for message in sent.values():
        assert tools.carried(message) == (tools.record("x"),)
    assert stage.note("b", tools.records(tools.record("x"))) == [], "no news is not passed on"
    assert pushed(stage, tools) == {}


def test_news_that_follow_soon_are_gathered(stage: Stage, tools: type[Tools]) -> None:
    for name in ("a", "b"):
        stage.link(name)
    stage.learn("x")
    pushed(stage, tools)
    for name in ("y", "z"):
        stage.now += 0.05
        stage.learn(name)
    effects = stage.hear("x", SUSPECT, accuser="y")
    assert tools.timers(effects, PushRound) == [], "one push is due for all"
    (message, *_) = pushed(stage, tools, 0.1).values()
    assert [record.name for record in tools.carried(message)] == ["y", "z"]
    accusation = Rumour(tools.raw("x"), 1, 0, 1, tools.raw("y"))
    assert message.rumours == (accusation,)


@pytest.mark.parametrize("state", [SUSPECT, DEAD, NodeState.LEFT])
def test_what_a_node_comes_to_believe_is_passed_on_over_links(
    stage: Stage, tools: type[Tools], state: NodeState
) -> None:
    stage.learn("x")
    stage.link("a")
    pushed(stage, tools)
    stage.hear("x", state, accuser="y")
    ((_, message),) = pushed(stage, tools, 0.2).items()
    assert [(rumour.subject, list(NodeState)[rumour.state]) for rumour in message.rumours] == [
        (tools.raw("x"), state)
    ]


def test_a_record_that_was_asked_for_is_not_passed_on(stage: Stage, tools: type[Tools]) -> None:
    for name in ("a", "b"):
        stage.link(name)
    stage.hear("x", NodeState.ALIVE, sender="a")
    assert stage.asked()
    effects = stage.note("a", tools.records(tools.record("x")))
    assert stage.state("x") is NodeState.ALIVE
    assert tools.timers(effects, PushRound) == []


def test_a_node_s_own_change_is_passed_on(stage: Stage, tools: type[Tools]) -> None:
    stage.link("a")
    stage.core.update_record(stage.now, region="us")
    ((name, message),) = pushed(stage, tools).items()
    assert (name, tools.carried(message)) == ("a", (stage.core.record,))


def test_news_reach_all_over_links_alone_in_a_moment(world: World) -> None:
    nodes = world.mesh(40)
    world.udp_cut = lambda sender, receiver: sender is not receiver
    world.perform(nodes[3], nodes[3].core.update_record(world.now, region="us"))
    knows = [node for node in nodes if node is not nodes[3]]
    world.run(0.1)
    told = [node.core.members[nodes[3].id].record.region for node in knows]
    assert told.count("us") > 30


def test_who_learnt_of_a_member_asks_a_peer_soon_whether_it_has_heard(
    stage: Stage, tools: type[Tools]
) -> None:
    assert stage.fire(CheckDue()) == [], "there is nobody to ask"
    stage.link("a")
    effects = stage.learn("x")
    assert tools.timers(effects, CheckDue) == [CheckDue()]
    assert tools.timers(stage.learn("y"), CheckDue) == []
    assert tools.timers(stage.learn("x", counter=1), CheckDue) == []
    ((to, message),) = tools.messages(stage.fire(CheckDue(), 1.0))
    assert to == tools.id("a")
    assert isinstance(message, Sync)


# Records as they come.


def test_a_record_that_is_held_is_not_decoded_again_and_one_that_is_not_is_gone(
    tools: type[Tools], make_record: Callable[..., MemberRecord]
) -> None:
    data = tools.encode(make_record("somebody"))
    first, flaw = read_record(data)
    assert flaw is None
    assert read_record(bytes(bytearray(data)))[0] is first
    del first
    again, _ = read_record(data)
    assert again == make_record("somebody")


def test_one_record_that_is_none_does_not_take_the_others_along(
    stage: Stage, tools: type[Tools]
) -> None:
    good = tools.records(tools.record("a")).records
    nonsense = tuple(map(msgspec.Raw, (b"\x01", tools.encode(Ping(1)), b"\x92\x14\x01")))
    effects = stage.note("x", Records((*nonsense, *good)))
    dropped = [kind for kind, _ in tools.emits(effects)]
    assert dropped == ["member.dropped"] * 3 + ["member.alive"]
    assert stage.state("a") is NodeState.ALIVE


# Large views.


def test_buckets_cover_all_ids_without_overlap() -> None:
    ranges = [bucket_range(bucket) for bucket in range(BUCKETS)]
    assert (ranges[0][0], ranges[-1][1]) == (b"", LAST_ID)
    assert [upto for _, upto in ranges[:-1]] == [after for after, _ in ranges[1:]]


def test_a_large_view_is_summarised_and_only_parts_that_differ_are_told(
    tools: type[Tools],
) -> None:
    names = [f"n{i}" for i in range(300)]
    one, other = tools.stage("one"), tools.stage("other")
    for stage in (one, other):
        stage.learn(*names, "one", "other")
    one.learn("missed")
    other.hear("n7", SUSPECT)
    ((_, summary),) = tools.messages(other.note("one", Sync(one.core._table.root())))
    assert isinstance(summary, Summary)
    digests = [m for _, m in tools.messages(one.note("other", summary))]
    assert all(isinstance(digest, Digest) for digest in digests)
    assert sum(len(digest.entries) for digest in digests) < 40
    for digest in digests:
        for _, answer in tools.messages(other.note("one", digest)):
            for _, more in tools.messages(one.note("other", answer)):
                other.note("one", more)
    assert other.state("missed") is NodeState.ALIVE
    assert one.state("n7") is SUSPECT
    assert one.core._table.root() == other.core._table.root()


def test_a_newcomer_gets_a_part_of_a_large_view_from_one_peer_and_asks_around_for_the_rest(
    tools: type[Tools],
) -> None:
    names = [f"n{i}" for i in range(400)]
    seed, joiner = tools.stage("seed"), tools.stage("joiner")
    seed.learn(*names)
    for name in ("seed", "n1", "n2", "n3"):
        joiner.link(name)
    own = joiner.note("seed", Sync(seed.core._table.root()))
    ((_, mine),) = tools.messages(own)
    given, *digests = [message for _, message in tools.messages(seed.note("joiner", mine))]
    assert len(tools.carried(given)) == 128
    for message in (given, *digests):
        joiner.note("seed", message)
    asked = joiner.asked()
    assert {to for to, _ in asked} == {tools.id(name) for name in ("seed", "n1", "n2", "n3")}
    assert sum(len(message.subjects) for _, message in asked) == 401 - 128


def test_a_table_s_hash_depends_on_what_it_holds_and_not_on_how_it_came(
    tools: type[Tools],
) -> None:
    one, other = (MemberTable(tools.record("me"), 0.0) for _ in range(2))
    for name in ("a", "b", "c"):
        one.put(tools.record(name), NodeState.ALIVE, 0.0)
    for name in ("c", "x", "b", "a"):
        other.put(tools.record(name, counter=0), SUSPECT, 0.0)
        other.put(tools.record(name), NodeState.ALIVE, 1.0)
    assert one.root() != other.root()
    other.remove(tools.id("x"))
    other.remove(tools.id("x"))
    assert one.root() == other.root()
    other.put(tools.record("a"), DEAD, 2.0)
    one.remove(tools.id("a"))
    assert one.root() == other.root(), "the dead are left out"
    assert other.dead_since(2.0) == [tools.id("a")]
    assert other.dead_since(2.1) == []
    assert tools.id("a") not in other.live
    assert other.in_state(DEAD) == [tools.id("a")]


# Eviction.


def test_an_evicted_member_is_forgotten_parted_with_and_refused_afterwards(
    tools: type[Tools],
) -> None:
    revoked: list[bytes] = []
    stage = tools.stage(
        verify_record=lambda record: "it was revoked" if record.public_key in revoked else None
    )
    stage.learn("a", "b")
    stage.link("a")
    revoked.append(tools.record("a").public_key)
    effects = stage.core.evict(tools.id("a"), "stolen", stage.now)
    assert effects[0] == CloseLink(tools.id("a"), "stolen")
    assert tools.emits(effects) == [("member.evicted", tools.id("a"))]
    assert tools.id("a") not in stage.core.members
    (persist,) = stage.fire(PersistDue())
    assert isinstance(persist, Persist)
    assert [record.name for record in read_members(persist.value)] == ["b"]
    assert stage.unlink("a") == [], "neither probed nor dialled"
    assert tools.emits(stage.learn("a", counter=9)) == [("member.refused", tools.id("a"))]
    told = [m for _, m in tools.messages(stage.datagram("b", Ping(1)))]
    assert tools.raw("a") not in [rumour.subject for rumour in told[0].rumours]


def test_an_eviction_ends_suspicion_probes_and_dials(stage: Stage, tools: type[Tools]) -> None:
    stage.learn("a", "b", "c")
    pending = stage.hear("a", SUSPECT)
    stage.core.evict(tools.id("a"), "stolen", stage.now)
    for timer in tools.timers(pending, object):
        late = stage.fire(timer, 5.0)
        assert tools.id("a") not in [to for to, _ in tools.messages(late)]
        assert not [effect for effect in late if isinstance(effect, Dial)]
    probed = {to for _ in range(9) for to, _ in tools.messages(stage.fire(ProbePeriod(), 1.0))}
    assert probed == {tools.id("b"), tools.id("c")}


def test_evicting_a_stranger_closes_its_link_and_oneself_changes_nothing(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.link("a")
    effects = stage.core.evict(tools.id("a"), "stolen", stage.now)
    assert [type(effect) for effect in effects[:2]] == [CloseLink, Emit]
    assert stage.core.evict(stage.id, "stolen", stage.now) == []
    stage.tell(Leave())
    assert stage.core.evict(tools.id("a"), "stolen", stage.now) == []


def test_a_known_node_that_is_evicted_is_not_dialled_again(tools: type[Tools]) -> None:
    stage = tools.stage(known=[tools.record("a")])
    stage.tell(Start())
    stage.core.evict(tools.id("a"), "stolen", stage.now)
    (persist,) = stage.fire(PersistDue())
    assert isinstance(persist, Persist)
    assert read_members(persist.value) == ()


def test_a_mesh_goes_on_after_an_eviction(world: World) -> None:
    nodes = world.mesh(6)
    victim, rest = nodes[2], [node for node in nodes if node.name != "n2"]

    def evict(node: Node) -> list[Effect]:
        return node.core.evict(victim.id, "stolen", world.now)

    victim.running = False
    for node in rest:
        world.perform(node, evict(node))
    assert world.agree(rest)
    world.run(60.0)
    assert world.agree(rest)
    for node in rest:
        assert not node.emits("member.suspect", "member.dead")
        assert victim.id not in node.core.members


def test_the_list_on_disk_of_a_large_mesh_differs_from_node_to_node(tools: type[Tools]) -> None:
    names = [f"n{i}" for i in range(300)]
    kept = []
    for name in ("one", "other"):
        stage = tools.stage(name)
        stage.learn(*names)
        (persist,) = stage.fire(PersistDue())
        assert isinstance(persist, Persist)
        kept.append({record.name for record in read_members(persist.value)})
    assert [len(each) for each in kept] == [256, 256]
    assert kept[0] != kept[1]


def test_the_list_on_disk_is_written_less_often_as_the_mesh_grows(
    stage: Stage, tools: type[Tools]
) -> None:
    def delay_s(effects: list[Effect]) -> float:
        started = [effect for effect in effects if isinstance(effect, StartTimer)]
        (found,) = (each.delay_s for each in started if isinstance(each.timer, PersistDue))
        return found

    assert delay_s(stage.learn("a")) == LAN.persist_delay_s
    stage.fire(PersistDue())
    stage.learn(*(f"n{i}" for i in range(100)))
    stage.fire(PersistDue())
    assert delay_s(stage.learn("z")) == 3 * LAN.persist_delay_s
