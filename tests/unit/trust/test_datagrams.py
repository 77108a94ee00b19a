from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import TooLarge
from meshnode.limits import MAX_DATAGRAM_BYTES, MAX_FORMER_BOOTS
from meshnode.trust.datagrams import (
    MAX_PAYLOAD_BYTES,
    OVERHEAD_BYTES,
    WINDOW_DATAGRAMS,
    DatagramError,
    DatagramSeal,
    DropReason,
)
from meshnode.trust.identity import Identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.types import NodeId


def key(name: str) -> Identity:
    return Identity(hashlib.sha256(name.encode()).digest())


A, B, C = key("a"), key("b"), key("c")
KEYS = {identity.node_id: identity.public_key for identity in (A, B, C)}
BOOTS = {A: 11, B: 2**64 - 1, C: 33}


def meet(identity: Identity, *peers: Identity, boot: int | None = None) -> DatagramSeal:
    """A node's seal after hellos with these peers."""
    seal = DatagramSeal(identity, BOOTS[identity] if boot is None else boot)
    for peer in peers:
        assert seal.set_peer_boot(peer.node_id, BOOTS[peer])
    return seal


def send(sender: DatagramSeal, to: Identity, payload: bytes = b"payload") -> bytes:
    return sender.seal(to.node_id, to.public_key, payload)


def dropped(receiver: DatagramSeal, datagram: bytes) -> DropReason:
    with pytest.raises(DatagramError) as caught:
        receiver.open(datagram, KEYS.get)
    return caught.value.reason


@pytest.mark.parametrize("size", [0, 1, MAX_PAYLOAD_BYTES])
def test_a_datagram_arrives_as_it_was_sent(size: int) -> None:
    a, b = meet(A, B), meet(B, A)
    datagram = send(a, B, b"x" * size)
    assert len(datagram) == size + OVERHEAD_BYTES <= MAX_DATAGRAM_BYTES
    assert b.open(datagram, KEYS.get) == (A.node_id, b"x" * size)
    assert a.open(send(b, A, b"back"), KEYS.get) == (B.node_id, b"back")


def test_the_largest_payload_fills_a_datagram_and_more_is_refused() -> None:
    a = meet(A, B)
    assert len(send(a, B, bytes(MAX_PAYLOAD_BYTES))) == MAX_DATAGRAM_BYTES
    with pytest.raises(TooLarge, match=str(MAX_PAYLOAD_BYTES)):
        send(a, B, bytes(MAX_PAYLOAD_BYTES + 1))


def test_nothing_of_the_payload_can_be_read_and_nothing_repeats() -> None:
    a = meet(A, B)
    one, two = send(a, B, b"a secret payload"), send(a, B, b"a secret payload")
    assert b"secret" not in one
    assert one[-32:] != two[-32:]


def test_a_replayed_datagram_is_dropped() -> None:
    a, b = meet(A, B), meet(B, A)
    datagram = send(a, B)
    b.open(datagram, KEYS.get)
    assert dropped(b, datagram) is DropReason.REPLAYED
    b.open(send(a, B), KEYS.get)
    assert dropped(b, datagram) is DropReason.REPLAYED


def test_datagrams_may_overtake_each_other_within_the_window() -> None:
    a, b = meet(A, B), meet(B, A)
    datagrams = [send(a, B, str(n).encode()) for n in range(WINDOW_DATAGRAMS + 1)]
    b.open(datagrams[-1], KEYS.get)
    assert dropped(b, datagrams[0]) is DropReason.REPLAYED
    for datagram in datagrams[1:-1]:
        b.open(datagram, KEYS.get)
    for datagram in datagrams:
        assert dropped(b, datagram) is DropReason.REPLAYED


@given(st.lists(st.integers(0, 200), max_size=80))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_datagram_opens_at_most_once_and_a_fresh_one_always(order: list[int]) -> None:
    """Against a plain model: open iff never opened and less than a window behind the newest."""
    a, b = meet(A, B), meet(B, A)
    datagrams = [send(a, B, str(n).encode()) for n in range(201)]
    opened: set[int] = set()
    for number in order:
        if number not in opened and number > max(opened, default=-1) - WINDOW_DATAGRAMS:
            assert b.open(datagrams[number], KEYS.get)[1] == str(number).encode()
            opened.add(number)
        else:
            assert dropped(b, datagrams[number]) is DropReason.REPLAYED


