"""Changes passed on between nodes: by whose key, to whom, how often, and what breaks."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from meshnode.daemon import forwarding
from meshnode.daemon.forwarding import Forwarder, ForwardServer
from meshnode.errors import (
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    LinkLost,
    MeshError,
    NotServing,
    ProtocolError,
    Saturated,
    TooLarge,
)
from meshnode.gateway.matching import Match
from meshnode.gateway.protocols.caller import OWNER, Caller
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, json_response
from meshnode.gateway.protocols.status import CODED, ErrorForm, HttpRefusal
from meshnode.limits import (
    MAX_FORWARDED_ANSWER_BYTES,
    MAX_FORWARDED_CALLS,
    MAX_FORWARDED_CALLS_PER_PEER,
    MAX_JOB_HEADERS_BYTES,
    MAX_KEY_FAILURES,
)
from meshnode.state.api_keys import ApiKey, make_api_key
from meshnode.types import NodeId, Role, Scope
from meshnode.wire.messages import STREAMS, BlobChunk, Failure, Forward, Forwarded

if TYPE_CHECKING:
    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.matching import Handler
    from meshnode.net.connection import Connection
    from meshnode.node import Node
    from meshnode.types import Buffer

ME, BETA, GAMMA, DELTA = (NodeId(letter * 32) for letter in "abcd")
KEY = f"mesh_{'k' * 16}_{'s' * 52}"
NAMES = {ME: "alpha", BETA: "beta", GAMMA: "gamma", DELTA: "delta"}


class FakeLink:
    """A link on which each question meets what the test says."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer if answer is not None else Forwarded(200, {})
        self.body = b'{"done":true}'
        self.end = True
        self.usable = True
        self.asked: list[tuple[Forward, bytes]] = []
        self.cancelled: list[int] = []

    def open(self, meta: bytes, data: Any, handler: Any) -> int:
        if isinstance(self.answer, MeshError) and self.answer.args == ("at once",):
            raise self.answer
        self.asked.append((STREAMS.decode(meta), b"".join(map(bytes, data))))
        if isinstance(self.answer, MeshError):
            handler.lost(self.answer)
        elif self.answer != "silence":
            handler.part(STREAMS.encode(self.answer), memoryview(self.body), self.end)
            handler.lost(LinkLost("later"))  # what comes after the answer changes nothing
        return 7

    def cancel(self, stream: int) -> None:
        self.cancelled.append(stream)


class FakeReach:
    """Links that are there, and those that could be made."""

    def __init__(self) -> None:
        self.links: dict[NodeId, FakeLink] = {}
        self.could: dict[NodeId, FakeLink] = {}
        self.rtts: dict[NodeId, float] = {}
        self.dialled: list[NodeId] = []

    def linked(self, node: NodeId) -> Connection | None:
        return cast("Connection | None", self.links.get(node))

    async def link(self, node: NodeId) -> Connection | None:
        self.dialled.append(node)
        return cast("Connection | None", self.could.get(node))

    def rtt_s(self, node: NodeId) -> float | None:
        return self.rtts.get(node)


class Asking:
    """A forwarder between fakes."""

    def __init__(self, **roles: Role) -> None:
        self.roles: dict[NodeId, Role] = {
            node: roles[name] for node, name in NAMES.items() if name in roles
        }
        self.members = {
            node: SimpleNamespace(live=True, record=SimpleNamespace(name=NAMES[node]))
            for node in self.roles
        }
        node = SimpleNamespace(me=ME, membership=SimpleNamespace(members=self.members))
        self.reach = FakeReach()
        self.forwarder = Forwarder(cast("Node", node), self.reach, self.roles.get)

    async def ask(
        self,
        path: str = "/mesh/v1/keys",
        *,
        key: str | None = KEY,
        caller: Caller = OWNER,
        upload: str | None = None,
        needed: Role = Role.OPERATOR,
    ) -> HttpResponse:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        http = HttpRequest("POST", path, "q=1", headers, b"{}", caller)
        return await self.forwarder.forward(needed, http, "id-1", upload)


MEMBER, OPERATOR, ADMIN = Role


