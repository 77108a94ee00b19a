"""`endpoint.py` with a FastAPI router beside `pipeline.py`, as Graphcore's example has them."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import ModelError
from meshnode.models.execution import Interface, Route, Spelling
from meshnode.models.workers.endpoint import Worker, WorkerGroup, stand_ins
from meshnode.models.workers.pipeline import Pipe
from tests.unit.models.workers.spelled import describe, opened, opening, write

if TYPE_CHECKING:
    from pathlib import Path

PIPELINE = """
class Pipeline:
    def __call__(self, inputs):
        if inputs["text"] == "fail":
            raise ValueError("cannot")
        return {"prediction": inputs["text"].upper(), "picture": object()}
pipe = Pipeline()
def compile(pipe):
    pipe({"text": "x"})
"""

ENDPOINT = """
from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import StreamingResponse
from fastapi.security.api_key import APIKey
from pydantic import BaseModel

from config import settings
from server import ipu_worker_group

models = settings.server_models

class Ask(BaseModel):
    text: str

class Reply(BaseModel):
    results: str

router = APIRouter(tags=["API_DEPLOYMENT"])
started = []

@router.on_event("startup") if hasattr(router, "on_event") else (lambda f: f)
def begin():
    started.append(1)

@router.post("/shout", response_model=Reply, include_in_schema="shout" in models)
def shout(model_input: Ask):
    ipu_worker_group.workers["shout"].feed(model_input.model_dump())
    result = ipu_worker_group.workers["shout"].get_result()
    assert result["model_latency"] >= 0
    return {"results": result["prediction"], "secret": 1}

@router.get("/picture/{name}", include_in_schema=False)
async def picture(name: str, size: int = 1):
    if name == "none":
        raise HTTPException(404, "no such picture")
    headers = {"metrics-latency": "1"}
    return Response(name.encode() * size, media_type="image/png", headers=headers)

@router.get("/events")
async def events():
    async def numbers():
        for number in range(3):
            yield f"data: {number}\\n\\n"
    return StreamingResponse(numbers(), media_type="text/event-stream")
"""


async def test_an_endpoint_is_loaded_as_it_is_and_answers_by_its_routes(tmp_path: Path) -> None:
    write(tmp_path, {"pipeline.py": PIPELINE, "endpoint.py": ENDPOINT})
    what = opening(tmp_path, "pipeline.py", Spelling.PIPELINE)
    async with opened(what) as model:
        said = await model.http("POST", "/shout", b'{"text":"hi"}', content_type="application/json")
        assert (said.head.status, said.json) == (200, {"results": "HI"})  # by its response_model
        said = await model.http("POST", "/shout", b"{}", content_type="application/json")
        assert said.head.status == 422
        assert said.json["detail"][0]["loc"] == ["body", "text"]
        said = await model.http("GET", "/picture/cat", query="size=2")
        assert said.body == b"catcat"
        assert said.head.header("content-type") == "image/png"
        assert said.head.header("metrics-latency") == "1"
        said = await model.http("GET", "/picture/none")
        assert (said.head.status, said.json) == (404, {"detail": "no such picture"})
        said = await model.http("GET", "/events")
        assert (said.parts, said.body) == (3, b"data: 0\n\ndata: 1\n\ndata: 2\n\n")
        said = await model.http(
            "POST", "/shout", b'{"text":"fail"}', content_type="application/json"
        )
        assert said.head.status == 500
        # A document is for the only POST route.
        assert (await model.post(b'{"text":"doc"}')).json == {"results": "DOC"}


async def test_a_route_that_nobody_reaches_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = ENDPOINT.replace("/events", "/metrics")
    write(tmp_path, {"pipeline.py": PIPELINE, "endpoint.py": source})
    what = opening(tmp_path, "pipeline.py", Spelling.PIPELINE)
    with caplog.at_level(logging.INFO, logger="meshnode.models.workers.output"):
        await asyncio.to_thread(describe, what)
        async with opened(what), opened(replace(what, instance=1)):
            await asyncio.sleep(0.1)  # what it prints comes by a thread
    assert caplog.text.count("nobody reaches GET /metrics") == 1


def test_an_endpoint_is_described_by_its_routes_without_its_pipeline(tmp_path: Path) -> None:
    write(tmp_path, {"pipeline.py": "1 / 0", "endpoint.py": ENDPOINT})
    told = describe(opening(tmp_path, "pipeline.py", Spelling.PIPELINE)).execution
    assert told.interface is Interface.HTTP
    assert told.decoupled
    assert told.routes == (
        Route("POST", "/shout"), Route("GET", "/picture/{name}"), Route("GET", "/events"),
    )  # fmt: skip
    schema = json.loads(told.schema)
    assert set(schema["paths"]) == {"/shout", "/events"}  # include_in_schema
    assert "Reply" in schema["components"]["schemas"]


def test_an_endpoint_without_routes_is_refused(tmp_path: Path) -> None:
    empty = "from fastapi import APIRouter\nrouter = APIRouter()"
    write(tmp_path, {"pipeline.py": PIPELINE, "endpoint.py": empty})
    with pytest.raises(ModelError, match=r"endpoint.py has no routes"):
        describe(opening(tmp_path, "pipeline.py", Spelling.PIPELINE))


# The stand-ins, in this process.


class FakePipe(Pipe):
    def __init__(self) -> None:
        self.call = lambda document: {"got": document}


@pytest.fixture
def worker() -> Worker:
    made = Worker("shout")
    made.start(FakePipe())
    return made


def test_each_thread_gets_the_result_of_what_it_fed(worker: Worker) -> None:
    results: dict[int, object] = {}
    barrier = threading.Barrier(8)

    def run(number: int) -> None:
        barrier.wait()
        worker.feed(number)
        results[number] = worker.get_result()["got"]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert results == {number: number for number in range(8)}
    assert worker.queue_size() == 0
    worker.close()


def test_results_are_had_by_their_ids_too_and_never_twice(worker: Worker) -> None:
    first, second = worker.feed("a"), worker.feed("b")
    assert worker.get_result(second)["got"] == "b"
    assert worker.get_result(first)["got"] == "a"
    with pytest.raises(LookupError):
        worker.get_result(first)
    with pytest.raises(LookupError):
        worker.get_result()
    worker.close()


def test_results_that_nobody_asks_for_are_forgotten(worker: Worker) -> None:
    for number in range(1100):
        worker.feed(number)
    assert worker.get_result()["got"] == 1100 - 1024
    worker.close()


def test_the_server_that_endpoints_import_from_has_this_replica_under_every_name(
    worker: Worker,
) -> None:
    modules = stand_ins(worker)
    group = modules["server"].ipu_worker_group
    assert isinstance(group, WorkerGroup)
    assert group.workers["shout"] is group.workers["renamed"] is modules["workers"].workers["x"]
    assert modules["ipu_worker"].IPUWorkerGroup(model_list=[]) is group
    assert group.is_ready()
    models = modules["config"].settings.server_models
    assert "shout" in models
    assert [each.get_name() for each in models] == ["shout"]
    worker.close()
