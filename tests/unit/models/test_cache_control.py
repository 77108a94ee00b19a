"""How far a kept answer will do is the caller's to say, and whether any are kept the deployment's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from meshnode.errors import NotCached
from meshnode.models.execution import Execution
from meshnode.models.exposure import Exposure
from tests.unit.models.test_reload import Served, request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.types import Scalar
    from tests.unit.models.conftest import FakeRuntime


async def test_a_request_says_how_far_a_kept_answer_will_do(fake: FakeRuntime) -> None:
    served = Served(fake)
    await served.load(replace(served.old, execution=Execution(cache=True)))
    first, ran = request(value=1), len(fake.ran_in)

    def ask(text: str) -> Mapping[str, Scalar]:
        part = served.server.try_infer_inline(replace(first, cache_control=text))
        assert part is not None
        return part.parameters

    with pytest.raises(NotCached, match="only-if-cached"):
        ask("only-if-cached")
    assert (len(fake.ran_in), len(served.server.cache)) == (ran, 0)
    assert "cache" not in ask("no-store")
    assert (len(fake.ran_in), len(served.server.cache)) == (ran + 1, 0)
    assert "cache" not in ask("no-cache")
    assert (len(fake.ran_in), len(served.server.cache)) == (ran + 2, 1)
    assert ask("only-if-cached")["cache"] == "hit"
    assert ask("max-age=60")["cache"] == "hit"
    assert len(fake.ran_in) == ran + 2
    assert "cache" not in ask("no-cache"), "kept, and not wanted"
    assert len(fake.ran_in) == ran + 3


async def test_whoever_wants_a_new_answer_in_a_thread_gets_a_run_of_its_own(
    fake: FakeRuntime,
) -> None:
    fake.row_s = 1e-3
    served = Served(fake)
    await served.load(replace(served.old, execution=Execution(cache=True)))
    ran = len(fake.ran_in)
    asked = [request(value=7)] * 2
    asked += [replace(asked[0], cache_control="no-cache")]
    await asyncio.gather(*(served.server.infer(each) for each in asked))
    assert len(fake.ran_in) == ran + 2


async def test_keeping_answers_is_switched_without_a_reload(fake: FakeRuntime) -> None:
    served = Served(fake)
    await served.load(served.old)
    server, ran = served.server, len(fake.ran_in)
    offered = replace(served.old, exposure=Exposure(cache=True))
    assert offered.digest == served.old.digest
    server.offer(offered)
    for _ in range(2):
        server.try_infer_inline(request())
    assert len(fake.ran_in) == ran + 1
    server.offer(replace(served.old, exposure=Exposure(cache=False)))
    part = server.try_infer_inline(request())
    assert part is not None
    assert "cache" not in part.parameters
    server.keep_answers(0)
    server.offer(offered)
    with pytest.raises(NotCached):
        server.try_infer_inline(replace(request(), cache_control="only-if-cached"))
    with pytest.raises(NotCached):
        await server.infer(replace(request(), cache_control="only-if-cached"))