async def test_a_call_goes_with_its_key_to_the_nearest_node_that_may() -> None:
    asking = Asking(alpha=MEMBER, beta=OPERATOR, gamma=ADMIN, delta=MEMBER)
    asking.reach.links = {BETA: FakeLink(), GAMMA: FakeLink(), DELTA: FakeLink()}
    asking.reach.rtts = {BETA: 0.2, GAMMA: 0.1, DELTA: 0.01}
    response = await asking.ask()
    assert (response.status, response.body) == (200, b'{"done":true}')
    asked = Forward("POST", "/mesh/v1/keys", "q=1", KEY, "id-1")
    assert asking.reach.links[GAMMA].asked == [(asked, b"{}")]
    assert asking.reach.links[BETA].asked == asking.reach.links[DELTA].asked == []
    assert asking.forwarder.outcomes == {"ok": 1}
    assert KEY not in repr(asked)


async def test_a_node_that_may_do_it_passes_nothing_on() -> None:
    asking = Asking(alpha=OPERATOR, beta=ADMIN)
    assert not asking.forwarder.must_forward(OPERATOR)
    assert asking.forwarder.must_forward(ADMIN)
    del asking.roles[ME]
    assert asking.forwarder.must_forward(MEMBER)  # no member may nothing


@pytest.mark.parametrize("key", [None, "not-a-key"])
async def test_without_an_api_key_nobody_is_asked_and_the_sentence_says_what_to_do(
    key: str | None,
) -> None:
    asking = Asking(alpha=MEMBER, beta=OPERATOR)
    asking.reach.links[BETA] = FakeLink()
    with pytest.raises(Forbidden, match=r"a member of the mesh.*an operator's node.*beta.*--key"):
        await asking.ask(key=key)
    assert asking.reach.links[BETA].asked == []


async def test_a_call_that_was_passed_on_is_never_passed_on_again() -> None:
    asking = Asking(alpha=MEMBER, beta=OPERATOR)
    asking.reach.links[BETA] = FakeLink()
    with pytest.raises(NotServing, match="alpha may not do that any more"):
        await asking.ask(caller=Caller(Scope.ADMIN, "k" * 16, "ci", via="delta"))
    assert asking.reach.links[BETA].asked == []


async def test_the_next_node_is_asked_only_where_the_one_before_has_not_begun() -> None:
    asking = Asking(alpha=MEMBER, beta=OPERATOR, gamma=OPERATOR, delta=OPERATOR)
    links = asking.reach.links = {
        BETA: FakeLink(LinkLost("at once")),
        GAMMA: FakeLink(Failure("not_serving", "demoted")),
        DELTA: FakeLink(),
    }
    asking.reach.rtts = {BETA: 0.1, GAMMA: 0.2, DELTA: 0.3}
    assert (await asking.ask()).status == 200
    assert [len(link.asked) for link in links.values()] == [0, 1, 1]
    links[GAMMA].answer = LinkLost("it broke")
    with pytest.raises(
        LinkLost, match=r"link to gamma broke while it worked on this.*look whether"
    ):
        await asking.ask()
    assert len(links[DELTA].asked) == 1
    assert asking.forwarder.outcomes == {"ok": 1, "link_lost": 1}


async def test_nodes_without_a_link_are_dialled_but_not_all_of_them() -> None:
    asking = Asking(alpha=MEMBER, beta=OPERATOR, gamma=OPERATOR, delta=OPERATOR)
    with pytest.raises(NotServing, match=r"no node that may can be reached now \(beta, gamma, del"):
        await asking.ask()
    assert asking.reach.dialled == [BETA, GAMMA]
    asking.reach.could[GAMMA] = FakeLink()
    assert (await asking.ask()).status == 200
    asking.members[BETA].live = asking.members[DELTA].live = False
    asking.reach.dialled.clear()
    await asking.ask()
    assert asking.reach.dialled == [GAMMA]


async def test_where_no_node_may_the_sentence_says_so() -> None:
    asking = Asking(alpha=OPERATOR, beta=OPERATOR)
    with pytest.raises(NotServing, match="none is known"):
        await asking.ask(needed=ADMIN)
    with pytest.raises(
        Forbidden, match="an operator of the mesh, and that needs an admin's node: run"
    ):
        await asking.ask(needed=ADMIN, key=None)


