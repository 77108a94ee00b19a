"""What HTTP says about kept answers: the request's `Cache-Control`, the answer's `Mesh-Cache` and `Age`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from meshnode.cache_control import PLAIN, CacheControl, read_cache_control
from meshnode.errors import NotCached
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
from meshnode.gateway.protocols.status import error_response
from meshnode.models.exposure import Exposure
from meshnode.types import InferResponse, ResponsePart
from meshnode.wire.messages import STREAMS, Infer
from tests.unit.gateway.conftest import echo_part
from tests.unit.gateway.test_server import GOOD

if TYPE_CHECKING:
    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.metrics import GatewayMetrics
    from tests.unit.gateway.conftest import FakeLocal


@pytest.mark.parametrize(
    ("header", "asks"),
    [
        ("", PLAIN),
        ("no-cache", CacheControl(look_up=False)),
        ("No-Store", CacheControl(look_up=False, keep=False)),
        ("max-age=30", CacheControl(max_age_s=30)),
        ('max-age="30"', CacheControl(max_age_s=30)),
        ("max-age=0, only-if-cached", CacheControl(max_age_s=0, only_if_cached=True)),
        ("no-transform, max-stale=7, x=y,, ", PLAIN),
        ("max-age=-1, max-age=x, max-age=٣", PLAIN),
        ("x" * 10_000 + ", no-store", PLAIN),
    ],
)
def test_what_a_header_asks_for_is_read_and_nonsense_is_ignored(
    header: str, asks: CacheControl
) -> None:
    assert read_cache_control(header) == asks
    assert read_cache_control(asks.text) == asks, "it crosses a link as text"


def test_the_wish_travels_to_the_replica_and_an_old_node_sends_none() -> None:
    ask = Infer("m", 1, (), 1.0, cache_control="no-cache")
    assert STREAMS.decode(STREAMS.encode(ask)) == ask
    assert Infer("m", 1, (), 1.0).cache_control == ""
    assert math.isinf(PLAIN.max_age_s)


class Bench:
    """A gateway whose model keeps answers, as far as its replica says so."""

    def __init__(self, dispatcher: Dispatcher, local: FakeLocal, serve: Any, manifest: Any) -> None:
        self.dispatcher, self.local = dispatcher, local
        exposed = replace(manifest, exposure=Exposure(cache=True))
        serve(what=exposed)

    async def ask(self, **headers: str) -> HttpResponse:
        path = "/v2/models/digits/infer"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        http = HttpRequest("POST", path, "", named, GOOD)
        reply = self.dispatcher.answer(self.dispatcher.match("POST", path), http, "r1")
        answer = reply if isinstance(reply, HttpResponse) else await reply
        assert isinstance(answer, HttpResponse)
        return answer

    def answer_from_cache(self, age_s: float) -> None:
        def kept(request: Any) -> ResponsePart:
            part = echo_part(request)
            return ResponsePart(part.outputs, {"cache": "hit", "cache_age_s": age_s})

        self.local.try_infer_inline = kept  # type: ignore[method-assign]


@pytest.fixture
def bench(dispatcher: Dispatcher, local: FakeLocal, serve: Any, manifest: Any) -> Bench:
    return Bench(dispatcher, local, serve, manifest)


async def test_an_answer_says_whether_it_was_kept_and_how_old_it_is(
    bench: Bench, metrics: GatewayMetrics
) -> None:
    made = await bench.ask()
    assert made.headers["Mesh-Cache"] == "miss"
    assert "Age" not in made.headers
    bench.answer_from_cache(12.9)
    kept = await bench.ask()
    assert (kept.headers["Mesh-Cache"], kept.headers["Age"]) == ("hit", "12")
    assert kept.headers["Mesh-Route"].endswith("; cache=hit")
    body = kept.body if isinstance(kept.body, bytes) else b"".join(map(bytes, kept.body))
    assert b"cache_age_s" not in body, "the age is a header's, and not the model's"
    assert metrics.cache_answers.values == {("miss",): 1, ("hit",): 1}


@pytest.mark.parametrize("inline", [True, False])
async def test_the_wish_reaches_the_model_server(bench: Bench, inline: bool) -> None:
    bench.local.inline = inline
    answer = await bench.ask(cache_control="no-cache")
    assert answer.headers["Mesh-Cache"] == "bypass"
    assert bench.local.requests[-1].cache_control == "no-cache"
    answer = await bench.ask(cache_control="max-age=5")
    assert answer.headers["Mesh-Cache"] == "miss"
    assert bench.local.requests[-1].cache_control == "max-age=5"


async def test_models_that_keep_nothing_say_nothing(
    bench: Bench, serve: Any, manifest: Any
) -> None:
    serve(what=replace(manifest, exposure=Exposure(cache=False)))
    for headers in ({}, {"cache_control": "no-cache"}):
        assert "Mesh-Cache" not in (await bench.ask(**headers)).headers


async def test_only_a_kept_answer_of_a_model_that_keeps_none_is_504_without_a_run(
    bench: Bench, serve: Any, manifest: Any
) -> None:
    serve(what=manifest)
    with pytest.raises(NotCached) as refused:
        await bench.ask(cache_control="only-if-cached")
    assert error_response(refused.value).status == 504
    assert bench.local.requests == []


async def test_a_stream_of_one_part_says_so_too(bench: Bench) -> None:
    """Dialects that stream whatever they answer build their headers from `Answered` as well."""
    from meshnode.gateway.targets import Answered

    response = InferResponse("m", 1, ResponsePart(()))
    assert Answered(response, "r", "hit", 3.7).cache_headers == {"Mesh-Cache": "hit", "Age": "3"}
    assert Answered(response, "r", "bypass").cache_headers == {"Mesh-Cache": "bypass"}
    assert Answered(response, "r").cache_headers == {}
