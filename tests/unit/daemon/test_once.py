"""An `Idempotency-Key` holds at every gateway of the mesh: whole members, over links."""

from __future__ import annotations

import asyncio
import contextlib
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.daemon.once import HomeClaim, KeyHomes, home_of
from meshnode.errors import IdempotencyKeyReused, LinkLost, MeshError
from meshnode.gateway.idempotency import AnswersOnce
from meshnode.gateway.metrics import GatewayMetrics
from meshnode.gateway.sealed_answers import Kept
from meshnode.types import NodeId
from meshnode.wire.messages import STREAMS, Failure, Forwarded, Infer, Once
from tests.unit.daemon.test_remote import DIGITS, LOOPBACK, NAME, ask, make_key, until

if TYPE_CHECKING:
    from meshnode.daemon.assembly import Assembly
    from tests.unit.daemon.conftest import Daemons, Running

DIGEST, FINGERPRINT = b"d" * 32, b"f" * 32


def mesh_of(running: Running) -> Assembly:
    mesh = running.daemon._mesh
    assert mesh is not None
    return mesh


async def post(
    running: Running, path: str, body: bytes, key: str, name: str
) -> tuple[int, dict[str, str], Any]:
    """POST with an `Idempotency-Key`; return status, headers and document."""
    import http.client
    from urllib.parse import urlsplit

    port = urlsplit((await running.get("/mesh/v1/status"))["http"]).port

    def talk() -> tuple[int, dict[str, str], Any]:
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        with contextlib.closing(line):
            headers = {"Host": NAME, "Authorization": f"Bearer {key}", "Idempotency-Key": name}
            line.request("POST", path, body, headers)
            response = line.getresponse()
            told = {name.lower(): value for name, value in response.getheaders()}
            return response.status, told, json.loads(response.read())

    return await asyncio.to_thread(talk)


async def test_a_request_that_is_repeated_at_another_gateway_is_carried_out_once(
    daemons: Daemons,
) -> None:
    """Making an API key shows it: a second one of that name would be refused."""
    alpha = await daemons.start("alpha", http=LOOPBACK, allow_hosts=(NAME,)).ready()
    others = [
        daemons.start(name, await alpha.invite(), http=LOOPBACK, allow_hosts=(NAME,))
        for name in ("beta", "gamma")
    ]
    nodes = [alpha, *[await each.ready() for each in others]]
    for each in nodes:
        await each.sees(3)
    key = await make_key(alpha, "boss", "admin")
    for each in nodes:

        async def is_known(each: Running = each) -> bool:
            return (await ask(each, "GET", "/v2", key=key))[0] == 200

        await until(is_known, "the key arrives")
    for number in range(4):  # so many that each node is somebody's home
        body = json.dumps({"name": f"made-{number}"}).encode()
        answers = [await post(each, "/mesh/v1/keys", body, key, f"wish-{number}") for each in nodes]
        assert [status for status, _, _ in answers] == [201, 201, 201]
        assert len({document["key"] for _, _, document in answers}) == 1
        assert ["idempotent-replayed" in headers for _, headers, _ in answers] == [
            False,
            True,
            True,
        ]
    refused, _, document = await post(
        nodes[1], "/mesh/v1/keys", b'{"name": "other"}', key, "wish-0"
    )
    assert (refused, document["code"]) == (422, "idempotency_key_reused")
    at_once = await asyncio.gather(
        *(post(each, "/mesh/v1/keys", b'{"name": "race"}', key, "race") for each in nodes)
    )
    assert [status for status, _, _ in at_once] == [201, 201, 201]
    assert len({document["key"] for _, _, document in at_once}) == 1