async def test_a_silent_node_costs_its_time_and_no_second_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forwarding, "FORWARD_TIMEOUT_S", 0.01)
    asking = Asking(alpha=MEMBER, beta=OPERATOR, gamma=OPERATOR)
    links = asking.reach.links = {BETA: FakeLink("silence"), GAMMA: FakeLink()}
    asking.reach.rtts = {BETA: 0.1, GAMMA: 0.2}
    with pytest.raises(DeadlineExceeded, match=r"beta did not answer.*look whether it was done"):
        await asking.ask()
    assert links[BETA].cancelled == [7]
    assert links[GAMMA].asked == []


async def test_a_caller_who_goes_away_takes_the_question_back() -> None:
    asking = Asking(alpha=MEMBER, beta=OPERATOR)
    asking.reach.links[BETA] = link = FakeLink("silence")
    task = asyncio.ensure_future(asking.ask())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert link.cancelled == [7]


async def test_an_upload_goes_on_where_it_began() -> None:
    asking = Asking(alpha=MEMBER, beta=OPERATOR, gamma=OPERATOR)
    links = asking.reach.links = {
        BETA: FakeLink(Forwarded(201, {})),
        GAMMA: FakeLink(Forwarded(200, {})),
    }
    links[BETA].body = b'{"id":"u7"}'
    asking.reach.rtts = {BETA: 0.1, GAMMA: 0.2}
    await asking.ask("/mesh/v1/uploads")
    asking.reach.rtts[GAMMA] = 0.01
    await asking.ask("/mesh/v1/uploads/u7", upload="u7")
    await asking.ask("/mesh/v1/deployments", upload="u7")
    assert (len(links[BETA].asked), len(links[GAMMA].asked)) == (3, 0)
    del links[BETA]
    with pytest.raises(NotServing):
        await asking.ask("/mesh/v1/uploads/u7", upload="u7")
    await asking.ask("/mesh/v1/uploads/other", upload="other")
    assert len(links[GAMMA].asked) == 1


async def test_remembered_uploads_are_bounded_and_nonsense_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forwarding, "MAX_REMEMBERED_UPLOADS", 2)
    asking = Asking(alpha=MEMBER, beta=OPERATOR)
    asking.reach.links[BETA] = link = FakeLink(Forwarded(201, {}))
    for body in (b'{"id":"u1"}', b"[]", b'{"id":"u2"}', b'{"id":"u3"}'):
        link.body = body
        await asking.ask("/mesh/v1/uploads")
    assert list(asking.forwarder._uploads) == ["u2", "u3"]


@pytest.mark.parametrize(
    ("answer", "end", "size"),
    [
        (BlobChunk(0, 1), True, 1),
        (Forwarded(200, {}), False, 1),
        (Forwarded(99, {}), True, 1),
        (Forwarded(700, {}), True, 1),
        (Forwarded(200, {}), True, 4 * 1024 * 1024 + 1),
    ],
)
async def test_an_answer_of_no_known_form_fails_the_call(answer: Any, end: bool, size: int) -> None:
    asking = Asking(alpha=MEMBER, beta=OPERATOR)
    asking.reach.links[BETA] = link = FakeLink(answer)
    link.end, link.body = end, bytes(size)
    with pytest.raises(ProtocolError):
        await asking.ask()


async def test_another_node_chooses_no_headers_but_those_that_its_answers_need() -> None:
    headers = {
        "Content-Type": "application/json",
        "Mesh-Error": "forbidden",
        "Set-Cookie": "a=b",
        "Location": "http://evil.example",
        "Retry-After": "1\r\nX-Evil: 1",
        "WWW-Authenticate": "x" * 300,
    }
    asking = Asking(alpha=MEMBER, beta=OPERATOR)
    asking.reach.links[BETA] = FakeLink(Forwarded(403, headers))
    response = await asking.ask()
    assert response.headers == {"Content-Type": "application/json", "Mesh-Error": "forbidden"}
    assert asking.forwarder.outcomes == {"refused": 1}


async def test_a_peers_error_reaches_the_caller() -> None:
    asking = Asking(alpha=MEMBER, beta=OPERATOR)
    asking.reach.links[BETA] = FakeLink(Failure("saturated", "too many\x1b[2J"))
    with pytest.raises(Saturated, match=r"too many \[2J"):
        await asking.ask()


