"""Cases 20, 21, 22 and 25: how often, how large and how much is said."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import msgspec
import pytest

from meshnode.errors import TooLarge
from meshnode.limits import MAX_DATAGRAM_BYTES
from meshnode.membership.messages import CODEC, Incarnation, Rumour, unpack_id
from meshnode.trust.datagrams import OVERHEAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.sim.virtual_fleet import SimFleet

    Record = Callable[[str, object], None]
    MakeFleet = Callable[..., SimFleet]


def rumours_of(payload: bytes) -> tuple[Rumour, ...]:
    return tuple(getattr(CODEC.decode(payload), "rumours", ()))


@pytest.mark.parametrize("loss", [0.0, 0.3])
@pytest.mark.sizes(10, 40, soak=(100,))
def test_case_20_nobody_tells_a_rumour_oftener_than_the_limit_nor_one_that_is_overtaken(
    make_fleet: MakeFleet, seed: int, count: int, loss: float, record_property: Record
) -> None:
    """Who is accused itself is told so besides, as often as it is spoken to."""
    fleet = make_fleet(seed)
    names = fleet.settled(count)
    fleet.set_loss(loss)
    by_id = {fleet.record(name).node_id: name for name in names}
    told: Counter[tuple[str, Rumour]] = Counter()
    overtaken: list[tuple[str, Rumour]] = []

    def tap(_now: float, sender: str, receiver: str, payload: bytes) -> None:
        for rumour in rumours_of(payload):
            subject = by_id[unpack_id(rumour.subject)]
            if subject == receiver:
                continue
            told[sender, rumour] += 1
            held = fleet.core(sender).members[unpack_id(rumour.subject)]
            if Incarnation(rumour.epoch, rumour.counter) < held.incarnation:
                overtaken.append((sender, rumour))

    fleet.watch(tap)
    for turn in range(6):
        for name in names[1:5]:
            fleet.update(name, labels={"turn": str(turn)})
        fleet.run_for(0.7)
    fleet.crash(names[-1])
    fleet.run_for(60.0)
    limit = fleet.config.retransmit_multiplier * math.ceil(math.log10(count + 1))
    record_property("most_often", max(told.values()))
    assert overtaken == []
    assert max(told.values()) <= limit
    assert max(told.values()) == limit or loss > 0  # the limit is what ends the telling


@pytest.mark.sizes(100, soak=(400,))
@pytest.mark.seeds(1)
def test_case_21_no_datagram_exceeds_1400_bytes_and_a_full_one_leaves_no_room_for_another_rumour(
    make_fleet: MakeFleet, seed: int, count: int
) -> None:
    """A storm: everyone changes its record at once. The fleet checks every datagram's size."""
    fleet = make_fleet(seed)
    names = fleet.settled(count, quiet_s=5.0)
    largest = 0
    left_over: defaultdict[str, list[int]] = defaultdict(list)

    def tap(now: float, sender: str, _receiver: str, payload: bytes) -> None:
        nonlocal largest
        sealed_bytes = len(payload) + OVERHEAD_BYTES
        assert sealed_bytes <= MAX_DATAGRAM_BYTES
        largest = max(largest, sealed_bytes)
        waiting = len(fleet.core(sender)._outbox.rumours)
        carried = rumours_of(payload)
        if waiting > len(carried) > 0:
            greatest = max(len(msgspec.msgpack.encode(rumour)) for rumour in carried)
            left_over[sender].append(fleet.config.max_payload_bytes - len(payload) - greatest)

    fleet.watch(tap)
    for name in names:
        fleet.update(name, region="us")
    fleet.run_for(5.0)
    room = [bytes_ for each in left_over.values() for bytes_ in each]
    assert len(room) > 100
    assert max(room) < 8  # what is counted for the header of a longer list
    assert largest > fleet.config.max_payload_bytes + OVERHEAD_BYTES - 64


@pytest.mark.seeds(1)
@pytest.mark.sizes(3)
def test_case_22_a_record_that_is_too_large_is_refused_where_it_is_written_and_nothing_is_said(
    make_fleet: MakeFleet, seed: int, count: int
) -> None:
    fleet = make_fleet(seed)
    names = fleet.settled(count)
    said: list[str] = []
    before = [fleet.record(name) for name in names]
    fleet.watch(lambda _now, sender, _to, payload: said.extend([sender] * len(rumours_of(payload))))
    with pytest.raises(TooLarge, match="bytes"):
        fleet.update(names[1], capabilities={"text": "x" * 100_000})
    fleet.run_for(10.0)
    assert [fleet.record(name) for name in names] == before
    assert said == []
    assert fleet.events() == []
    with pytest.raises(TooLarge, match="bytes"):
        fleet.add("large", capabilities={"text": "x" * 100_000})


def idle_bytes_per_s(fleet: SimFleet, count: int) -> list[float]:
    names = fleet.settled(count, quiet_s=90.0)
    fleet.run_for(60.0)
    both = [(fleet.traffic(name).bytes_out, fleet.traffic(name).bytes_in) for name in names]
    return [max(pair) / 60.0 for pair in both]


@pytest.mark.seeds(1)
@pytest.mark.sizes(140, soak=(200, 400, 1000))
def test_case_25_a_node_at_rest_says_and_hears_less_than_a_kilobyte_a_second_at_any_size(
    make_fleet: MakeFleet, seed: int, count: int, record_property: Record
) -> None:
    rates = idle_bytes_per_s(make_fleet(seed), count)
    record_property("bytes_per_s", statistics.mean(rates))
    assert statistics.mean(rates) <= 1000.0
    base = statistics.mean(idle_bytes_per_s(make_fleet(seed), 100))
    assert 0.8 * base <= statistics.mean(rates) <= 1.2 * base
