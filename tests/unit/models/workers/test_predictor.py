"""Predictors as endpoint-style servers call them."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import InferenceFailed, InvalidRequest, ModelError
from meshnode.models.execution import Execution, Interface, Spelling
from meshnode.models.runtimes.base import Opening
from meshnode.models.workers.loading import concurrency_of
from meshnode.models.workers.predictor import FedMLPredictor, functions_of, returned_file
from tests.unit.models.workers.spelled import describe, document, opened, opening, write

if TYPE_CHECKING:
    from pathlib import Path

BOT = """
import asyncio
import tempfile
from pathlib import Path

from fedml.serving import FedMLInferenceRunner, FedMLPredictor

class Bot(FedMLPredictor):
    def __init__(self, greeting):
        super().__init__()
        self.greeting = greeting
        self.asked = 0

    def ready(self):
        self.asked += 1
        return self.asked > 1

    def predict(self, request, header=None):
        if header == "image/png":
            path = Path(tempfile.gettempdir()) / "picture.png"
            path.write_bytes(b"P" * 600_000)
            return str(path)
        if header in ("image/gif", "image/x-own"):
            path = Path(tempfile.gettempdir()) / "unnamed"
            path.write_bytes(bytes.fromhex("89504e470d0a1a0a") if header == "image/gif" else b"own")
            return str(path)
        if header == "audio/wav":
            return b"RIFF....WAVE"
        if header == "text/secret":
            return "/etc/hostname"
        if request.get("fail"):
            raise KeyError("nothing")
        return {"greeting": self.greeting, "asked": self.asked}

    async def async_predict(self, request):
        for number in range(request["n"]):
            yield f"{number};"
            await asyncio.sleep(0)

if __name__ == "__main__":
    FedMLInferenceRunner(Bot("hello")).run()
"""

RESPONSES = """
from fastapi import HTTPException
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

class Question(BaseModel):
    kind: str

class Answerer:
    async def predict(self, request: Question):
        match request.kind:
            case "teapot":
                raise HTTPException(418, "short and stout")
            case "response":
                return JSONResponse({"made": 1}, 201, {"x-own": "yes"})
            case "generator":
                return (each for each in ({"n": 1}, {"n": 2}))
        return {"kind": request.kind}

    async def async_predict(self, request):
        async def events():
            yield "data: a\\n\\n"
            yield "data: b\\n\\n"
        return StreamingResponse(events(), media_type="text/event-stream")
"""


async def test_a_program_with_a_predictor_is_run_and_its_predictor_served(tmp_path: Path) -> None:
    write(tmp_path / "src", {"main_entry.py": BOT})
    what = opening(tmp_path, "src/main_entry.py", Spelling.PREDICTOR)
    async with opened(what) as model:
        said = await model.ask({"a": 1})
        assert said.json == {"greeting": "hello", "asked": 2}  # once it was ready
        said = await model.ask({"stream": True, "n": 3})
        assert (said.parts, said.body) == (3, b"0;1;2;")
        said = await model.ask({}, accept="image/png")
        assert (len(said.body), said.parts) == (600_000, 3)
        assert said.head.header("content-type") == "image/png"
        assert said.head.header("content-length") == "600000"
        with pytest.raises(InferenceFailed, match="outside its own folders"):
            await model.ask({}, accept="text/secret")
        with pytest.raises(InvalidRequest, match=r"JSON \(dict\), not with video/mp4"):
            await model.ask({}, accept="video/mp4")
        with pytest.raises(InferenceFailed, match="KeyError"):
            await model.ask({"fail": True})
        (said,) = await model.batch({"a": 1})
        assert said.json["greeting"] == "hello"
    told = describe(what).execution
    assert (told.interface, told.decoupled) == (Interface.JSON, True)


STREAMS = """
class Counter:
    def predict(self, request, header=None):
        return {"whole": True}

    async def async_predict(self, request):
        for number in range(2):
            yield {"n": number}
        if request.get("fail"):
            raise ValueError("broken")