async def test_a_jobs_result_keeps_the_headers_that_say_how_to_read_it() -> None:
    asking = Asking(alpha=MEMBER, beta=OPERATOR)
    said = {
        "Content-Type": "image/png", "content-encoding": "gzip", "Inference-Header-Content-Length": "12", "Mesh-Job": "failed",
        "Mesh-Error": "odd", "Set-Cookie": "a=b", "Access-Control-Allow-Origin": "*", "Mesh-X": "a\nb", "Mesh-Webhook": "x",
    }  # fmt: skip
    link = asking.reach.links[BETA] = FakeLink(Forwarded(418, said))
    response = await asking.ask("/mesh/v1/jobs/x/result")
    assert (response.status, response.headers) == (418, {
        "Content-Type": "image/png", "Content-Encoding": "gzip", "Inference-Header-Content-Length": "12",
        "Mesh-Job": "failed", "Mesh-Error": "odd",
    })  # fmt: skip
    for path in ("/mesh/v1/jobs/x", "/mesh/v1/keys/result"):
        assert set((await asking.ask(path)).headers) == {"Content-Type", "Mesh-Error"}
    link.answer = Forwarded(200, {"Mesh-X": "x" * (MAX_JOB_HEADERS_BYTES + 1)})
    with pytest.raises(TooLarge):
        await asking.ask("/mesh/v1/jobs/x/result")


# The other side


class FakeClock:
    def now(self) -> float:
        return 5.0

    def wall_s(self) -> float:
        return 1e9 + 5


class FakeDispatcher:
    """Routes that a test sets; notes what reaches them."""

    def __init__(self) -> None:
        self.routes: dict[tuple[str, str], Match] = {}
        self.seen: list[tuple[HttpRequest, str]] = []
        self.behave: Any = None
        for scope in Scope:
            self.routes["POST", f"/{scope}"] = Match(
                cast("Handler", self._answer), scope, True, True
            )
        self.routes["POST", "/own"] = Match(cast("Handler", self._answer), Scope.INFER, True)

    def error_form(self, _path: str) -> ErrorForm:
        return CODED

    def match(self, method: str, path: str) -> Match:
        if (method, path) not in self.routes:
            raise HttpRefusal(404, "nothing is there")
        return self.routes[method, path]

    def _answer(self, http: HttpRequest, request_id: str) -> Any:
        self.seen.append((http, request_id))
        if isinstance(self.behave, Exception):
            raise self.behave
        if self.behave is not None:
            return self.behave(http)
        return json_response({"done": True}, 201)


class Answering:
    """A server of forwarded calls, with one key of each scope."""

    def __init__(self) -> None:
        self.dispatcher = FakeDispatcher()
        self.keys: dict[str, ApiKey] = {}
        self.texts: dict[str, str] = {}
        for scope in ("infer", "deploy", "admin"):
            key, self.texts[scope] = make_api_key(scope, [scope], 60, 1e9, os.urandom(42), [])
            self.keys[key.id] = key
        self.server = ForwardServer(
            cast("Dispatcher", self.dispatcher), self.keys.get, FakeClock(), lambda: "alpha"
        )

    async def ask(
        self, path: str, key: str, *, query: str = "", asker: NodeId = BETA
    ) -> HttpResponse:
        ask = Forward("POST", path, query, key, "id-1")
        return await self.server.answer(asker, "beta", ask, memoryview(b"{}"))


async def test_the_key_decides_what_a_forwarded_call_may_and_the_log_names_both() -> None:
    answering = Answering()
    response = await answering.ask("/admin", answering.texts["admin"])
    assert response.status == 201
    ((http, request_id),) = answering.dispatcher.seen
    assert (bytes(http.body), request_id) == (b"{}", "id-1")
    assert str(http.caller) == f"key admin ({http.caller.key_id}) through beta"
    for path, key, status in (
        ("/admin", "deploy", 403),
        ("/deploy", "infer", 403),
        ("/deploy", "admin", 201),
        ("/owner", "admin", 403),
        ("/own", "admin", 403),
        ("/nothing", "admin", 404),
    ):
        assert (await answering.ask(path, answering.texts[key])).status == status, path
    assert len(answering.dispatcher.seen) == 2
    assert answering.server.outcomes == {"ok": 2, "forbidden": 4, "http": 1}