def test_a_forged_counter_does_not_move_the_window() -> None:
    a, b = meet(A, B), meet(B, A)
    datagram = bytearray(send(a, B))
    datagram[29:37] = (2**64 - 1).to_bytes(8, "big")
    assert dropped(b, bytes(datagram)) is DropReason.FORGED
    b.open(send(a, B), KEYS.get)


def test_changing_any_byte_drops_the_datagram() -> None:
    a, b = meet(A, B), meet(B, A)
    datagram = send(a, B)
    for position in range(len(datagram)):
        changed = bytearray(datagram)
        changed[position] ^= 0x01
        dropped(b, bytes(changed))
    b.open(datagram, KEYS.get)


@pytest.mark.parametrize("size", [0, 1, OVERHEAD_BYTES - 1, MAX_DATAGRAM_BYTES + 1])
def test_a_size_that_cannot_be_is_malformed(size: int) -> None:
    assert dropped(meet(B, A), b"\x01" * size) is DropReason.MALFORMED


@given(st.binary(min_size=OVERHEAD_BYTES, max_size=MAX_DATAGRAM_BYTES))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_no_bytes_break_the_receiver(data: bytes) -> None:
    b = meet(B, A)
    dropped(b, data)
    dropped(b, send(meet(A, B), B)[:37] + data[:1300])


def test_a_datagram_sent_back_to_its_author_is_dropped() -> None:
    a, b = meet(A, B, A), meet(B, A)
    datagram = send(a, B)
    assert dropped(a, datagram) is DropReason.FORGED
    assert b.open(datagram, KEYS.get)[0] == A.node_id
    # ... also with the sender's name exchanged for the other's, and its boot
    renamed = datagram[:1] + send(b, A)[1:29] + datagram[29:]
    assert dropped(a, renamed) is DropReason.FORGED


def test_a_datagram_for_one_node_opens_at_no_other() -> None:
    a, c = meet(A, B), meet(C, A)
    assert dropped(c, send(a, B)) is DropReason.FORGED


def test_a_datagram_of_one_node_does_not_pass_for_another_s() -> None:
    a, c, b = meet(A, B), meet(C, B), meet(B, A, C)
    datagram = send(a, B)
    as_c = send(c, B)[:29] + datagram[29:]
    assert dropped(b, as_c) is DropReason.FORGED


def test_without_a_hello_a_node_is_silent() -> None:
    a, b = DatagramSeal(A, BOOTS[A]), DatagramSeal(B, BOOTS[B])
    with pytest.raises(DatagramError) as caught:
        send(a, B)
    assert caught.value.reason is DropReason.NO_SESSION
    assert dropped(b, send(meet(A, B), B)) is DropReason.NO_SESSION


def test_who_is_no_member_any_more_is_dropped() -> None:
    a, b = meet(A, B), meet(B, A)
    with pytest.raises(DatagramError) as caught:
        b.open(send(a, B), lambda _: None)
    assert caught.value.reason is DropReason.UNKNOWN


def test_a_member_whose_key_is_no_point_is_dropped() -> None:
    a, b = meet(A, B), meet(B, A)
    with pytest.raises(DatagramError) as caught:
        a.seal(B.node_id, bytes(32), b"")
    assert caught.value.reason is DropReason.UNKNOWN
    with pytest.raises(DatagramError) as caught:
        b.open(send(a, B), lambda _: bytes(32))
    assert caught.value.reason is DropReason.UNKNOWN


def test_after_the_sender_restarted_its_former_datagrams_are_dropped() -> None:
    a, b = meet(A, B), meet(B, A)
    recorded = [send(a, B) for _ in range(3)][-1]
    assert b.set_peer_boot(A.node_id, 12)
    assert dropped(b, recorded) is DropReason.STALE_BOOT
    restarted = meet(A, B, boot=12)
    assert b.open(send(restarted, B, b"new run"), KEYS.get) == (A.node_id, b"new run")
    # with the new boot written into the old datagram
    renamed = recorded[:21] + (12).to_bytes(8, "big") + recorded[29:]
    assert dropped(b, renamed) is DropReason.FORGED


