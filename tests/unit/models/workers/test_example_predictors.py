"""The predictors of the examples, as the runtime asks them."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from meshnode.errors import InvalidRequest
from meshnode.models.execution import Spelling
from tests.unit.models.workers.spelled import describe, opened, opening, write

EXAMPLES = Path(import_module("meshnode.examples.detector").__file__ or "").parent.parent
STREET = (EXAMPLES / "detector" / "street.png").read_bytes()


def copied(tmp_path: Path, example: str) -> None:
    for file in (EXAMPLES / example / "model").glob("*.*"):
        if file.suffix == ".py":
            write(tmp_path, {file.name: file.read_text()})
        else:
            (tmp_path / file.name).write_bytes(file.read_bytes())


def bomb(side: int) -> bytes:
    """Return a PNG of a few bytes that claims so many black and white pixels."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)),
        (b"IDAT", b""),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


async def test_the_detector_refuses_what_it_cannot_do_with_a_sentence(tmp_path: Path) -> None:
    copied(tmp_path, "detector")
    what = opening(tmp_path, "predictor.py", Spelling.PREDICTOR)
    schema = json.loads(describe(what).execution.schema)
    assert schema["request"]["required"] == ["image"]
    assert schema["response"]["properties"]["detections"]["type"] == "array"
    street = {"image": base64.b64encode(STREET).decode()}
    async with opened(what) as model:
        assert (await model.ask(street)).json["count"] > 0
        for accept, kind in (
            ("image/jpeg", "JPEG"),
            ("image/*", "PNG"),
            ("IMAGE/PNG;q=0.9", "PNG"),
        ):
            said = await model.ask(street, accept=accept)
            assert Image.open(io.BytesIO(said.body)).format == kind
            assert said.head.header("content-type") == f"image/{kind.lower()}"
        assert (await model.ask(street, accept="image/gif")).head.status == 406
        for side in (6_000, 40_000):  # over its own limit, over Pillow's
            encoded = base64.b64encode(bomb(side)).decode()
            said = await model.ask({"image": encoded})
            assert (said.head.status, "pixels" in said.json["detail"]) == (413, True)
        said = await model.ask({"image": "!"})
        assert said.head.status == 400
        for wrong in ({}, {**street, "threshold": 0}, {**street, "threshold": True}):
            with pytest.raises(InvalidRequest, match=r"image|threshold"):
                await model.ask(wrong)


async def test_the_painter_streams_documents_in_the_form_that_is_accepted(tmp_path: Path) -> None:
    copied(tmp_path, "text_to_image")
    what = opening(tmp_path, "predictor.py", Spelling.PREDICTOR)
    assert json.loads(describe(what).execution.schema)["request"]["required"] == ["prompt"]
    asked = {"prompt": "a red ring over night", "size": 32, "stream": True}
    async with opened(what) as model:
        lines = (await model.ask(asked)).body.splitlines()
        assert [json.loads(line)["progress"] for line in lines] == [0.5, 1.0]
        said = await model.ask(asked, accept="text/event-stream")
        assert said.body.startswith(b'data: {"progress":0.5')
        assert (await model.ask({**asked, "stream": False}, accept="image/png")).body[
            :4
        ] == b"\x89PNG"
        assert (await model.ask({**asked, "stream": False}, accept="image/jpeg")).head.status == 406
        assert (await model.ask({"prompt": "xyzzy"})).head.status == 400
        for wrong in ({}, {**asked, "size": 9}, {**asked, "size": "32"}, {**asked, "prompt": ""}):
            with pytest.raises(InvalidRequest, match=r"prompt|size"):
                await model.ask(wrong)
