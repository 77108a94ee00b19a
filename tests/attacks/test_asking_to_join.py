"""Strangers that ask to be admitted: floods, guesses, and a machine that answers for both sides."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import NotFound
from meshnode.limits import (
    JOIN_REQUEST_BURST,
    JOIN_REQUEST_REFILL_S,
    JOIN_REQUEST_TTL_S,
    MAX_JOIN_REQUESTS,
    MAX_JOIN_SOURCES,
)
from meshnode.trust.join_requests import JoinRequests
from meshnode.trust.pairing import Pairing, code_of, commitment_to
from meshnode.trust.reasons import Reason, TrustError
from meshnode.trust.records import MeshId
from meshnode.types import Address, NodeId, node_id_of

if TYPE_CHECKING:
    from collections.abc import Iterator

MESH = MeshId("a" * 32)
TRIES = JOIN_REQUEST_BURST + int(JOIN_REQUEST_TTL_S / JOIN_REQUEST_REFILL_S)
"""Requests that a node answers in the life of a code."""


def strangers(count: int) -> Iterator[tuple[NodeId, str]]:
    rng = random.Random(1)
    for number in range(count):
        yield (
            node_id_of(rng.randbytes(32)),
            f"198.{number >> 16}.{number >> 8 & 255}.{number & 255}",
        )


def knock(requests: JoinRequests, device: NodeId, host: str, now: float) -> bool:
    """Ask and, if answered, wait; whether it waits."""
    try:
        requests.ask(device, host, now)
        pairing = Pairing(device, "stranger", f"{len(requests.waiting):06d}", MESH)
        requests.add(pairing, Address(host, 4000), now, 0.0)
    except TrustError as error:
        if error.reason is not Reason.THROTTLED:
            raise
        requests.refused()
        return False
    return True


def test_a_flood_from_everywhere_fills_a_table_of_sixteen_and_every_knock_is_counted() -> None:
    requests = JoinRequests()
    waiting = sum(knock(requests, *stranger, 0.0) for stranger in strangers(20_000))
    assert waiting == len(requests.waiting) == MAX_JOIN_REQUESTS
    assert requests.events["asked"] == 20_000
    assert requests.events["refused"] == 20_000 - MAX_JOIN_REQUESTS
    assert len(requests._asked_by._full_at) <= MAX_JOIN_SOURCES
    assert len(requests._asked._full_at) == 1


def test_when_a_flood_is_over_an_honest_device_is_let_wait_again() -> None:
    requests = JoinRequests()
    for stranger in strangers(1000):
        knock(requests, *stranger, 0.0)
    honest = (node_id_of(b"h" * 32), "192.0.2.1")
    assert not knock(requests, *honest, 1.0)
    for request in requests.waiting:
        requests.expired(request)
    assert knock(requests, *honest, JOIN_REQUEST_TTL_S)


def test_whoever_answers_for_both_sides_misses_the_code_with_all_the_tries_it_gets() -> None:
    """Two thousand devices are each shown a code by an attacker, which then knocks at the member as
    often as it is answered and hopes for the same. It may pick its nonces as it likes, but before it
    sees the other side's. Some 60,000 tries at one in a million: most likely none fits.
    """
    rng = random.Random(2)

    def conversation() -> str:
        nonce = rng.randbytes(32)
        return code_of(
            transcript=rng.randbytes(32), commitment=commitment_to(nonce),
            member_nonce=rng.randbytes(32), device_nonce=nonce, name="device",
        )  # fmt: skip

    hits = 0
    for _ in range(2000):
        shown = conversation()
        hits += sum(conversation() == shown for _ in range(TRIES))
    assert hits <= 1


def test_a_code_that_is_shown_elsewhere_admits_none_of_those_that_wait() -> None:
    requests = JoinRequests()
    for stranger in strangers(MAX_JOIN_REQUESTS):
        knock(requests, *stranger, 0.0)
    used = {request.pairing.code for request in requests.waiting}
    shown = next(f"{number:06d}" for number in range(100) if f"{number:06d}" not in used)
    with pytest.raises(NotFound, match="somebody may stand between"):
        requests.find(shown, 1.0, "alpha")
    assert len(requests.waiting) == MAX_JOIN_REQUESTS