async def test_a_node_whose_word_it_is_gets_nothing_without_a_valid_key() -> None:
    answering = Answering()
    key = next(iter(answering.keys.values()))
    text = answering.texts["infer"]
    guessed = f"{text[:30]}{'a' if text[30] != 'a' else 'b'}{text[31:]}"
    for shown in ("", "x" * 300, KEY, guessed):
        assert (await answering.ask("/infer", shown)).status == 401
    answering.keys[key.id] = msgspec.structs.replace(key, revoked_at_s=10**9)
    response = await answering.ask("/infer", text)
    assert response.status == 401
    assert b"was revoked" in bytes(cast("bytes", response.body))
    assert answering.dispatcher.seen == []


async def test_wrong_keys_throttle_the_node_that_sends_them_and_no_other() -> None:
    answering = Answering()
    for _ in range(MAX_KEY_FAILURES):
        assert (await answering.ask("/infer", KEY)).status == 401
    response = await answering.ask("/infer", KEY)
    assert response.status == 429
    assert int(response.headers["Retry-After"]) > 0
    assert (await answering.ask("/infer", KEY, asker=GAMMA)).status == 401
    assert (await answering.ask("/infer", answering.texts["infer"])).status == 201


async def test_errors_are_answers_but_what_was_not_begun_may_be_asked_elsewhere() -> None:
    answering = Answering()
    admin = answering.texts["admin"]
    answering.dispatcher.behave = InvalidRequest("no such node")
    response = await answering.ask("/admin", admin)
    assert (response.status, response.body) == (
        400,
        b'{"error":"no such node","code":"invalid_request"}',
    )
    answering.dispatcher.behave = ZeroDivisionError("a defect")
    assert (await answering.ask("/admin", admin)).status == 500
    answering.dispatcher.behave = NotServing("demoted")
    with pytest.raises(NotServing):
        await answering.ask("/admin", admin)
    assert (await answering.ask("/admin", admin, query="x" * 9000)).status == 414
    counts = {"invalid_request": 1, "internal": 1, "not_serving": 1, "http": 1}
    assert answering.server.outcomes == counts


async def test_one_node_cannot_take_all_places_and_all_cannot_take_more_than_there_are() -> None:
    answering = Answering()
    held: asyncio.Future[HttpResponse] = asyncio.get_running_loop().create_future()
    answering.dispatcher.behave = lambda _: held
    deploy = answering.texts["deploy"]
    askers = [NodeId(letter * 32) for letter in "bcdef"]
    tasks = []
    for asker in askers[: MAX_FORWARDED_CALLS // MAX_FORWARDED_CALLS_PER_PEER]:
        tasks += [
            asyncio.ensure_future(answering.ask("/deploy", deploy, asker=asker))
            for _ in range(MAX_FORWARDED_CALLS_PER_PEER)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Saturated):
            await answering.ask("/deploy", deploy, asker=asker)
    with pytest.raises(Saturated):
        await answering.ask("/deploy", deploy, asker=askers[-1])
    held.set_result(json_response({}))
    assert {each.status for each in await asyncio.gather(*tasks)} == {200}
    assert repr(answering.server) == "<ForwardServer: 0 calls run>"
    assert (await answering.ask("/deploy", deploy, asker=askers[0])).status == 200


async def test_an_answer_that_is_too_large_to_pass_on_names_the_gateway_that_gives_it() -> None:
    answering = Answering()
    body: list[Buffer] = [bytes(MAX_FORWARDED_ANSWER_BYTES), b"x"]
    answering.dispatcher.behave = lambda _http: HttpResponse(200, {}, body)
    response = await answering.ask("/infer", answering.texts["infer"])
    assert response.status == 413
    assert b"4194305 bytes" in bytes(cast("bytes", response.body))
    assert b"ask the gateway of alpha" in bytes(cast("bytes", response.body))
    body.pop()
    assert (await answering.ask("/infer", answering.texts["infer"])).status == 200
