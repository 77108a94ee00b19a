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
    NoteReceived,
    PartReceived,
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


def stall_of(told: list[tuple[float, LinkEvent]]) -> float:
    """Return when a link found its peer stalled, which is all that happened."""
    ((at, event),) = told
    assert event == Stalled()
    return at


def test_a_frozen_peer_is_found_within_a_second_of_silence(pump: Pump) -> None:
    dialler, acceptor = pair()
    dialler.tick(0.0)
    pump(dialler, acceptor, 0.01)
    stream = dialler.open_stream(b"request")
    pump(dialler, acceptor, 0.02)
    assert stall_of(run_alone(dialler, 0.02, 5.0)) == pytest.approx(0.96)
    assert "stalled" in repr(dialler)
    with pytest.raises(LinkLost, match="does not answer"):
        dialler.open_stream(b"another")
    acceptor.send(stream, b"answer after all", end=True)
    told, _ = pump(dialler, acceptor, 6.0)
    assert told[0] == Recovered()
    assert len(told) == 2
    assert not dialler.stalled
    dialler.open_stream(b"another")


def test_a_peer_that_hears_nothing_is_found_as_soon_although_it_goes_on_talking(pump: Pump) -> None:
    """What a network that is broken in one direction lets through: notes and pings, no answers."""
    dialler, acceptor = pair()
    dialler.tick(0.0)
    pump(dialler, acceptor, 0.01)
    dialler.open_stream(b"request")
    assert run_alone(dialler, 0.02, 0.8) == []
    acceptor.send_note(b"gossip")
    acceptor.ping(0.8)
    said = b"".join(acceptor.take_output())
    assert [type(event) for event in dialler.receive(said, 0.8)] == [NoteReceived]
    assert stall_of(run_alone(dialler, 0.8, 5.0)) == pytest.approx(0.96)
    acceptor.send_note(b"more of it")
    assert [type(e) for e in dialler.receive(b"".join(acceptor.take_output()), 5.0)] == [
        NoteReceived
    ]
    assert dialler.stalled


def test_a_peer_whose_large_answer_is_on_its_way_is_not_stalled(pump: Pump) -> None:
    """It cannot answer a ping within a frame, however slowly that comes, and with notes between."""
    dialler, acceptor = pair()
    dialler.tick(0.0)
    pump(dialler, acceptor, 0.01)
    stream = dialler.open_stream(b"request")
    acceptor.receive(b"".join(dialler.take_output()), 0.02)
    acceptor.send(stream, b"answer", [bytes(60_000)], end=True)
    answer = b"".join(acceptor.take_output())
    told: list[LinkEvent] = []
    pieces = 20
    for number in range(pieces):
        now = 0.02 + number * 0.5
        size = len(answer) // pieces + 1
        told += dialler.receive(answer[number * size : (number + 1) * size], now)
        told += [event for _, event in run_alone(dialler, now, now + 0.5)]
    assert [type(event) for event in told] == [PartReceived]


def test_a_quiet_link_finds_a_frozen_peer_sooner_because_its_silence_is_old(pump: Pump) -> None:
    dialler, acceptor = pair()
    dialler.tick(0.0)
    pump(dialler, acceptor, 0.01)
    dialler.open_stream(b"request")
    assert stall_of(run_alone(dialler, 1.5, 3.0)) == pytest.approx(2.2)


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


def test_a_stream_that_its_opener_goes_on_sending_on_owes_no_answer(pump: Pump) -> None:
    dialler, acceptor = pair()
    dialler.tick(0.0)
    pump(dialler, acceptor, 0.01)
    talk = dialler.open_stream(b"let us talk", end=False)
    pump(dialler, acceptor, 0.02)
    assert run_alone(dialler, 0.02, 5.0) == []
    dialler.open_stream(b"a question")
    assert run_alone(dialler, 5.0, 9.0)[0][1] == Stalled()
    acceptor.reset(talk)
    pump(dialler, acceptor, 9.0)
    assert not dialler.stalled
    assert run_alone(dialler, 9.0, 12.0)[0][1] == Stalled(), "the question is still owed"


def test_once_its_opener_has_sent_all_an_answer_is_owed_again(pump: Pump) -> None:
    dialler, acceptor = pair()
    dialler.tick(0.0)
    pump(dialler, acceptor, 0.01)
    talk = dialler.open_stream(b"let us talk", end=False)
    pump(dialler, acceptor, 0.02)
    assert run_alone(dialler, 0.02, 5.0) == []
    dialler.send(talk, b"that is all", end=True)
    assert run_alone(dialler, 5.0, 9.0)[0][1] == Stalled()
