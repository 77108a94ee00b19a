"""Two links in virtual time: pings, stalls, silence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshnode.errors import LinkLost
from meshnode.wire.frames import PONG, token_frame
from meshnode.wire.link import (
    Dead,
    Link,
    LinkConfig,
    LinkEvent,
    Recovered,
    RttMeasured,
    Stalled,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Pump = Callable[..., tuple[list[LinkEvent], list[LinkEvent]]]


def pair() -> tuple[Link, Link]:
    config = LinkConfig()
    return (
        Link(dialler=True, config=config, now=0.0),
        Link(dialler=False, config=config, now=0.0),
    )


def run_alone(link: Link, start: float, until: float) -> list[tuple[float, LinkEvent]]:
    """Tick a link exactly when it asks, with a peer that says nothing."""
    told: list[tuple[float, LinkEvent]] = []
    now = start
    while (due := link.next_tick(now)) is not None and due <= until:
        now = max(now, due)
        told += [(now, event) for event in link.tick(now)]
        link.take_output()
    return told


def test_a_ping_measures_the_round_trip_time(pump: Pump) -> None:
    dialler, acceptor = pair()
    assert "rtt=unknown" in repr(dialler)
    assert dialler.tick(0.0) == []
    acceptor.receive(b"".join(dialler.take_output()), 0.02)
    told = dialler.receive(b"".join(acceptor.take_output()), 0.04)
    assert told == [RttMeasured(0.04)]
    assert dialler.rtt_s == 0.04
    assert dialler.receive(token_frame(PONG, 77), 0.05) == []


def test_two_idle_links_ping_each_other_for_ever_and_nothing_happens(pump: Pump) -> None:
    dialler, acceptor = pair()
    told: list[LinkEvent] = []
    for step in range(120):
        now = step * 0.5
        told += dialler.tick(now) + acceptor.tick(now)
        for events in pump(dialler, acceptor, now + 0.01):
            told += events
    assert set(map(type, told)) == {RttMeasured}
    # Eight by each side in the first quarter of the minute; then four by one side, eight seconds
    # apart, and one by the other, which wants a round-trip time of its own.
    assert len(told) == 2 * 8 + 4 + 1
    assert dialler.rtt_s == pytest.approx(0.01)


def test_a_frozen_peer_is_found_within_a_second_of_silence(pump: Pump) -> None:
    dialler, acceptor = pair()
    dialler.tick(0.0)
    pump(dialler, acceptor, 0.01)
    stream = dialler.open_stream(b"request")
    pump(dialler, acceptor, 0.02)
    assert run_alone(dialler, 0.02, 5.0) == [(1.01, Stalled())]
    assert "stalled" in repr(dialler)
    with pytest.raises(LinkLost, match="does not answer"):
        dialler.open_stream(b"another")
    acceptor.send(stream, b"answer after all", end=True)
    told, _ = pump(dialler, acceptor, 6.0)
    assert told[0] == Recovered()
    assert len(told) == 2
    assert not dialler.stalled
    dialler.open_stream(b"another")


def test_a_quiet_link_finds_a_frozen_peer_sooner_because_its_silence_is_old(pump: Pump) -> None:
    dialler, acceptor = pair()
    dialler.tick(0.0)
    pump(dialler, acceptor, 0.01)
    dialler.open_stream(b"request")
    assert run_alone(dialler, 1.5, 3.0) == [(2.25, Stalled())]


def test_a_peer_that_is_only_busy_is_never_stalled(pump: Pump) -> None:
    """The inference takes four seconds; its node answers pings meanwhile."""
    dialler, acceptor = pair()
    stream = dialler.open_stream(b"request")
    told: list[LinkEvent] = []
    for step in range(40):
        now = step * 0.1
        told += dialler.tick(now)
        told += pump(dialler, acceptor, now)[0]
    acceptor.send(stream, b"answer", end=True)
    pump(dialler, acceptor, 4.0)
    assert set(map(type, told)) == {RttMeasured}
    assert len(told) > 10


def test_the_side_that_owes_the_answer_expects_nothing(pump: Pump) -> None:
    dialler, acceptor = pair()
    dialler.open_stream(b"request")
    pump(dialler, acceptor, 0.0)
    assert [acceptor.tick(now) for now in (0.0, 0.3, 0.6, 1.4)] == [[], [], [], []]
    assert run_alone(acceptor, 1.4, 14.0) == []


def test_a_connection_without_a_byte_for_fifteen_seconds_is_dead(pump: Pump) -> None:
    dialler, acceptor = pair()
    dialler.send_note(b"hello")
    pump(dialler, acceptor, 1.0)
    assert run_alone(acceptor, 1.0, 100.0) == [(16.0, Dead())]
    assert acceptor.next_tick(17.0) is None
    assert acceptor.tick(17.0) == []


def test_a_stalled_connection_dies_too(pump: Pump) -> None:
    dialler, _ = pair()
    dialler.open_stream(b"request")
    told = run_alone(dialler, 0.0, 100.0)
    assert [event for _, event in told] == [Stalled(), Dead()]


def test_a_late_tick_blames_nobody(pump: Pump) -> None:
    """The process is suspended for an hour in the middle of a request."""
    dialler, acceptor = pair()
    dialler.open_stream(b"request")
    pump(dialler, acceptor, 0.0)
    dialler.next_tick(0.0)
    assert dialler.tick(3600.0) == []
    assert dialler.next_tick(3600.0) == 3600.25
    pump(dialler, acceptor, 3600.1)
    assert not dialler.stalled


def test_a_streams_end_ends_the_watch(pump: Pump) -> None:
    dialler, acceptor = pair()
    dialler.tick(0.0)
    pump(dialler, acceptor, 0.0)
    stream = dialler.open_stream(b"request")
    pump(dialler, acceptor, 0.0)
    assert dialler.next_tick(0.0) == 0.25
    dialler.reset(stream)
    assert dialler.next_tick(0.0) == 2.0
