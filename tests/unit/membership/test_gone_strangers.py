"""Word of members that are gone, to a node that has forgotten them or never met them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest

from meshnode.limits import MAX_META_BYTES
from meshnode.membership import LAN, antientropy
from meshnode.membership.messages import (
    CODEC,
    STATE_CODES,
    Incarnation,
    RecordRequest,
    Records,
    Rumour,
    leave_bytes,
)
from meshnode.membership.timers import PushRound, SyncRound
from meshnode.types import NodeState

if TYPE_CHECKING:
    from meshnode.membership import MemberRecord
    from tests.unit.membership.conftest import Stage, Tools

ALIVE, SUSPECT, DEAD, LEFT = NodeState


def word(tools: type[Tools], record: MemberRecord, state: NodeState) -> Rumour:
    """Return what is said of a record's subject in its incarnation; a leave with its proof."""
    proof = b""
    if state is LEFT:
        claim = leave_bytes(record.public_key, Incarnation(record.epoch, record.counter))
        proof = tools.sign(record.public_key, claim)
    code = STATE_CODES.index(state)
    return Rumour(tools.raw(record.name), record.epoch, record.counter, code, b"", proof)


def told(tools: type[Tools], record: MemberRecord, state: NodeState) -> Records:
    """Return the message of one who holds this record and this state of its subject."""
    return Records((msgspec.Raw(CODEC.encode(record)),), (word(tools, record, state),))


@pytest.mark.parametrize("state", [DEAD, LEFT])
def test_a_stranger_that_is_gone_by_the_time_its_record_comes_is_not_taken(
    stage: Stage, tools: type[Tools], state: NodeState
) -> None:
    stage.link("woken")
    stage.hear("a", SUSPECT, sender="woken")
    ((to, request),) = stage.asked()
    assert (to, request) == (tools.id("woken"), RecordRequest((tools.raw("a"),)))
    assert stage.note("woken", told(tools, tools.record("a"), state)) == []
    assert stage.state("a") is None
    assert stage.asked(1.0) == [], "nobody is asked again"


@pytest.mark.parametrize("state", [DEAD, LEFT])
def test_one_that_the_table_has_forgotten_comes_back_by_a_later_life_alone(
    tools: type[Tools], state: NodeState
) -> None:
    stage = tools.stage(config=replace(LAN, retention_s=120.0))
    stage.learn("other", "a")
    stage.hear("a", state)
    stage.fire(SyncRound(), 121.0)
    assert stage.state("a") is None
    assert tools.emits(stage.note("woken", told(tools, tools.record("a"), state))) == []
    assert stage.state("a") is None
    later = tools.record("a", epoch=2)
    effects = stage.note("woken", tools.records(later))
    assert tools.emits(effects) == [("member.alive", tools.id("a"))]


@pytest.mark.parametrize("state", [DEAD, LEFT])
def test_a_stranger_of_whose_end_it_hears_is_asked_for_no_more(
    stage: Stage, tools: type[Tools], state: NodeState
) -> None:
    stage.link("gossip")
    stage.hear("a", SUSPECT, counter=1)
    stage.hear("a", state)
    ((_, request),) = stage.asked()
    assert request == RecordRequest((tools.raw("a"),)), "its end was that of an earlier claim"
    stage.hear("a", state, counter=1)
    assert stage.asked(1.0) == []


def test_a_stranger_that_is_suspected_is_taken(stage: Stage, tools: type[Tools]) -> None:
    effects = stage.note("x", told(tools, tools.record("a"), SUSPECT))
    assert [kind for kind, _ in tools.emits(effects)] == ["member.alive", "member.suspect"]
    assert stage.state("a") is SUSPECT


@pytest.mark.parametrize("held", [DEAD, LEFT])
@pytest.mark.parametrize("state", [DEAD, LEFT])
def test_the_end_of_a_life_that_passed_unseen_is_held_and_told_to_nobody(
    stage: Stage, tools: type[Tools], held: NodeState, state: NodeState
) -> None:
    stage.link("b")
    stage.learn("a")
    stage.hear("a", held)
    stage.fire(PushRound(), 1.0)
    later = tools.record("a", epoch=2)
    effects = stage.note("x", told(tools, later, state))
    assert tools.emits(effects) == []
    assert stage.core.members[tools.id("a")].record == later
    assert stage.state("a") is state
    ((_, pushed),) = tools.messages(stage.fire(PushRound(), 1.0))
    assert pushed.rumours == (word(tools, later, state),), "who still holds it for alive is told"


def test_a_forged_record_of_one_that_is_gone_is_refused(stage: Stage, tools: type[Tools]) -> None:
    stage.learn("a")
    stage.hear("a", DEAD)
    forged = msgspec.structs.replace(tools.record("a"), epoch=2)
    effects = stage.note("x", told(tools, forged, DEAD))
    assert tools.emits(effects) == [("member.refused", tools.id("a"))]
    assert stage.core.members[tools.id("a")].record.epoch == 1


def test_a_member_that_lives_here_dies_with_its_later_record(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn("a")
    effects = stage.note("x", told(tools, tools.record("a", counter=1), DEAD))
    assert [kind for kind, _ in tools.emits(effects)] == ["member.updated", "member.dead"]
    assert stage.state("a") is DEAD


def test_a_twin_s_record_of_one_that_is_gone_is_passed_on_with_that_word(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.link("b")
    stage.learn("a", boot=5)
    stage.hear("a", DEAD)
    stage.fire(PushRound(), 1.0)
    twin = tools.record("a", boot=6)
    stage.note("x", tools.records(twin))
    ((_, pushed),) = tools.messages(stage.fire(PushRound(), 1.0))
    assert pushed == told(tools, twin, DEAD)


def test_a_record_and_what_is_said_of_its_subject_come_in_one_note(tools: type[Tools]) -> None:
    records = [tools.record(f"m{number}", chain=b"x" * 16_000) for number in range(9)]
    rumours = [word(tools, record, DEAD) for record in records]
    notes = antientropy.pack(records, rumours)
    assert max(map(len, notes)) <= MAX_META_BYTES
    unpacked = [tools.decode(note) for note in notes]
    assert len(unpacked) == 3
    for note in unpacked:
        names = [record.name for record in tools.carried(note)]
        assert [rumour.subject for rumour in note.rumours] == [tools.raw(name) for name in names]