async def test_a_gateway_that_dies_leaves_its_claim_to_the_next(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha").ready()
    beta = await daemons.start("beta", await alpha.invite()).ready()
    await alpha.sees(2)
    await beta.sees(2)
    here, there = mesh_of(alpha), mesh_of(beta)
    digest = next(
        bytes([number]) * 32
        for number in range(256)
        if home_of(bytes([number]) * 32, [here.node.me, there.node.me]) == here.node.me
    )
    homes = KeyHomes(there.node, there.driver, there._entrances.once)
    claim = await homes.claim(digest, FINGERPRINT)
    assert claim is not None
    assert claim.answer is None
    waiting = asyncio.ensure_future(here._entrances.once.claim(digest, FINGERPRINT))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await beta.kill()
    assert await asyncio.wait_for(waiting, 10) is None
    here._entrances.once.settle(digest, None)


# Without a network.


class Line:
    """A link that a test answers on."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, bytes]] = []
        self.calls: list[Any] = []
        self.cancelled: list[int] = []
        self.replies: list[tuple[Any, bytes, bool]] = []
        self.is_lost = False
        self.hello = None

    def open(self, meta: bytes, parts: list[bytes], call: Any) -> int:
        if self.is_lost:
            raise LinkLost("gone")
        self.sent.append((STREAMS.decode(meta), b"".join(parts)))
        self.calls.append(call)
        return len(self.calls)

    def cancel(self, stream: int) -> None:
        self.cancelled.append(stream)

    def reply(self, _stream: int, meta: bytes, parts: Any = (), *, end: bool) -> None:
        self.replies.append((STREAMS.decode(meta), b"".join(parts), end))


def say(call: Any, message: Any, data: bytes = b"", *, end: bool = True) -> None:
    call.part(STREAMS.encode(message), memoryview(data), end)


def homes_over(line: Line | None, me: str = "a" * 32, other: str = "b" * 32) -> KeyHomes:
    members = {NodeId(node): SimpleNamespace(live=True) for node in (me, other)}
    node: Any = SimpleNamespace(me=NodeId(me), membership=SimpleNamespace(members=members))

    async def link(_node: Any) -> Any:
        return line

    reach: Any = SimpleNamespace(linked=lambda _node: None, link=link)
    return KeyHomes(node, reach, AnswersOnce(lambda: 0.0, GatewayMetrics()))


def away() -> bytes:
    """Return a digest whose home is the other node."""
    return next(
        bytes([number]) * 32
        for number in range(256)
        if home_of(bytes([number]) * 32, [NodeId("a" * 32), NodeId("b" * 32)]) == "b" * 32
    )


def test_all_nodes_name_the_same_home_and_a_node_that_goes_moves_only_its_share() -> None:
    nodes = [NodeId(letter * 32) for letter in "abcde"]
    homes = {number: home_of(number.to_bytes(32), nodes) for number in range(500)}
    assert {
        home_of(number.to_bytes(32), nodes[::-1]) == home for number, home in homes.items()
    } == {True}
    fewer = nodes[1:]
    for number, home in homes.items():
        if home != nodes[0]:
            assert home_of(number.to_bytes(32), fewer) == home
    assert all(60 < list(homes.values()).count(node) < 140 for node in nodes)
    assert home_of(DIGEST, []) is None


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (Failure("idempotency_key_reused", "another request"), IdempotencyKeyReused),
        (Failure("invalid_request", "this node does not know what is asked"), None),
        (Infer("m", 1, (), 1.0), None),
        (Forwarded(1), None),
    ],
)
async def test_what_a_home_says_that_helps_nobody_leaves_the_gateway_to_itself(
    message: Any, expected: type[MeshError] | None
) -> None:
    line = Line()
    asking = asyncio.ensure_future(homes_over(line).claim(away(), FINGERPRINT))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    say(line.calls[0], message)
    if expected is not None:
        with pytest.raises(expected):
            await asking
    else:
        assert await asking is None
    assert line.cancelled == [1]


async def test_a_home_that_is_out_of_reach_is_not_waited_for() -> None:
    assert await homes_over(None).claim(away(), FINGERPRINT) is None
    line = Line()
    line.is_lost = True
    assert await homes_over(line).claim(away(), FINGERPRINT) is None
    line.is_lost = False
    asking = asyncio.ensure_future(homes_over(line).claim(away(), FINGERPRINT))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    line.calls[0].lost(LinkLost("gone"))
    assert await asking is None


async def test_an_answer_crosses_the_link_with_the_headers_that_are_fit_to_be_shown() -> None:
    line = Line()
    asking = asyncio.ensure_future(homes_over(line).claim(away(), FINGERPRINT))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    headers = {"Location": "/x", "Bad\n": "x", "Worse": "a\r\nb", "Long": "x" * 5000}
    say(line.calls[0], Forwarded(201, headers), b"body")
    claim = await asking
    assert claim is not None
    assert claim.answer == Kept(201, {"Location": "/x"}, b"body")


async def test_a_home_is_told_and_its_death_meanwhile_is_no_error() -> None:
    line: Any = Line()
    claim = HomeClaim(line, DIGEST, FINGERPRINT)
    asking = asyncio.ensure_future(claim.ask())
    await asyncio.sleep(0)
    say(line.calls[0], Forwarded(0), end=False)
    await asking
    telling = asyncio.ensure_future(claim.settle(Kept(200, {"A": "b"}, b"body")))
    await asyncio.sleep(0)
    assert line.sent[1] == (Once(DIGEST, FINGERPRINT, 200, {"A": "b"}), b"body")
    say(line.calls[1], Forwarded(0))
    await telling
    assert line.cancelled == [2, 1]
    telling = asyncio.ensure_future(claim.settle(None))
    await asyncio.sleep(0)
    assert line.sent[2] == (Once(DIGEST, FINGERPRINT, 1), b"")
    line.calls[2].lost(LinkLost("gone"))
    await telling
    line.is_lost = True
    await claim.settle(None)


async def test_a_home_lets_one_gateway_at_a_time_and_forgets_who_went_away() -> None:
    homes = homes_over(None)
    line: Any = Line()
    first = asyncio.ensure_future(homes.answer(line, 1, Once(DIGEST, FINGERPRINT), memoryview(b"")))
    second = asyncio.ensure_future(
        homes.answer(line, 2, Once(DIGEST, FINGERPRINT), memoryview(b""))
    )
    for _ in range(3):
        await asyncio.sleep(0)
    assert line.replies == [(Forwarded(0), b"", False)]
    first.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(line.replies) == 2, "the second may carry it out now"
    told = Once(DIGEST, FINGERPRINT, 200, {"A": "b"})
    await homes.answer(line, 3, told, memoryview(b"body"))
    await second
    await homes.answer(line, 4, Once(DIGEST, FINGERPRINT), memoryview(b""))
    assert line.replies[-1] == (Forwarded(200, {"A": "b"}), b"body", True)
    with pytest.raises(IdempotencyKeyReused):
        await homes.answer(line, 5, Once(DIGEST, b"x" * 32), memoryview(b""))


async def test_an_inference_is_repeated_from_what_was_kept(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK, allow_hosts=(NAME,)).ready()
    key = await make_key(alpha, "phone")
    await alpha.post("/mesh/v1/deployments", {"path": str(DIGITS), "name": "digits"})

    async def is_ready() -> bool:
        return (await ask(alpha, "GET", "/v2/models/digits/ready", key=key))[0] == 200

    await until(is_ready, "it is served")
    metadata = (await ask(alpha, "GET", "/v2/models/digits", key=key))[1]
    (spec,) = metadata["inputs"]
    shape = [max(1, size) for size in spec["shape"]]
    count = 1
    for size in shape:
        count *= size
    tensor = {
        "name": spec["name"],
        "datatype": spec["datatype"],
        "shape": shape,
        "data": [0] * count,
    }
    body = json.dumps({"inputs": [tensor]}).encode()
    answers = [await post(alpha, "/v2/models/digits/infer", body, key, "one") for _ in range(2)]
    assert [status for status, _, _ in answers] == [200, 200]
    assert answers[0][2] == answers[1][2]
    assert answers[1][1]["idempotent-replayed"] == "true"
    assert answers[1][1]["mesh-route"] == answers[0][1]["mesh-route"]
