"""What nodes were told, in words: no ids, no reprs, no half words."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from meshnode.events import DialFailed, Event, Leave, LinkDown, LinkUp, Start, TimerFired
from meshnode.node_events import CapabilitiesChanged, ReplicaGone
from meshnode.reconcile_loop import ReconcileDue
from meshnode.sim import Load, Model, Region, World, faults
from meshnode.sim.running.timeline import timeline
from meshnode.sim.step_words import MAX_VALUE_LENGTH, kind_of, words
from meshnode.stewardship import StewardDue
from meshnode.types import Address, NodeId

PEER = NodeId("6ujkh2db" * 4)
PLACE = Address("10.0.0.3", 8471)


@dataclass(frozen=True, slots=True)
class SomethingNew(Event):
    """An event that has no sentence of its own."""

    peer_name: str
    payload: bytes


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (Start(), "starts"),
        (Leave(), "is told to leave"),
        (LinkUp(PEER, PLACE), f"has a link to {PEER} at 10.0.0.3:8471"),
        (LinkDown(PEER, "stalled"), f"loses its link to {PEER}: stalled"),
        (
            DialFailed((PLACE, PLACE), None, "refused"),
            "cannot reach a node at 10.0.0.3:8471 and 1 other addresses: refused",
        ),
        (DialFailed((), PEER, "late"), f"cannot reach {PEER} at no address: late"),
        (ReplicaGone("m", 2), "m version 2 is gone"),
        (CapabilitiesChanged({"cpus": 4}), "tells anew what it has"),
        (TimerFired(ReconcileDue(1.0)), "looks which models should run here"),
        (TimerFired(StewardDue()), "looks at the models of which it decides the replicas"),
        (SomethingNew("eu-1", b"\0" * 99), "something new (peer name eu-1)"),
    ],
)
def test_each_event_is_a_sentence(event: Event, said: str) -> None:
    assert words(event) == said


def test_alike_events_have_one_kind() -> None:
    assert kind_of(LinkDown(PEER, "stalled")) == kind_of(LinkDown(PEER, "reset")) == "link down"
    assert kind_of(TimerFired(ReconcileDue(1.0))) == "reconcile due"


def test_a_long_reason_is_cut_after_a_word() -> None:
    said = words(LinkDown(PEER, "because of something " * 20))
    assert re.search(r"(because|of|something) \.\.\.$", said)
    assert len(said) < MAX_VALUE_LENGTH + 80


def test_the_timeline_of_a_world_has_names_and_sentences_only() -> None:
    with World(
        [Region("eu-west", nodes=3), Region("tokyo")], [Model(name="m")], depth="A"
    ) as world:
        world.start()
        world.load(Load(model="m", rate_per_s=3), for_s=5.0)
        world.apply(faults.Partition(nodes=("tokyo",), for_s=12.0))
        world.at(1.0, faults.Crash(nodes=("eu-west-3",)))
        world.at(2.0, faults.Release(model="m"))
        world.run_for(20.0)
        result = world.result()
        lines = timeline(result, last_s=20.0)
    assert any("loses its link to eu-west-3" in line for line in lines)
    assert not [line for line in lines if re.search(r"[a-z2-7]{32}|[A-Z][a-z]+\(|='|<", line)]
