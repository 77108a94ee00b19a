"""One `Saturated` and one `NoReplica` inside, and each dialect's own words outside."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import MeshError, NoReplica, Saturated
from meshnode.gateway.inference import hints_for
from meshnode.gateway.protocols import grpc_status
from meshnode.gateway.protocols.caller import LOCAL, Caller
from meshnode.gateway.protocols.http import HttpRequest
from meshnode.gateway.protocols.status import error_response, retry_after
from meshnode.key_limit import KeyLimit
from meshnode.limits import MAX_RETRY_AFTER_S
from meshnode.types import NO_HINTS, Priority, Scope
from tests.unit.gateway.conftest import ME
from tests.unit.gateway.test_pipeline import ask

if TYPE_CHECKING:
    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.pipeline import Pipeline
    from tests.unit.gateway.conftest import FakeClock, FakeLocal

FULL = Saturated("every replica of model 'm' is busy; try again later", 7.2)
NOBODY = NoReplica("no replica of model 'm' can take the request")


@pytest.mark.parametrize(
    ("path", "full", "nobody"),
    [
        ("/mesh/v1/models/m/infer", (429, "saturated"), (503, "no_replica")),
        ("/mesh/v1/models/m/stream", (429, "saturated"), (503, "no_replica")),
        ("/mesh/v1/jobs", (503, "saturated"), (503, "no_replica")),
        ("/v2/models/m/infer", (503, None), (503, None)),
        ("/v2/models/m/generate_stream", (503, None), (503, None)),
        ("/v1/chat/completions", (429, "rate_limit_exceeded"), (503, "no_replica")),
        ("/v1/completions", (429, "rate_limit_exceeded"), (503, "no_replica")),
        ("/v1/embeddings", (429, "rate_limit_exceeded"), (503, "no_replica")),
        ("/v1/models/m:predict", (429, None), (503, None)),
        ("/predictions/m", (503, None), (503, None)),
        ("/inference/m", (503, None), (503, None)),
    ],
)
def test_each_dialect_tells_a_full_house_in_its_own_words_and_when_to_come_back(
    dispatcher: Dispatcher, path: str, full: tuple[int, Any], nobody: tuple[int, Any]
) -> None:
    form = dispatcher.error_form(path)
    for error, (status, word), wait in ((FULL, full, "8"), (NOBODY, nobody, "1")):
        response = error_response(error, form)
        assert isinstance(response.body, bytes)
        body = json.loads(response.body)
        assert (response.status, response.headers["Retry-After"]) == (status, wait)
        assert response.headers["Mesh-Error"] == error.code
        assert str(error) in json.dumps(body)
        if word is not None:
            assert (body["error"] if isinstance(body["error"], dict) else body)["code"] == word


@pytest.mark.parametrize(("error", "wait_ms"), [(FULL, "8000"), (NOBODY, "1000")])
def test_grpc_says_unavailable_and_pushes_back(error: MeshError, wait_ms: str) -> None:
    status = grpc_status.status_from(error)
    assert status.code == grpc_status.UNAVAILABLE
    assert ("grpc-retry-pushback-ms", wait_ms) in status.metadata
    assert ("mesh-error", error.code) in status.metadata


@pytest.mark.parametrize(
    ("wait_s", "told"),
    [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (1e9, "60"), (float("inf"), "60")],
)
def test_a_wait_is_told_in_whole_seconds_within_reason(wait_s: float, told: str) -> None:
    assert retry_after(wait_s) == told
    assert int(told) <= MAX_RETRY_AFTER_S


# What a key is allowed.


def asked_with(caller: Caller, priority: str) -> HttpRequest:
    return HttpRequest(
        "POST", "/v2/models/m/infer", "", {"mesh-priority": priority}, b"", caller=caller
    )


@pytest.mark.parametrize(
    ("limit", "asks", "has", "share"),
    [
        (None, "high", Priority.HIGH, 1),
        (KeyLimit(), "high", Priority.HIGH, 1),
        (KeyLimit(priority=int(Priority.NORMAL)), "high", Priority.NORMAL, 1),
        (KeyLimit(priority=int(Priority.LOW), share=7), "normal", Priority.LOW, 7),
        (KeyLimit(priority=int(Priority.NORMAL)), "low", Priority.LOW, 1),
    ],
)
def test_a_key_caps_the_priority_that_its_requests_ask_for(
    limit: KeyLimit | None, asks: str, has: Priority, share: int
) -> None:
    hints = hints_for(asked_with(Caller(Scope.INFER, "k1", "phone", limit=limit), asks))
    assert (hints.caller, hints.priority, hints.share) == ("k1", has, share)


def test_a_caller_without_a_key_shares_with_all_others_without_one() -> None:
    hints = hints_for(asked_with(LOCAL, "high"))
    assert (hints.caller, hints.priority, hints.share) == ("", Priority.HIGH, 1)


# Through the pipeline.


async def test_a_request_that_is_shed_is_counted_and_reaches_no_replica(
    pipeline: Pipeline, local: FakeLocal, serve: Any, clock: FakeClock
) -> None:
    serve(ME)
    local.inline = False
    local.fail = Saturated("full", 3.0)
    for _ in range(40):
        with pytest.raises(Saturated, match="busy") as busy:
            await pipeline.infer(ask())
        assert busy.value.retry_after_s == 3.0
        clock.time_s += 0.05
    local.fail = None
    admission = pipeline.admission
    held = [admission.enter("digits", NO_HINTS, 2.0, clock.time_s) for _ in range(4)]
    came = len(local.requests)
    with pytest.raises(Saturated, match="more requests than its replicas answer in time"):
        await pipeline.infer(ask())
    assert len(local.requests) == came
    assert pipeline.in_flight == 0
    for each in held:
        each.end(clock.time_s)
    assert (await pipeline.infer(ask())).response.model == "digits"
    assert admission.in_flight("digits") == 0