"""


@pytest.mark.parametrize(
    ("document", "accept", "body", "kind"),
    [
        ({"stream": True}, "", b'{"n":0}\n{"n":1}\n', "application/x-ndjson"),
        ({"stream": True}, "text/event-stream", b'data: {"n":0}\n\ndata: {"n":1}\n\n', "text/event-stream"),
        ({"stream": True}, "application/x-ndjson", b'{"n":0}\n{"n":1}\n', "application/x-ndjson"),
        ({}, "text/event-stream", b'data: {"n":0}\n\ndata: {"n":1}\n\n', "text/event-stream"),
        ({}, "Application/X-NDJSON;q=0.5", b'{"n":0}\n{"n":1}\n', "application/x-ndjson"),
        ({}, "application/json, text/event-stream", b'{"whole":true}', ""),
    ],
)  # fmt: skip
async def test_a_stream_has_the_form_that_is_accepted(
    tmp_path: Path, document: dict[str, object], accept: str, body: bytes, kind: str
) -> None:
    write(tmp_path, {"predictor.py": STREAMS})
    async with opened(opening(tmp_path, "predictor.py", Spelling.PREDICTOR)) as model:
        said = await model.ask(document, accept=accept)
        assert (said.body, said.head.header("content-type")) == (body, kind)
        with pytest.raises(InvalidRequest, match="a stream is text/event-stream or"):
            await model.ask({"stream": True}, accept="image/png")


async def test_a_file_is_labelled_as_what_it_is_and_asked_for_by_one_plain_type(
    tmp_path: Path,
) -> None:
    write(tmp_path / "src", {"main_entry.py": BOT})
    async with opened(opening(tmp_path, "src/main_entry.py", Spelling.PREDICTOR)) as model:
        for accept, kind in (
            ("image/gif", "image/png"),  # it says by its first bytes that it is none
            ("video/mp4;q=0.5, IMAGE/PNG", "image/png"),
            ("image/x-own;level=1", "image/x-own"),  # nothing tells what it is
            ("audio/x-wav", "audio/wav"),
        ):
            said = await model.ask({}, accept=accept)
            assert said.head.header("content-type") == kind
        assert (await model.ask({}, accept="image/png;q=0")).json["greeting"] == "hello"


async def test_coroutines_types_and_responses_of_fastapi_are_understood(tmp_path: Path) -> None:
    write(tmp_path, {"predictor.py": RESPONSES})
    what = opening(tmp_path, "predictor.py", Spelling.PREDICTOR)
    assert '"kind"' in describe(what).execution.schema
    async with opened(what) as model:
        assert (await model.ask({"kind": "x"})).json == {"kind": "x"}
        with pytest.raises(InvalidRequest, match="kind: Field required"):
            await model.ask({})
        said = await model.ask({"kind": "teapot"})
        assert (said.head.status, said.json) == (418, {"detail": "short and stout"})
        said = await model.ask({"kind": "response"})
        assert (said.head.status, said.json) == (201, {"made": 1})
        assert said.head.header("x-own") == "yes"
        said = await model.ask({"kind": "generator"})
        assert said.body == b'{"n":1}\n{"n":2}\n'
        assert said.head.header("content-type") == "application/x-ndjson"
        said = await model.ask({"kind": "s", "stream": True})
        assert (said.parts, said.body) == (2, b"data: a\n\ndata: b\n\n")
        assert said.head.header("content-type").startswith("text/event-stream")


@pytest.mark.parametrize(("text", "number"), [("", 7), ("1", 1), ("300", 300)])
def test_a_model_may_say_how_many_requests_it_works_on(
    tmp_path: Path, text: str, number: int
) -> None:
    assert concurrency_of(asking_for(tmp_path, text), 7) == number


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "5000"])
def test_another_number_of_requests_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelError, match="1 to 1024"):
        concurrency_of(asking_for(tmp_path, text), 7)


def asking_for(folder: Path, text: str) -> Opening:
    execution = Execution(parameters=(("concurrency", text),))
    return Opening(folder=folder, entry="predictor.py", execution=execution)


def test_one_of_both_functions_stands_for_the_other() -> None:
    class Streams(FedMLPredictor):
        def async_predict(self, request: object) -> None: ...

    class Predicts:
        def predict(self, request: object) -> None: ...

    streams, predicts = Streams(), Predicts()
    assert functions_of(streams) == (streams.async_predict, streams.async_predict)
    assert functions_of(predicts) == (predicts.predict, predicts.predict)
    with pytest.raises(ModelError, match="neither"):
        functions_of(FedMLPredictor())


def test_a_file_without_a_predictor_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"predictor.py": "import pydantic\nclass Other: ...\n"})
    with pytest.raises(ModelError, match="no class with predict"):
        describe(opening(tmp_path, "predictor.py", Spelling.PREDICTOR))


def test_only_a_regular_file_of_the_models_own_folders_is_sent(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    write(tmp_path, {"own/a.png": b"a", "other/b.png": b"b"})
    (own / "link.png").symlink_to(other / "b.png")
    assert returned_file(own / "a.png", [own]) == (own / "a.png").resolve()
    for path in (other / "b.png", own / ".." / "other" / "b.png", own / "link.png"):
        with pytest.raises(InferenceFailed, match="outside its own folders"):
            returned_file(path, [own])
    with pytest.raises(InferenceFailed, match="not there"):
        returned_file(own / "none", [own])
    with pytest.raises(InferenceFailed, match="no file"):
        returned_file(own, [own])


ENDLESS = """
import itertools

class Endless:
    def __init__(self):
        self.ended = 0

    def predict(self, request):
        return {"ended": self.ended}

    def async_predict(self, request):
        own = []
        own.append(own)
        try:
            for number in itertools.count():
                yield {"text": f"{number} "}
        finally:
            self.ended += 1
"""


async def test_a_generator_that_nobody_reads_to_its_end_is_closed_at_once(tmp_path: Path) -> None:
    write(tmp_path, {"predictor.py": ENDLESS})
    what = opening(tmp_path, "predictor.py", Spelling.PREDICTOR)
    async with opened(what) as model:
        for ended in (1, 2, 3):
            parts: Any = model.process.stream(document({"stream": True}))
            async with aclosing(parts):
                await anext(aiter(parts))
            assert (await model.ask({})).json == {"ended": ended}


LINES = """
class Lines:
    def async_predict(self, request):
        yield from eval(request["pieces"])
"""


@pytest.mark.parametrize(
    ("pieces", "media_type"),
    [
        ("""['{"text":"a"}\\n', '{"text":"b"}\\n']""", "application/x-ndjson"),
        ("""[b'{"text":"a"}\\n{"text":"b"}\\n']""", "application/x-ndjson"),
        ("""['{', '}']""", "text/plain; charset=utf-8"),
        ("""['{a}\\n']""", "text/plain; charset=utf-8"),
        ("""[b'{"text":"a"}']""", "application/octet-stream"),
        ("""['data: {"text":"a"}\\n\\n']""", "text/event-stream"),
    ],
)
async def test_the_first_piece_says_what_a_stream_is(
    tmp_path: Path, pieces: str, media_type: str
) -> None:
    write(tmp_path, {"predictor.py": LINES})
    what = opening(tmp_path, "predictor.py", Spelling.PREDICTOR)
    async with opened(what) as model:
        said = await model.ask({"stream": True, "pieces": pieces})
        assert said.head.header("content-type") == media_type
