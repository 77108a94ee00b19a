"""What a client says of where its requests may run."""

from __future__ import annotations

import pytest

from meshnode import Hints
from meshnode.client.calls import Call, Message
from meshnode.client.hints import hinted
from meshnode.errors import InvalidRequest
from meshnode.gateway.protocols.hints import hints_of
from meshnode.types import Priority


def lower(hints: Hints) -> dict[str, str]:
    return {name.lower(): value for name, value in hints.headers().items()}


def test_a_gateway_reads_what_a_client_says() -> None:
    read = hints_of(lower(Hints(region="eu", labels={"gpu": "a100", "spot": ""}, priority="low")))
    assert (read.region, read.region_required, read.priority) == ("eu", True, Priority.LOW)
    assert read.labels == (("gpu", "a100"), ("spot", ""))
    assert not hints_of(lower(Hints(region="eu", prefer=True))).region_required
    assert hints_of(lower(Hints(session="s"))).session


def test_the_default_says_nothing() -> None:
    call = Call("POST", "/x", lambda _remaining_s: Message({}, ()))
    assert Hints(prefer=True).headers() == {}
    assert hinted(call, None) is call
    assert hinted(call, Hints()) is call


def test_every_try_says_it() -> None:
    call = Call("POST", "/x", lambda _remaining_s: Message({"Accept": "a/b"}, ()))
    made = hinted(call, Hints(region="eu")).message(3.0)
    assert made.headers == {"Accept": "a/b", "Mesh-Region": "eu"}


@pytest.mark.parametrize("region", ["eu\r\nX-Other: 1", "ä", " eu"])
def test_what_cannot_be_a_header_is_refused_before_anything_is_sent(region: str) -> None:
    with pytest.raises(InvalidRequest, match="Mesh-Region"):
        Hints(region=region).headers()
