"""What a node keeps of deleted deployments, and what it tells of changes that were overwritten unseen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from meshnode import drafts
from meshnode.effects import Emit
from meshnode.errors import ModelNotFound
from meshnode.events import NoteReceived
from meshnode.state.deployment import Deployment, Origin
from meshnode.state.deployment_history import revision_id, revisions
from meshnode.state.desired_messages import DESIRED, DesiredEntries, Entry
from meshnode.state.hybrid_clock import Stamp
from tests.unit.node.test_node import DIGITS, WALL_S, Stage

if TYPE_CHECKING:
    from meshnode.effects import Effect


def told(effects: list[Effect]) -> list[str]:
    return [
        each.detail
        for each in effects
        if isinstance(each, Emit) and each.kind == "deployment.overwritten"
    ]


def test_a_deleted_deployment_is_none_but_its_history_stays() -> None:
    stage = Stage()
    stage.deploy(DIGITS)
    stage.undeploy("digits", WALL_S + 1.0)
    assert stage.node.deployment("digits") is None
    assert stage.node.deployments() == []
    with pytest.raises(ModelNotFound):
        stage.undeploy("digits", WALL_S + 2.0)
    assert [each.removes for each in revisions(stage.node.desired, "digits")] == [True, False]
    assert told(stage.deploy(DIGITS, replicas=2)) == []
    assert [each.removes for each in revisions(stage.node.desired, "digits")] == [
        False, True, False,
    ]  # fmt: skip


def test_of_too_many_deleted_deployments_the_oldest_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drafts, "MAX_REMOVED_DEPLOYMENTS", 3)
    stage = Stage()
    names = [f"model-{at}" for at in range(6)]
    for at, name in enumerate(names):
        stage.now = 10.0 * at
        stage.deploy(msgspec.structs.replace(DIGITS, model=name))
        stage.undeploy(name, WALL_S + stage.now + 1.0)
    kept = [name for name in names if revisions(stage.node.desired, name)[1:]]
    assert kept == names[3:]


def test_each_revision_says_which_one_it_was_made_from() -> None:
    stage = Stage()
    for at in range(3):
        stage.now = float(at)
        assert told(stage.deploy(DIGITS, replicas=at + 1)) == []
    kept = revisions(stage.node.desired, "digits")
    assert [each.origin.base for each in kept] == [kept[1].id, kept[2].id, "none"]


def written(stage: Stage, at_s: float, base: str, replicas: int) -> Entry:
    """Return a revision that the peer signs."""
    deployment = Deployment("digits", (DIGITS,), replicas, origin=Origin(base, "key ci (k)"))
    stamp = Stamp(int((WALL_S + at_s) * 1000), 0)
    entry = Entry(deployment.key, stamp, stage.peer_id, deployment.encode())
    signed = stage.peer.authority.bound(entry.signed_bytes)
    return msgspec.structs.replace(entry, signature=stage.peer.identity.sign(signed))


def heard(stage: Stage, *entries: Entry) -> list[str]:
    note = NoteReceived(stage.peer_id, DESIRED.encode(DesiredEntries(entries)))
    return told(stage.tell(note))


def test_a_change_that_comes_late_and_one_that_wins_are_told_once_with_who_made_them() -> None:
    stage = Stage()
    stage.peer_joins()
    stage.deploy(DIGITS)
    (first,) = revisions(stage.node.desired, "digits")
    stage.now = 5.0
    stage.deploy(DIGITS, replicas=2)
    late = written(stage, 3.0, first.id, 3)
    (sentence,) = heard(stage, late)
    assert sentence.startswith(
        f"revision {revision_id(late)} by key ci (k) on peer was overwritten"
    )
    assert sentence.endswith("by me")
    assert heard(stage, late) == []
    winner = written(stage, 9.0, first.id, 4)
    (sentence,) = heard(stage, winner)
    assert f"by revision {revision_id(winner)} by key ci (k) on peer" in sentence
    stage.now = 12.0
    assert told(stage.deploy(DIGITS, replicas=5)) == []


def test_a_node_that_has_just_joined_is_told_nothing_of_old_quarrels() -> None:
    stage = Stage()
    stage.peer_joins()
    one = written(stage, 1.0, "none", 1)
    two = written(stage, 2.0, revision_id(one), 2)
    three = written(stage, 3.0, revision_id(one), 3)
    assert heard(stage, three, two, one) == []
