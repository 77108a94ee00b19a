"""The routes of jobs, between a client and what keeps jobs."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import (
    InvalidRequest,
    MeshError,
    ModelNotFound,
    NotFound,
    NotServing,
    Saturated,
    TooLarge,
)
from meshnode.gateway import jobs_routes
from meshnode.gateway.protocols.caller import LOCAL, OWNER, Caller
from meshnode.gateway.protocols.endpoint import GUARDS
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, HttpStream
from meshnode.gateway.protocols.status import HttpRefusal, status_of
from meshnode.jobs.job import JobStatus, claimed
from meshnode.limits import MAX_JOB_HEADERS_BYTES
from meshnode.types import Role, Scope
from tests.unit.gateway.fake_jobs import FIRST
from tests.unit.gateway.test_server import GOOD

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.gateway.dispatch import Dispatcher

ANN, BEN = (Caller(Scope.INFER, name * 16, name) for name in ("a", "b"))
NATIVE = b'{"inputs": {"x": [[1, 2]]}}'


@pytest.fixture(autouse=True)
def digits(serve: Callable[..., None]) -> None:
    serve("digits")


async def ask(
    dispatcher: Dispatcher,
    method: str,
    target: str,
    body: bytes = b"",
    caller: Caller = LOCAL,
    **headers: str,
) -> Any:
    path, _, query = target.partition("?")
    named = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    match = dispatcher.match(method, path)
    reply = dispatcher.answer(match, HttpRequest(method, path, query, named, body, caller), "id-1")
    return reply if isinstance(reply, HttpResponse) else await reply


def body_of(response: HttpResponse) -> Any:
    body = response.body if isinstance(response.body, bytes) else b"".join(response.body)
    return json.loads(body)


async def test_a_call_is_kept_as_it_is_and_answered_with_the_job(
    dispatcher: Dispatcher, control: Any
) -> None:
    response = await ask(
        dispatcher, "POST", "/mesh/v1/models/digits/jobs", NATIVE, ANN, content_type="application/json",
        authorization="Bearer secret", mesh_webhook="https://example.org/?token=x", idempotency_key="order-7",
        mesh_trial="yes", user_agent="curl",
    )  # fmt: skip
    shown = body_of(response)
    assert response.status == 202
    assert response.headers["Location"] == shown["url"] == f"/mesh/v1/jobs/{FIRST}"
    assert (shown["status"], shown["model"]) == ("queued", "digits")
    assert shown["webhook"] == {"url": "https://example.org/", "state": "waiting"}
    assert shown["webhook_secret"] == "whsec_made"
    (wish,) = control.jobs.wishes
    assert wish.path == "/mesh/v1/models/digits/infer"
    assert wish.headers == (("content-type", "application/json"), ("mesh-trial", "yes"))
    assert (wish.body, wish.caller, wish.key) == (NATIVE, ANN, "order-7")


async def test_a_version_may_be_named(dispatcher: Dispatcher, control: Any) -> None:
    await ask(dispatcher, "POST", "/mesh/v1/models/digits/versions/1/jobs", NATIVE)
    assert control.jobs.wishes[0].path == "/mesh/v1/models/digits/versions/1/infer"


async def test_what_cannot_run_is_refused_at_once(dispatcher: Dispatcher, control: Any) -> None:
    with pytest.raises(ModelNotFound):
        await ask(dispatcher, "POST", "/mesh/v1/models/none/jobs", NATIVE)
    with pytest.raises(InvalidRequest):
        await ask(dispatcher, "POST", "/mesh/v1/models/digits/jobs", b"{")
    with pytest.raises(TooLarge, match="headers"):
        await ask(
            dispatcher, "POST", "/mesh/v1/models/digits/jobs", NATIVE, mesh_x="x" * MAX_JOB_HEADERS_BYTES
        )  # fmt: skip
    for key in ("", "x" * 256):
        with pytest.raises(InvalidRequest, match="Idempotency-Key"):
            await ask(
                dispatcher, "POST", "/mesh/v1/models/digits/jobs", NATIVE, idempotency_key=key
            )
    assert not control.jobs.wishes


async def test_any_inference_may_be_made_a_job_by_its_preference(
    dispatcher: Dispatcher, control: Any
) -> None:
    response = await ask(
        dispatcher, "POST", "/v2/models/digits/infer", GOOD, prefer="wait=3, respond-async",
        mesh_webhook="https://example.org", mesh_webhook_secret="known already",
    )  # fmt: skip
    assert (response.status, response.headers["Preference-Applied"]) == (202, "respond-async")
    assert "webhook_secret" not in body_of(response)
    assert control.jobs.wishes[0].path == "/v2/models/digits/infer"
    assert (await ask(dispatcher, "POST", "/v2/models/digits/infer", GOOD)).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/nothere/infer",
        "/v1/models/nothere:predict",
        "/mesh/v1/models/nothere/stream",
        "/predictions/nothere",
    ],
)
async def test_no_job_is_made_for_a_model_that_nobody_knows(
    dispatcher: Dispatcher, control: Any, path: str
) -> None:
    with pytest.raises(ModelNotFound):
        await ask(dispatcher, "POST", path, GOOD, prefer="respond-async")
    assert not control.jobs.wishes


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"input": "a", "model": "writer"}', "writer"),
        (b'{"model": "' + b"x" * 1000 + b'"}', "x" * 128),
        (b'{"model": 7}', ""),
        (b"{", ""),
    ],
)
async def test_a_job_says_which_model_its_body_names(
    dispatcher: Dispatcher, control: Any, body: bytes, model: str
) -> None:
    response = await ask(dispatcher, "POST", "/v1/embeddings", body, prefer="respond-async")
    assert response.status == 202
    assert control.jobs.wishes[0].model == model


@pytest.mark.parametrize(
    ("prefer", "later"),
    [
        ("respond-async", True), ("wait=5, Respond-Async", True), ('foo="a, b";x=1 , respond-async;y=2', True),
        ('respond-async=""', True), ("not-respond-async-please", False), ('x="respond-async"', False),
        ('x="a, respond-async', False), ('x="\\", respond-async"', False), ("respond-async=no", False), ("", False),
    ],
)  # fmt: skip
async def test_a_preference_is_one_of_a_list_and_not_a_piece_of_text(
    dispatcher: Dispatcher, prefer: str, later: bool
) -> None:
    response = await ask(dispatcher, "POST", "/v2/models/digits/infer", GOOD, prefer=prefer)
    assert response.status == (202 if later else 200)


async def test_a_preference_that_nobody_had_is_not_told_as_applied(dispatcher: Dispatcher) -> None:
    response = await ask(dispatcher, "POST", "/predict/async?model=digits", b"{}")
    assert response.status == 202
    assert "Preference-Applied" not in response.headers
    response = await ask(
        dispatcher, "POST", "/predict/async?model=digits", b"{}", mesh_webhook="https://example.org"
    )
    assert body_of(response)["webhook_secret"] == "whsec_made"


async def test_only_who_made_a_job_and_admins_see_it(dispatcher: Dispatcher) -> None:
    await ask(dispatcher, "POST", "/mesh/v1/models/digits/jobs", NATIVE, ANN)
    for caller in (ANN, OWNER, Caller(Scope.ADMIN, "c" * 16)):
        shown = body_of(await ask(dispatcher, "GET", f"/mesh/v1/jobs/{FIRST}", b"", caller))
        assert shown["id"] == FIRST
    for caller in (BEN, LOCAL, Caller(Scope.DEPLOY, "c" * 16)):
        for method, rest in (("GET", ""), ("DELETE", ""), ("GET", "/result"), ("GET", "/events")):
            with pytest.raises(NotFound):
                await ask(dispatcher, method, f"/mesh/v1/jobs/{FIRST}{rest}", b"", caller)


async def test_the_result_is_the_answer_that_the_path_gave(
    dispatcher: Dispatcher, control: Any
) -> None:
    await ask(dispatcher, "POST", "/mesh/v1/models/digits/jobs", NATIVE)
    with pytest.raises(MeshError) as refused:
        await ask(dispatcher, "GET", f"/mesh/v1/jobs/{FIRST}/result")
    assert (status_of(refused.value), refused.value.code) == (409, "job_unfinished")
    control.jobs.end(FIRST, 200, (("content-type", "image/png"),), b"\x89PNG")
    response = await ask(dispatcher, "GET", f"/mesh/v1/jobs/{FIRST}/result")
    assert (response.status, b"".join(response.body)) == (200, b"\x89PNG")
    assert response.headers == {"Content-Type": "image/png", "Mesh-Job": "succeeded", **GUARDS}
    control.jobs.jobs[FIRST] = (
        control.jobs.jobs[FIRST][0],
        claimed(control.jobs.jobs[FIRST][1], "x", 1),
    )


async def test_a_result_has_no_rights_on_the_gateways_origin_whatever_was_told_of_it(
    dispatcher: Dispatcher, control: Any
) -> None:
    await ask(dispatcher, "POST", "/mesh/v1/models/digits/jobs", NATIVE)
    told = {
        "content-type": "text/html", "set-cookie": "sid=evil", "location": "http://evil.example",
        "access-control-allow-origin": "*", "x-injected": "1", "content-security-policy": "default-src *",
        "mesh-job": "odd", "mesh-cache": "hit", "cache-control": "no-store",
    }  # fmt: skip
    job, new = control.jobs.jobs[FIRST]
    for status in (200, 500, 0):
        control.jobs.jobs[FIRST] = (job, new)
        control.jobs.end(FIRST, status, tuple(told.items()), b"<script>alert(1)</script>")
        response = await ask(dispatcher, "GET", f"/mesh/v1/jobs/{FIRST}/result")
        assert response.headers == {
            "Content-Type": "text/html" if status else "application/json", "Mesh-Cache": "hit",
            "Cache-Control": "no-store", "Mesh-Job": "failed" if status == 500 else "succeeded", **GUARDS,
        }  # fmt: skip


async def test_the_result_of_a_failure_is_its_error(dispatcher: Dispatcher, control: Any) -> None:
    await ask(dispatcher, "POST", "/mesh/v1/models/digits/jobs", NATIVE)
    control.jobs.end(FIRST, 400, (("content-type", "application/json"),), b'{"error":"no"}')
    response = await ask(dispatcher, "GET", f"/mesh/v1/jobs/{FIRST}/result")
    assert (response.status, response.headers["Mesh-Job"]) == (400, "failed")
    shown = body_of(await ask(dispatcher, "GET", f"/mesh/v1/jobs/{FIRST}"))
    assert shown["error"] == {"error": "it went wrong", "code": "", "status": 400}
    control.jobs.end(FIRST, 0, (), b"")
    job, state = control.jobs.jobs[FIRST]
    assert state.outcome.status is JobStatus.SUCCEEDED  # without a status nobody answered
    response = await ask(dispatcher, "GET", f"/mesh/v1/jobs/{FIRST}/result")
    assert response.status == 503
    assert job.id == FIRST


async def test_a_cancelled_job_has_no_result(dispatcher: Dispatcher) -> None:
    await ask(dispatcher, "POST", "/mesh/v1/models/digits/jobs", NATIVE)
    shown = body_of(await ask(dispatcher, "DELETE", f"/mesh/v1/jobs/{FIRST}"))
    assert shown["status"] == "cancelled"
    with pytest.raises(MeshError) as refused:
        await ask(dispatcher, "GET", f"/mesh/v1/jobs/{FIRST}/result")
    assert (status_of(refused.value), refused.value.code) == (409, "job_cancelled")


@pytest.mark.parametrize("path", ["/mesh/v1/jobs/none", "/mesh/v1/jobs/none/result"])
async def test_an_id_that_is_none_is_unknown(dispatcher: Dispatcher, path: str) -> None:
    with pytest.raises(NotFound):
        await ask(dispatcher, "GET", path)


@pytest.mark.parametrize(
    "path", [f"/mesh/v1/jobs/{FIRST}/else", "/mesh/v1/jobs//result", "/mesh/v1/models/digits/job"]
)
def test_paths_beside_them_are_unknown(dispatcher: Dispatcher, path: str) -> None:
    with pytest.raises(HttpRefusal):
        dispatcher.match("GET", path)


async def test_a_list_has_pages(dispatcher: Dispatcher, control: Any) -> None:
    for _ in range(3):
        await ask(dispatcher, "POST", "/mesh/v1/models/digits/jobs", NATIVE)
    control.jobs.silent = ["mini"]
    page = body_of(await ask(dispatcher, "GET", "/mesh/v1/jobs?limit=2&status=queued"))
    assert [job["id"][0] for job in page["jobs"]] == ["a", "b"]
    assert page["incomplete"] == ["mini"]
    await ask(dispatcher, "GET", f"/mesh/v1/jobs?after={page['next']}")
    _, asked, _ = control.calls[-1]
    assert (asked.before_ms, asked.after) == (1_000_001, "b" * 26)
    assert body_of(await ask(dispatcher, "GET", "/mesh/v1/jobs"))["next"] is None


@pytest.mark.parametrize(
    "query",
    ["status=odd", "limit=0", "limit=x", "limit=1001", "after=5", "after=x-" + FIRST, "else=1", "limit=1&limit=2",
     "limit=" + "9" * 5000, "after=" + "9" * 5000],
)  # fmt: skip
async def test_a_list_that_cannot_be_is_refused(dispatcher: Dispatcher, query: str) -> None:
    with pytest.raises(InvalidRequest):
        await ask(dispatcher, "GET", f"/mesh/v1/jobs?{query}")


async def test_events_tell_each_change_and_end_with_the_job(
    dispatcher: Dispatcher, control: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_routes, "JOB_EVENTS_POLL_S", 0.001)
    monkeypatch.setattr(jobs_routes, "JOB_HEARTBEAT_S", 0.002)
    await ask(dispatcher, "POST", "/mesh/v1/models/digits/jobs", NATIVE)
    stream = await ask(dispatcher, "GET", f"/mesh/v1/jobs/{FIRST}/events")
    assert isinstance(stream, HttpStream)
    parts: Any = stream.parts
    assert b'"status":"queued"' in await anext(parts)
    assert await anext(parts) == b": waiting\n\n"
    job, state = control.jobs.jobs[FIRST]
    control.jobs.jobs[FIRST] = (job, claimed(state, "there", 5))
    event = bytes(await anext(parts))
    while event == b": waiting\n\n":
        event = bytes(await anext(parts))
    assert b'"status":"running"' in event
    last_id = event.split(b"\n")[0].removeprefix(b"id: ").decode()
    # Taken up elsewhere after that one: what was seen is not told again.
    control.jobs.end(FIRST, 200, (), b"")
    control.jobs.jobs[FIRST], ended = (job, claimed(state, "there", 5)), control.jobs.jobs[FIRST]
    again = await ask(dispatcher, "GET", f"/mesh/v1/jobs/{FIRST}/events", last_event_id=last_id)
    coming = asyncio.ensure_future(anext(again.parts))
    await asyncio.sleep(0)
    control.jobs.jobs[FIRST] = ended
    event = await coming
    while event == b": waiting\n\n":
        event = await anext(again.parts)
    assert b'"status":"succeeded"' in event
    with pytest.raises(StopAsyncIteration):
        await anext(again.parts)
    await parts.aclose()


async def test_no_caller_keeps_the_others_from_following_their_jobs(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_routes, "MAX_JOB_WATCHERS_PER_CALLER", 1)
    for caller in (LOCAL, ANN):
        await ask(dispatcher, "POST", "/mesh/v1/models/digits/jobs", NATIVE, caller)
    first = await ask(dispatcher, "GET", f"/mesh/v1/jobs/{FIRST}/events")
    await anext(first.parts)
    with pytest.raises(Saturated, match="you follow"):
        await ask(dispatcher, "GET", f"/mesh/v1/jobs/{FIRST}/events")
    other = await ask(dispatcher, "GET", f"/mesh/v1/jobs/{'b' * 26}/events", b"", ANN)
    await anext(other.parts)
    for stream in (first, other):
        await stream.parts.aclose()
    again = await ask(dispatcher, "GET", f"/mesh/v1/jobs/{FIRST}/events")
    await again.parts.aclose()


@pytest.mark.parametrize(
    ("target", "body", "model"),
    [
        ("/v1/embeddings", b'{"input": [1, {"model": "x"}], "model": "digits"}', "digits"),
        ("/v1/chat/completions", b'{"model": 7}', ""),
        ("/v1/completions", b"{", ""),
        ("/predict?model=digits", b"{}", "digits"),
        ("/v1/models/digits:predict", b'{"model": "x"}', "digits"),
        ("/inference/digits", b'{"model": "x"}', "digits"),
        ("/v1/completions", b'{"model": "%b"}' % (b"x" * 600), "x" * 128),
    ],
)
async def test_a_job_shows_the_model_that_was_asked(
    dispatcher: Dispatcher, target: str, body: bytes, model: str
) -> None:
    shown = body_of(await ask(dispatcher, "POST", target, body, prefer="respond-async"))
    assert shown["model"] == model


async def test_so_many_clients_follow_jobs_and_no_more(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_routes, "MAX_JOB_WATCHERS", 1)
    await ask(dispatcher, "POST", "/mesh/v1/models/digits/jobs", NATIVE)
    first = await ask(dispatcher, "GET", f"/mesh/v1/jobs/{FIRST}/events")
    await anext(first.parts)
    with pytest.raises(Saturated):
        await ask(dispatcher, "GET", f"/mesh/v1/jobs/{FIRST}/events")
    await first.parts.aclose()
    second = await ask(dispatcher, "GET", f"/mesh/v1/jobs/{FIRST}/events")
    await second.parts.aclose()


# On a plain member


OF_JOB = (("GET", ""), ("DELETE", ""), ("GET", "/result"))


def lent(control: Any, *answers: Any) -> list[str]:
    """Make the node a plain member; return the calls that it passes on, each answered by the next (or the last)."""
    control.role = Role.MEMBER
    passed: list[str] = []
    left = list(answers)

    def forward(needed: Role, http: HttpRequest, *_: Any) -> Any:
        if control.role.allows(needed):
            return None
        assert needed is Role.OPERATOR
        passed.append(f"{http.method} {http.path}?{http.query} {bytes(http.body)!r}")

        async def answer() -> HttpResponse:
            told: Any = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(told, Exception):
                raise told
            assert isinstance(told, HttpResponse)
            return told

        return answer()

    control.forward = forward
    return passed


@pytest.mark.parametrize(("method", "rest"), OF_JOB)
async def test_a_members_gateway_has_an_operators_answer_for_jobs_that_it_does_not_see(
    dispatcher: Dispatcher, control: Any, method: str, rest: str
) -> None:
    told = HttpResponse(418, {"Content-Type": "image/png", "Mesh-Job": "failed"}, b"PNG")
    passed = lent(control, told)
    response = await ask(dispatcher, method, f"/mesh/v1/jobs/{FIRST}{rest}", b"", ANN)
    assert (response.status, response.headers["Content-Type"]) == (418, "image/png")
    assert response.body == b"PNG"
    assert passed == [f"{method} /mesh/v1/jobs/{FIRST}{rest}? b''"]
    if rest:  # whatever the other node says of it
        assert GUARDS.items() <= response.headers.items()
    assert dispatcher.match(method, f"/mesh/v1/jobs/{FIRST}{rest}").forwarded


async def test_a_members_gateway_lists_what_an_operators_does(
    dispatcher: Dispatcher, control: Any
) -> None:
    passed = lent(control, HttpResponse(200, {}, b'{"jobs":[]}'))
    response = await ask(dispatcher, "GET", "/mesh/v1/jobs?limit=2", b"", ANN)
    assert body_of(response) == {"jobs": []}
    assert passed == ["GET /mesh/v1/jobs?limit=2 b''"]
    with pytest.raises(InvalidRequest):
        await ask(dispatcher, "GET", "/mesh/v1/jobs?limit=0", b"", ANN)
    for caller in (LOCAL, OWNER):  # a lent device: what was accepted there
        assert body_of(await ask(dispatcher, "GET", "/mesh/v1/jobs", b"", caller))["jobs"] == []
    assert len(passed) == 1
    assert dispatcher.match("GET", "/mesh/v1/jobs").forwarded


async def test_a_member_asks_nobody_for_what_it_sees_itself_nor_for_callers_without_a_key(
    dispatcher: Dispatcher, control: Any
) -> None:
    passed = lent(control, NotServing("nobody is there"))
    await ask(dispatcher, "POST", "/mesh/v1/models/digits/jobs", NATIVE, ANN)
    control.jobs.end(FIRST, 200, (), b"1")
    for method, rest in OF_JOB:
        assert (
            await ask(dispatcher, method, f"/mesh/v1/jobs/{FIRST}{rest}", b"", ANN)
        ).status == 200
        with pytest.raises(NotFound):
            await ask(dispatcher, method, f"/mesh/v1/jobs/{'z' * 26}{rest}", b"", LOCAL)
        with pytest.raises(NotFound):
            await ask(dispatcher, method, f"/mesh/v1/jobs/odd{rest}", b"", ANN)
    assert passed == []
    # Where no operator's node can be reached, nobody knows whether there is such a job.
    for method, rest in (*OF_JOB, ("GET", "/events")):
        with pytest.raises(NotServing, match="nobody is there"):
            await ask(dispatcher, method, f"/mesh/v1/jobs/{'z' * 26}{rest}", b"", ANN)
    control.role = Role.OPERATOR
    for method, rest in (*OF_JOB, ("GET", "/events")):
        with pytest.raises(NotFound):
            await ask(dispatcher, method, f"/mesh/v1/jobs/{'z' * 26}{rest}", b"", ANN)


async def test_a_members_gateway_follows_a_job_by_asking_an_operators(
    dispatcher: Dispatcher, control: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_routes, "JOB_EVENTS_ELSEWHERE_POLL_S", 0.001)
    running = HttpResponse(200, {}, [b'{"status":"running",', b'"finished_at":null}'])
    ended = HttpResponse(200, {}, b'{"status":"succeeded","finished_at":"2026"}')
    passed = lent(
        control, running, running, HttpResponse(503, {}, b"{}"), NotServing("away"), HttpResponse(200, {}, b"<p>"), ended,
    )  # fmt: skip
    path = f"/mesh/v1/jobs/{FIRST}"
    stream = await ask(dispatcher, "GET", f"{path}/events?x=1", b"", ANN)
    events = [bytes(part).split(b"\n", 1) async for part in stream.parts]
    assert [rest for _, rest in events] == [
        b'event: job\ndata: {"status":"running","finished_at":null}\n\n',
        b'event: job\ndata: {"status":"succeeded","finished_at":"2026"}\n\n',
    ]
    assert passed == [f"GET {path}? b''"] * 6
    # Followed anew, what was seen is not told again.
    last_id = events[0][0].removeprefix(b"id: ").decode()
    lent(control, running, ended)
    again = await ask(dispatcher, "GET", f"{path}/events", b"", ANN, last_event_id=last_id)
    assert len([part async for part in again.parts]) == 1
    for status in (401, 404):  # the key was revoked, the job forgotten
        lent(control, running, HttpResponse(status, {}, b"{}"))
        stream = await ask(dispatcher, "GET", f"{path}/events", b"", ANN)
        with pytest.raises(NotFound):
            [part async for part in stream.parts]


async def test_an_event_of_a_job_has_the_same_id_at_every_gateway(
    dispatcher: Dispatcher, control: Any
) -> None:
    await ask(dispatcher, "POST", "/mesh/v1/models/digits/jobs", NATIVE, ANN)
    control.jobs.end(FIRST, 200, (), b"1")
    shown = await ask(dispatcher, "GET", f"/mesh/v1/jobs/{FIRST}", b"", ANN)
    path = f"/mesh/v1/jobs/{FIRST}/events"
    here = [part async for part in (await ask(dispatcher, "GET", path, b"", ANN)).parts]
    control.jobs.jobs.clear()
    lent(control, shown)
    elsewhere = [part async for part in (await ask(dispatcher, "GET", path, b"", ANN)).parts]
    assert here == elsewhere
