"""What gateways ask each other about releases, through the real messages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from meshnode.daemon import release_words
from meshnode.daemon.release_words import ReleaseWords
from meshnode.daemon.serving import PeerServer
from meshnode.errors import InvalidRequest, LinkLost, MeshError
from meshnode.gateway.disagreements import Asked, Compared, Disagreements
from meshnode.gateway.feedback import AnswerMemory, Feedback
from meshnode.rollout import Progress, evidence_key
from meshnode.routing.releasing.split import LiveRelease, Releases
from meshnode.state.release import Release, Step
from meshnode.types import DataType, InferRequest, NodeId, Tensor
from meshnode.wire.messages import STREAMS, Failure, FeedbackTold, SequenceTaken

if TYPE_CHECKING:
    from meshnode.daemon.forwarding import Reach
    from meshnode.gateway.releasing import Releasing
    from meshnode.net.connection import Connection
    from meshnode.node import Node

ME, BETA, GAMMA = (NodeId(letter * 32) for letter in "abc")
KEY = "k" * 16
REVISION = (7, 7)
Y = Tensor("y", DataType.INT64, (1,), (3).to_bytes(8, "little"))


class Gateway:
    """What one node's gateway remembers of a release."""

    def __init__(self) -> None:
        release = Release("canary", 1, 2, (Step(0.5),), against="labels", compare="equal")
        progress = Progress(REVISION, "running", 0, 0)
        self.live = LiveRelease("digits", REVISION, release, progress)
        self.answers = AnswerMemory(lambda: 100.0)
        self.mirroring = SimpleNamespace(disagreements=Disagreements())

    def tell(self, feedback: Feedback, caller: str) -> Any:
        return self.answers.tell(feedback, caller, lambda _model: self.live)

    def keep(self, request: str = "r1") -> None:
        self.answers.keep(
            request, KEY, model="digits", revision=REVISION, version=2, device="", outputs=(Y,)
        )

    def disagree(self) -> None:
        request = InferRequest("digits", (Y,), 2, request_id="r1")
        self.mirroring.disagreements.add(
            self.live,
            Compared(Asked.of(request), (Y,), "cat", "cpu", "beta", "eu", "it is a cat", 0.0),
        )
        self.mirroring.disagreements.missed(self.live, "nobody knows", 1.0)


class Link:
    """A link to a node; its peer server answers, or what a test put in its place."""

    def __init__(self, server: PeerServer | None, instead: Any = None) -> None:
        self.server = server
        self.instead = instead
        self.asked = 0
        self._handler: Any = None

    def open(self, meta: bytes, data: list[bytes], handler: Any) -> int:
        self.asked += 1
        self._handler = handler
        if isinstance(self.instead, MeshError):
            handler.lost(self.instead)
        elif self.instead is not None:
            handler.part(STREAMS.encode(self.instead), memoryview(b"{"), True)
        elif self.server is not None:
            joined = memoryview(b"".join(data))
            self.server.opened(cast("Connection", self), 1, meta, joined)
        return 1

    def reply(self, _stream: int, meta: bytes, data: Any = (), *, end: bool) -> None:
        self._handler.part(meta, memoryview(b"".join(data)), end)

    def cancel(self, _stream: int) -> None: ...


class World:
    """A mesh of this node and two others."""

    def __init__(self) -> None:
        self.gateways = {node: Gateway() for node in (ME, BETA, GAMMA)}
        self.told: set[tuple[NodeId, str]] = set()
        self.links: dict[NodeId, Link] = {}
        for node in (BETA, GAMMA):
            self.links[node] = Link(self._server(node))
        self.words = self._words(ME)

    def _server(self, node: NodeId) -> PeerServer:
        server = PeerServer(cast("Any", None), cast("Any", None))
        server.releases = self._words(node)
        return server

    def _words(self, me: NodeId) -> ReleaseWords:
        releases = Releases()
        gateway = self.gateways[me]
        releases.follow("digits", REVISION, gateway.live.release, gateway.live.progress)
        members = {
            each: SimpleNamespace(live=True, record=SimpleNamespace(name=name))
            for each, name in ((ME, "alpha"), (BETA, "beta"), (GAMMA, "gamma"))
        }
        node = SimpleNamespace(
            me=me,
            membership=SimpleNamespace(members=members),
            router=SimpleNamespace(releases=releases),
            owners=SimpleNamespace(get=lambda node, key: (node, key) in self.told or None),
        )
        reach = SimpleNamespace(linked=self.links.get, link=self._link)
        return ReleaseWords(cast("Node", node), cast("Reach", reach), cast("Releasing", gateway))

    async def _link(self, _node: NodeId) -> None:
        return None


async def test_feedback_is_counted_by_the_gateway_that_gave_the_answer() -> None:
    world = World()
    world.gateways[GAMMA].keep()
    counted = await world.words.tell(Feedback("r1", {"stars": 4}, 3), KEY)
    assert counted is not None
    assert (counted.version, counted.counted, counted.agreed) == (2, ("stars",), True)
    assert await world.words.tell(Feedback("r1", {"stars": 4}), "") is None
    assert await world.words.tell(Feedback("r2", {"stars": 4}), KEY) is None


async def test_what_does_not_fit_the_answer_is_told_as_there() -> None:
    world = World()
    world.gateways[BETA].keep()
    with pytest.raises(InvalidRequest, match="the answer's outputs are 'y'"):
        await world.words.tell(Feedback("r1", label={"z": 1}), KEY)


@pytest.mark.parametrize(
    "answer",
    [LinkLost("gone"), Failure("usage", "what?"), SequenceTaken(), FeedbackTold(found=True)],
)
async def test_a_gateway_that_does_not_understand_or_answer_costs_no_feedback(answer: Any) -> None:
    """As one of an earlier version, or one that says something that is no answer."""
    world = World()
    world.links[BETA] = Link(None, answer)
    world.gateways[GAMMA].keep()
    assert await world.words.tell(Feedback("r1", {"stars": 4}), KEY) is not None


async def test_a_silent_gateway_is_waited_for_no_longer_than_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(release_words, "GATEWAY_ASKED_TIMEOUT_S", 0.01)
    world = World()
    world.links[BETA] = Link(None)
    assert await world.words.tell(Feedback("r1", {"stars": 4}), KEY) is None
    assert (await world.words.disagreements("digits")).silent == ["beta"]


async def test_those_that_tell_of_a_release_are_asked_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(release_words, "MAX_GATEWAYS_ASKED", 1)
    world = World()
    world.told = {(GAMMA, evidence_key("digits"))}
    await world.words.tell(Feedback("r1", {"stars": 4}), KEY)
    assert (world.links[BETA].asked, world.links[GAMMA].asked) == (0, 1)


async def test_the_disagreements_of_all_gateways_are_told() -> None:
    world = World()
    world.gateways[GAMMA].disagree()
    del world.links[BETA]
    seen = await world.words.disagreements("digits")
    (view,) = seen.views
    assert (view.compared, view.disagreed) == (1, 1)
    assert view.examples[0]["expected"] == "cat"
    assert (view.version, view.no_reference, view.reason) == (2, 1, "nobody knows")
    assert seen.silent == ["beta"]
