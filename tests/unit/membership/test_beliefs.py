"""What a core believes when it is told: precedence, signatures, refutation, limits."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import msgspec
import pytest

from meshnode.effects import StartTimer
from meshnode.limits import MAX_TWINS_OUTBID
from meshnode.membership import fetching
from meshnode.membership.member import MemberTable
from meshnode.membership.messages import (
    Gossip,
    Incarnation,
    RecordRequest,
    Rumour,
    leave_bytes,
)
from meshnode.membership.timers import GossipRound, SuspicionExpired
from meshnode.types import NodeState

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.membership import MemberRecord
    from tests.unit.membership.conftest import Stage, Tools

ALIVE, SUSPECT, DEAD, LEFT = NodeState
RANK = [ALIVE, SUSPECT, DEAD, LEFT]


@pytest.mark.parametrize(("held", "heard"), list(itertools.product(NodeState, NodeState)))
def test_within_an_incarnation_the_worse_state_wins(
    stage: Stage, held: NodeState, heard: NodeState
) -> None:
    stage.learn("a", counter=5)
    stage.hear("a", held, counter=5)
    assert stage.state("a") is held
    stage.hear("a", heard, counter=5)
    assert stage.state("a") is max(held, heard, key=RANK.index)


@pytest.mark.parametrize(("held", "heard"), list(itertools.product(NodeState, NodeState)))
def test_a_statement_about_an_older_incarnation_changes_nothing(
    stage: Stage, tools: type[Tools], held: NodeState, heard: NodeState
) -> None:
    stage.link("a")
    stage.learn("a", counter=5)
    stage.hear("a", held, counter=5)
    before = stage.core.members[tools.id("a")]
    assert stage.hear("a", heard, counter=4) == []
    assert stage.learn("a", counter=4) == []
    assert stage.learn("a", counter=5) == []
    assert stage.core.members[tools.id("a")] is before


@pytest.mark.parametrize(("held", "heard"), list(itertools.product(NodeState, NodeState)))
def test_a_statement_about_a_newer_incarnation_only_makes_it_ask_for_the_record(
    stage: Stage, tools: type[Tools], held: NodeState, heard: NodeState
) -> None:
    stage.link("gossip")
    stage.learn("a")
    stage.hear("a", held)
    assert tools.messages(stage.hear("a", heard, epoch=2)) == []
    assert stage.asked() == [(tools.id("gossip"), RecordRequest((tools.raw("a"),)))]
    assert stage.state("a") is held


@pytest.mark.parametrize(
    ("held", "event"),
    [(ALIVE, "updated"), (SUSPECT, "refuted"), (DEAD, "alive"), (LEFT, "alive")],
)
def test_a_newer_record_makes_its_subject_alive_whatever_it_was(
    stage: Stage, tools: type[Tools], held: NodeState, event: str
) -> None:
    stage.learn("a")
    stage.hear("a", held)
    effects = stage.learn("a", counter=1)
    assert tools.emits(effects) == [(f"member.{event}", tools.id("a"))]
    assert stage.state("a") is ALIVE


def test_each_state_is_told_to_people_once(stage: Stage, tools: type[Tools]) -> None:
    subject = tools.id("a")
    assert tools.emits(stage.learn("a")) == [("member.alive", subject)]
    assert tools.emits(stage.hear("a", SUSPECT)) == [("member.suspect", subject)]
    assert tools.emits(stage.hear("a", SUSPECT)) == []
    assert tools.emits(stage.hear("a", DEAD)) == [("member.dead", subject)]
    assert tools.emits(stage.hear("a", LEFT)) == [], "dead was the down event"
    assert stage.state("a") is LEFT


def test_a_leave_that_its_subject_did_not_sign_is_dropped(stage: Stage, tools: type[Tools]) -> None:
    stage.learn("a")
    effects = stage.hear("a", LEFT, signed_by="thief")
    assert tools.emits(effects) == [("member.dropped", tools.id("gossip"))]
    assert stage.state("a") is ALIVE


def test_the_accuser_s_name_travels_with_the_accusation(stage: Stage, tools: type[Tools]) -> None:
    stage.learn("a", "b")
    accusation = Rumour(tools.raw("a"), 1, 0, 1, tools.raw("accuser"))
    stage.datagram("b", Gossip((accusation,)))
    told = tools.messages(stage.fire(GossipRound()))
    assert any(accusation in message.rumours for _, message in told)


def test_a_forged_or_revoked_record_is_refused_and_people_are_told(
    stage: Stage, tools: type[Tools], make_record: Callable[..., MemberRecord]
) -> None:
    forged = msgspec.structs.replace(make_record("a"), epoch=2**62)
    oversized = make_record("b", chain=b"x" * 20_000)
    for record in (forged, oversized, make_record("c", chain=b"revoked")):
        effects = stage.note("x", tools.records(record))
        assert tools.emits(effects) == [("member.refused", record.node_id)]
    assert list(stage.core.members) == [stage.id]


def test_an_accusation_against_this_node_is_answered_with_a_greater_counter(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.link("gossip")
    effects = stage.hear("me", DEAD)
    assert stage.state("me") is ALIVE
    assert stage.core.record.incarnation == (1, 1)
    assert tools.emits(effects) == [("member.refuted", stage.id)]
    assert tools.messages(effects) == [(tools.id("gossip"), tools.records(stage.core.record))]
    assert stage.hear("me", DEAD) == [], "the same accusation is about an older incarnation now"


def test_without_a_link_to_the_accuser_the_refutation_goes_by_gossip_alone(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn("a")
    effects = stage.hear("me", SUSPECT)
    assert tools.messages(effects) == []
    gossip = tools.messages(stage.fire(GossipRound()))
    assert Rumour(tools.raw("me"), 1, 1, 0) in gossip[0][1].rumours


def test_nothing_is_believed_about_this_node_in_a_life_that_it_never_had(
    stage: Stage, tools: type[Tools]
) -> None:
    """It asks for the proof, and the accuser has none."""
    stage.link("gossip")
    stage.hear("me", DEAD, epoch=2**62)
    assert [message for _, message in stage.asked()] == [RecordRequest((tools.raw("me"),))]
    assert stage.core.record.incarnation == (1, 0)


def test_each_of_a_few_twins_is_outbid_once(stage: Stage, tools: type[Tools]) -> None:
    for boot in range(20, 30):
        before = stage.core.record.incarnation
        for epoch in (before.epoch + 1, before.epoch + 2):
            effects = stage.learn("me", epoch=epoch, boot=boot)
            if boot - 20 < MAX_TWINS_OUTBID and epoch == before.epoch + 1:
                assert tools.emits(effects) == [("member.conflict", stage.id)]
                assert stage.core.record.incarnation == (epoch, 1)
            else:
                assert effects == []


def test_of_two_records_of_one_incarnation_all_nodes_keep_the_same(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn("a", boot=5)
    stage.hear("a", SUSPECT)
    assert tools.emits(stage.learn("a", boot=6)) == [("member.conflict", tools.id("a"))]
    assert stage.learn("a", boot=4) == []
    assert stage.core.members[tools.id("a")].record.boot == 6
    assert stage.state("a") is SUSPECT


@pytest.mark.parametrize("state", [DEAD, LEFT])
def test_the_dead_that_it_never_knew_are_not_asked_for(stage: Stage, state: NodeState) -> None:
    stage.link("gossip")
    assert stage.hear("a", state) == []


def test_a_record_is_asked_of_its_teller_then_of_others_and_then_left_to_anti_entropy(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.link("gossip")
    (start,) = stage.hear("a", ALIVE)
    assert isinstance(start, StartTimer)
    assert start.delay_s == pytest.approx(0.2)
    assert stage.hear("a", ALIVE) == [], "it is wanted already"
    tried = [stage.asked(after_s) for after_s in (0.2, 0.9, 0.1, 1.0, 1.0, 1.0)]
    request = (tools.id("gossip"), RecordRequest((tools.raw("a"),)))
    assert tried == [[request], [], [request], [request], [], []]
    assert stage.hear("a", ALIVE), "a new rumour makes it wanted again"


def test_a_rumour_of_a_later_incarnation_is_a_reason_to_ask_again(stage: Stage) -> None:
    stage.link("gossip")
    stage.hear("a", ALIVE)
    assert len(stage.asked()) == 1
    stage.hear("a", ALIVE, counter=1)
    assert len(stage.asked()) == 1


def test_a_record_that_came_by_itself_is_not_asked_for(stage: Stage) -> None:
    stage.link("gossip")
    stage.hear("a", ALIVE)
    stage.learn("a")
    assert stage.asked() == []


def test_a_record_is_asked_of_its_subject_or_anyone_if_the_teller_has_no_link(
    stage: Stage, tools: type[Tools]
) -> None:
    assert stage.hear("a", ALIVE) == [], "no link at all: anti-entropy will bring it"
    stage.link("b")
    stage.hear("a", ALIVE)
    assert stage.asked()[0][0] == tools.id("b")
    stage.link("a")
    stage.hear("a", ALIVE, counter=1)
    assert stage.asked()[0][0] == tools.id("a")


def test_all_records_that_one_peer_is_asked_for_go_in_one_note(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.link("gossip")
    for name in ("a", "b", "c"):
        stage.hear(name, ALIVE)
    ((_, request),) = stage.asked()
    assert request == RecordRequest(tuple(map(tools.raw, ("a", "b", "c"))))


def test_records_asked_for_are_bounded_and_forgotten(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "MAX_RECORDS_AWAITED", 2)
    stage.link("gossip")
    for name in ("a", "b", "c"):
        stage.hear(name, ALIVE)
    assert [len(message.subjects) for _, message in stage.asked()] == [2]
    stage.unlink("gossip")
    assert stage.asked(1.0) == []
    stage.link("gossip")
    stage.hear("c", ALIVE)
    assert [len(message.subjects) for _, message in stage.asked()] == [1]


def test_a_full_table_forgets_the_longest_dead_and_else_takes_nobody(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.core._table._limit = 4
    stage.learn("a", "b", "c")
    assert tools.emits(stage.learn("d")) == [("member.refused", tools.id("d"))]
    for name in ("b", "a"):
        stage.now += 1.0
        stage.hear(name, DEAD)
    assert tools.emits(stage.learn("d")) == [("member.alive", tools.id("d"))]
    assert stage.state("b") is None
    assert stage.state("a") is DEAD


def test_a_suspicion_is_over_when_its_time_is_and_not_in_another_incarnation(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn("a")
    (timer,) = tools.timers(stage.hear("a", SUSPECT), SuspicionExpired)
    assert timer.due - stage.now == 3.0
    stage.learn("a", counter=1)
    assert stage.fire(timer, 3.0) == []
    (timer,) = tools.timers(stage.hear("a", SUSPECT, counter=1), SuspicionExpired)
    assert ("member.dead", tools.id("a")) in tools.emits(stage.fire(timer, 3.0))
    assert stage.fire(timer) == []


def test_a_suspicion_that_ends_late_begins_again_for_this_node_slept(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn("a")
    (timer,) = tools.timers(stage.hear("a", SUSPECT), SuspicionExpired)
    effects = stage.fire(timer, 9.0)
    (again,) = tools.timers(effects, SuspicionExpired)
    assert again.due == stage.now + 3.0
    assert stage.state("a") is SUSPECT
    assert stage.core.health == 1


def test_since_moves_with_the_state_only(stage: Stage, tools: type[Tools]) -> None:
    stage.learn("a")
    joined = stage.now
    stage.now += 5.0
    stage.learn("a", counter=1)
    assert stage.core.members[tools.id("a")].since == joined
    stage.hear("a", DEAD, counter=1)
    assert stage.core.members[tools.id("a")].since == stage.now


def test_a_leave_of_its_own_that_it_did_not_make_is_outbid_if_its_key_signed_it(
    stage: Stage, tools: type[Tools]
) -> None:
    effects = stage.hear("me", LEFT, epoch=9, counter=4)
    assert tools.emits(effects) == [("member.conflict", stage.id)]
    assert stage.core.record.incarnation == (9, 5)
    assert not stage.core.left
    stage.link("a")
    stage.hear("me", LEFT, sender="a", epoch=10**6, signed_by="a")  # anyone may say anything
    assert stage.core.record.incarnation == (9, 5)


def test_a_proof_is_kept_to_pass_on(stage: Stage, tools: type[Tools]) -> None:
    stage.learn("a")
    stage.hear("a", LEFT)
    (_, answer), *_ = tools.messages(stage.note("b", RecordRequest((tools.raw("a"),) * 2)))
    key = tools.record("a").public_key
    proof = tools.sign(key, leave_bytes(key, Incarnation(1, 0)))
    assert answer.rumours == (Rumour(tools.raw("a"), 1, 0, 3, b"", proof),)
    assert tools.carried(answer) == (tools.record("a"),)


def test_a_table_tells_its_state(make_record: Callable[..., MemberRecord]) -> None:
    table = MemberTable(make_record("me"), 0.0)
    table.put(make_record("a"), SUSPECT, 0.0)
    assert repr(table) == "<MemberTable 1 alive, 1 suspect, 0 dead, 0 left>"
    assert len(table) == table.size == 2


def test_a_core_tells_its_state(stage: Stage) -> None:
    assert repr(stage.core).startswith(f"<Membership of {stage.id} 1.0 alive: <MemberTable 1 alive")
    assert "MemberTable" in repr(stage.core._beliefs)
    assert repr(stage.core._outbox) == "<Outbox <RumourQueue []>>"
    assert repr(stage.core._prober) == "<Prober probing [], 0 relays, 0 to go>"
    assert repr(stage.core._dialler) == "<Dialler 0 of 0 attempts under way>"
