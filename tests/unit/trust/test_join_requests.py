"""How many devices may ask, how often, and what a typed code finds."""

from __future__ import annotations

import hashlib

import pytest

from meshnode.errors import InvalidRequest, NotFound, Throttled
from meshnode.limits import (
    JOIN_REQUEST_BURST,
    JOIN_REQUEST_REFILL_S,
    JOIN_REQUEST_SOURCE_BURST,
    JOIN_REQUEST_SOURCE_REFILL_S,
    JOIN_REQUEST_TTL_S,
    MAX_JOIN_REQUESTS,
    MAX_JOIN_REQUESTS_PER_SOURCE,
    MAX_WRONG_CODES,
    WRONG_CODE_REFILL_S,
)
from meshnode.trust.join_requests import EVENTS, JoinRequest, JoinRequests
from meshnode.trust.pairing import Pairing
from meshnode.trust.reasons import Reason, TrustError
from meshnode.trust.records import MeshId
from meshnode.types import Address, NodeId, node_id_of

MESH = MeshId("a" * 32)
WALL_S = 1_800_000_000.0


def device(number: int) -> NodeId:
    return node_id_of(hashlib.sha256(str(number).encode()).digest())


def host(number: int) -> str:
    return f"10.0.{number // 256}.{number % 256}"


def wait(
    requests: JoinRequests, number: int, now: float = 0.0, code: str = "", where: str = ""
) -> JoinRequest:
    pairing = Pairing(device(number), f"device-{number}", code or f"{number:06d}", MESH)
    return requests.add(pairing, Address(where or host(number), 4000), now, WALL_S)


def test_what_was_asked_is_found_by_its_code_until_it_is_too_old() -> None:
    requests = JoinRequests()
    first, second = wait(requests, 1), wait(requests, 2, now=10.0)
    assert requests.waiting == (first, second)
    assert requests.find("000002", 20.0, "alpha") is second
    assert (second.device, second.expires_at) == (device(2), 10.0 + JOIN_REQUEST_TTL_S)
    with pytest.raises(NotFound):
        requests.find("000001", JOIN_REQUEST_TTL_S, "alpha")


def test_each_request_ends_once_and_is_counted_as_what_it_came_to() -> None:
    requests = JoinRequests()
    one, two, three = (wait(requests, number) for number in (1, 2, 3))
    requests.approved(one)
    requests.expired(two)
    requests.withdrawn(three)
    requests.withdrawn(one)  # its connection closes later
    assert requests.waiting == ()
    assert {each: requests.events[each] for each in EVENTS} == {
        "asked": 0, "refused": 0, "approved": 1, "expired": 1, "withdrawn": 1,
    }  # fmt: skip
    assert "0 waiting" in repr(requests)


def test_a_device_that_asks_anew_takes_the_place_of_its_former_request() -> None:
    requests = JoinRequests()
    former, newer = wait(requests, 1, code="111111"), wait(requests, 1, code="222222")
    assert requests.waiting == (newer,)
    requests.withdrawn(former)  # too late: it is the newer one's place
    assert requests.waiting == (newer,)
    with pytest.raises(NotFound):
        requests.find("111111", 0.0, "alpha")


def test_a_wrong_code_says_what_to_compare_and_that_somebody_may_stand_in_between() -> None:
    requests = JoinRequests()
    with pytest.raises(NotFound, match="no device asks this node to join"):
        requests.find("123456", 0.0, "alpha")
    wait(requests, 1)
    with pytest.raises(NotFound, match=r"123 456.*\(alpha\).*stand between"):
        requests.find("123456", 0.0, "alpha")
    assert requests.wrong_codes == 2


def test_two_devices_with_one_code_are_both_left_waiting() -> None:
    requests = JoinRequests()
    wait(requests, 1, code="123456")
    wait(requests, 2, code="123456")
    with pytest.raises(InvalidRequest, match="two devices"):
        requests.find("123456", 0.0, "alpha")
    assert len(requests.waiting) == 2


def test_wrong_codes_are_slowed_down_and_then_even_the_right_one_has_to_wait() -> None:
    requests = JoinRequests()
    right = wait(requests, 1)
    for number in range(MAX_WRONG_CODES):
        with pytest.raises(NotFound):
            requests.find(f"9{number:05d}", 0.0, "alpha")
    with pytest.raises(Throttled) as caught:
        requests.find("000001", 1.0, "alpha")
    assert caught.value.retry_after_s == WRONG_CODE_REFILL_S - 1
    assert requests.wrong_codes == MAX_WRONG_CODES
    assert requests.find("000001", WRONG_CODE_REFILL_S, "alpha") is right


def test_the_tries_at_one_code_are_bounded_whoever_makes_them_and_from_wherever() -> None:
    """The figure in the essay: some thirty in the life of a code."""
    requests = JoinRequests()
    answered = sum(
        is_answered(requests, host(second * 20 + number), float(second))
        for second in range(int(JOIN_REQUEST_TTL_S))
        for number in range(20)
    )
    assert answered == JOIN_REQUEST_BURST + int(JOIN_REQUEST_TTL_S / JOIN_REQUEST_REFILL_S) - 1
    assert answered == 30
    assert requests.events["asked"] == 20 * JOIN_REQUEST_TTL_S


def test_one_address_cannot_use_up_what_there_is_for_all() -> None:
    requests = JoinRequests()
    flood = [is_answered(requests, f"2001:db8::{number:x}", 0.0) for number in range(1000)]  # a /64
    assert sum(flood) == JOIN_REQUEST_SOURCE_BURST < JOIN_REQUEST_BURST
    assert is_answered(requests, "192.0.2.7", 0.0)
    assert not is_answered(requests, "2001:db8::ffff", JOIN_REQUEST_SOURCE_REFILL_S - 1)
    assert is_answered(requests, "2001:db8::ffff", JOIN_REQUEST_SOURCE_REFILL_S)


def test_what_is_refused_to_all_is_counted_against_nobody() -> None:
    """A flood is over, and the device that asked all the time meanwhile is answered."""
    requests = JoinRequests()
    for number in range(JOIN_REQUEST_BURST):
        assert is_answered(requests, host(number), 0.0)
    assert not any(is_answered(requests, "192.0.2.7", 0.0) for _ in range(100))
    assert is_answered(requests, "192.0.2.7", JOIN_REQUEST_REFILL_S)


def is_answered(requests: JoinRequests, where: str, now: float) -> bool:
    try:
        requests.ask(device(0), where, now)
    except TrustError as error:
        if error.reason is not Reason.THROTTLED or "meshnode invite" not in str(error):
            raise
        return False
    return True


def test_few_wait_and_fewer_from_one_address() -> None:
    requests = JoinRequests()
    for number in range(MAX_JOIN_REQUESTS_PER_SOURCE):
        wait(requests, number, where="192.0.2.7")
    with pytest.raises(TrustError, match="too many devices wait"):
        wait(requests, 100, where="192.0.2.7")
    with pytest.raises(TrustError, match="too many devices wait"):
        requests.ask(device(100), "192.0.2.7", 0.0)
    wait(requests, 0, where="192.0.2.7")  # who waits already may ask anew
    for number in range(MAX_JOIN_REQUESTS - MAX_JOIN_REQUESTS_PER_SOURCE):
        wait(requests, 200 + number)
    with pytest.raises(TrustError) as caught:
        wait(requests, 300)
    assert caught.value.reason is Reason.THROTTLED
    assert len(requests.waiting) == MAX_JOIN_REQUESTS