def test_a_restarted_sender_is_heard_only_after_its_hello() -> None:
    b = meet(B, A)
    assert dropped(b, send(meet(A, B, boot=12), B)) is DropReason.STALE_BOOT


def test_after_the_receiver_restarted_former_datagrams_are_dropped() -> None:
    """Its window is empty again, but its new boot makes other keys."""
    recorded = send(meet(A, B), B)
    restarted = meet(B, A, boot=99)
    assert dropped(restarted, recorded) is DropReason.FORGED


def test_the_same_boot_again_keeps_the_window() -> None:
    a, b = meet(A, B), meet(B, A)
    datagram = send(a, B)
    b.open(datagram, KEYS.get)
    assert b.set_peer_boot(A.node_id, BOOTS[A])
    assert dropped(b, datagram) is DropReason.REPLAYED


def test_a_former_boot_does_not_come_back() -> None:
    a, b = meet(A, B), meet(B, A)
    datagram = send(a, B)
    b.open(datagram, KEYS.get)
    assert b.set_peer_boot(A.node_id, 12)
    assert not b.set_peer_boot(A.node_id, BOOTS[A])
    assert dropped(b, datagram) is DropReason.STALE_BOOT


def test_a_record_tells_the_boot_where_there_is_no_link() -> None:
    a, b = DatagramSeal(A, BOOTS[A]), DatagramSeal(B, BOOTS[B])
    assert a.follow_record(B.node_id, BOOTS[B])
    assert b.follow_record(A.node_id, BOOTS[A])
    assert b.open(send(a, B, b"no hello"), KEYS.get) == (A.node_id, b"no hello")


def test_a_newest_record_may_bring_a_former_boot_back_and_with_it_the_window() -> None:
    """Of two processes with one key the earlier outlives the later: nothing of it opens twice."""
    a, b = meet(A, B), meet(B, A)
    recorded = [send(a, B) for _ in range(3)]
    b.open(recorded[1], KEYS.get)
    assert b.follow_record(A.node_id, 12)
    assert dropped(b, send(a, B)) is DropReason.STALE_BOOT
    before = send(b, A)
    assert b.follow_record(A.node_id, BOOTS[A])
    assert dropped(b, recorded[1]) is DropReason.REPLAYED
    b.open(recorded[2], KEYS.get)
    after = send(b, A)
    assert int.from_bytes(after[29:37], "big") > int.from_bytes(before[29:37], "big")
    assert a.open(after, KEYS.get)[0] == B.node_id


def test_the_claimed_sender_needs_a_member_s_present_boot() -> None:
    a, b = meet(A, B), meet(B, A)
    datagram = send(a, B)
    assert b.claimed_sender(datagram) == A.node_id
    assert b.claimed_sender(datagram[:21] + bytes(8) + datagram[29:]) is None
    assert b.claimed_sender(datagram[:1] + bytes(20) + datagram[21:]) is None
    assert b.claimed_sender(b"short") is None


def test_no_key_meets_a_nonce_twice_even_when_a_boot_was_forgotten() -> None:
    a = meet(A, B)
    first = send(a, B)
    for boot in range(MAX_FORMER_BOOTS + 1):
        assert a.set_peer_boot(B.node_id, boot)
    assert a.set_peer_boot(B.node_id, BOOTS[B])
    second = send(a, B)
    assert first[29:37] != second[29:37]


def test_there_is_room_for_a_bounded_number_of_peers() -> None:
    a = DatagramSeal(A, 1, max_peers=1)
    assert a.set_peer_boot(B.node_id, 1)
    assert not a.set_peer_boot(C.node_id, 1)
    assert a.set_peer_boot(B.node_id, 2)
    assert repr(a) == f"<DatagramSeal of {A.node_id}: 1 peers>"


def test_an_error_says_what_to_count() -> None:
    opener: Callable[[bytes, Callable[[NodeId], bytes | None]], object] = meet(B).open
    with pytest.raises(DatagramError, match="a datagram was dropped: malformed"):
        opener(b"", KEYS.get)
