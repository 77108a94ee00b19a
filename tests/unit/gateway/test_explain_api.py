"""`/mesh/v1/models/M/explain` and `/mesh/v1/decisions`: what is asked is read as a request's own words are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import InvalidRequest
from meshnode.gateway.explain_api import AskedFor
from meshnode.gateway.protocols.caller import OWNER
from meshnode.gateway.protocols.http import HttpRequest
from meshnode.limits import DEFAULT_REQUEST_TIMEOUT_S

if TYPE_CHECKING:
    from meshnode.gateway.dispatch import Dispatcher
    from tests.unit.gateway.conftest import FakeControl

PATH = "/mesh/v1/models/digits/explain"


def ask(
    dispatcher: Dispatcher, query: str = "", headers: dict[str, str] | None = None, path: str = PATH
) -> Any:
    request = HttpRequest("GET", path, query, headers or {}, b"", OWNER)
    answer: Any = dispatcher.match("GET", path).answer(request, "r1")
    return json.loads(answer.body)


def test_a_request_is_described_by_the_query_and_the_headers_of_requests(
    dispatcher: Dispatcher, control: FakeControl
) -> None:
    headers = {"mesh-region": "eu;prefer", "mesh-labels": "gpu=a100"}
    assert ask(dispatcher, "version=2&rows=8&bytes=70&tokens=9", headers)["model"] == "digits"
    what, model, asked, hints = control.calls[-1]
    assert (what, model) == ("explain", "digits")
    assert asked == AskedFor(2, 8, 70, 9, DEFAULT_REQUEST_TIMEOUT_S)
    assert (hints.region, hints.region_required, hints.labels) == ("eu", False, (("gpu", "a100"),))


def test_without_a_query_it_is_one_row(dispatcher: Dispatcher, control: FakeControl) -> None:
    ask(dispatcher)
    assert control.calls[-1][2] == AskedFor()


@pytest.mark.parametrize(
    "query", ["rows=0", "rows=many", "bytes=-1", "version=0", "timeout_s=0", "colour=red"]
)
def test_a_query_that_makes_no_sense_is_refused_by_name(dispatcher: Dispatcher, query: str) -> None:
    with pytest.raises(InvalidRequest, match=query.partition("=")[0]):
        ask(dispatcher, query)


def test_a_header_that_makes_no_sense_is_refused_as_with_a_request(dispatcher: Dispatcher) -> None:
    with pytest.raises(InvalidRequest, match="Mesh-Region"):
        ask(dispatcher, headers={"mesh-region": "a b c"})


def test_the_last_decisions_are_a_list(dispatcher: Dispatcher) -> None:
    assert ask(dispatcher, path="/mesh/v1/decisions") == [{"number": 1}]
