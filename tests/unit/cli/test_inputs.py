"""`name=value`, arrays and pictures on the command line, and outputs into files."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.unit.cli.test_infer import image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typer.testing import Result

    from tests.unit.cli.conftest import FakeDaemon

    Run = Callable[..., Result]

INFER = "/v2/models/digits/infer"
MANY = [
    {"name": "image", "datatype": "FP32", "shape": [-1, 2, 2]},
    {"name": "x", "datatype": "FP32", "shape": [-1, 1]},
    {"name": "text", "datatype": "BYTES", "shape": [-1]},
]


@pytest.fixture
def many(daemon: FakeDaemon) -> FakeDaemon:
    """The daemon, its model with three inputs."""
    daemon.metadata = {**daemon.metadata, "inputs": MANY}
    return daemon


def inputs_of(daemon: FakeDaemon) -> tuple[dict[str, Any], bytes]:
    """The inputs of the only request by name, and the bytes behind the JSON."""
    body = daemon.sent("POST", INFER)
    if isinstance(body, dict):
        return {each["name"]: each for each in body["inputs"]}, b""
    head, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    return {each["name"]: each for each in head["inputs"]}, body[end:]


def npy(array: np.ndarray[Any, Any], **more: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **more)
    return stream.getvalue()


def test_several_arguments_make_one_request(
    many: FakeDaemon, meshnode: Run, tmp_path: Path
) -> None:
    (tmp_path / "p.png").write_bytes(image("PNG"))
    picture = f"image=@{tmp_path / 'p.png'}"
    result = meshnode("infer", "digits", picture, "x=1.5", "text=hello")
    assert result.exit_code == 0, result.stderr
    inputs, data = inputs_of(many)
    assert inputs["image"]["shape"] == [1, 2, 2]
    assert struct.unpack("<4f", data) == (1.0,) * 4
    assert (inputs["x"]["shape"], inputs["x"]["data"]) == ([1, 1], [1.5])
    assert (inputs["text"]["shape"], inputs["text"]["data"]) == ([1], ["hello"])


@pytest.mark.parametrize(
    ("argument", "shape", "data"),
    [
        ("x=[1, 2]", [2, 1], [1, 2]),
        ("x=[[1], [2]]", [2, 1], [[1], [2]]),
        ("x=-1e3", [1, 1], [-1000.0]),
        ('text=["a", "b"]', [2], ["a", "b"]),
        ("text=5", [1], ["5"]),
        ("text=", [1], [""]),
        ("text=@@home", [1], ["@home"]),
        ("text=a=b", [1], ["a=b"]),
    ],
)
def test_a_value_has_the_type_of_its_input(
    many: FakeDaemon, meshnode: Run, argument: str, shape: list[int], data: list[Any]
) -> None:
    assert meshnode("infer", "digits", argument).exit_code == 0
    (found,) = inputs_of(many)[0].values()
    flat = [value for row in data for value in (row if isinstance(row, list) else [row])]
    assert (found["shape"], found["data"]) == (shape, flat)


def test_an_array_is_sent_with_the_type_of_its_input(
    many: FakeDaemon, meshnode: Run, tmp_path: Path
) -> None:
    (tmp_path / "a.npy").write_bytes(npy(np.array([[7]], ">i2")))
    result = meshnode("infer", "digits", f"x=@{tmp_path / 'a.npy'}")
    assert result.exit_code == 0
    inputs, data = inputs_of(many)
    assert (inputs["x"]["datatype"], inputs["x"]["shape"]) == ("FP32", [1, 1])
    assert data == np.float32(7).tobytes()
    assert "note" not in result.stderr  # nothing is lost


def test_it_is_told_when_digits_of_an_array_may_be_lost(
    daemon: FakeDaemon, meshnode: Run, tmp_path: Path
) -> None:
    """NumPy's default type is float64, and hardly a model takes it."""
    (tmp_path / "a.npy").write_bytes(npy(np.full((2, 2), 0.1)))
    result = meshnode("infer", "digits", str(tmp_path / "a.npy"))
    assert result.exit_code == 0
    inputs, data = inputs_of(daemon)
    assert (inputs["image"]["datatype"], inputs["image"]["shape"]) == ("FP32", [1, 2, 2])
    assert data == np.full(4, 0.1, np.float32).tobytes()
    assert "note: input 'image' is sent as FP32, as the model takes it; the file holds float64" in (
        result.stderr
    )


def test_an_array_that_cannot_become_the_inputs_type_is_refused(
    many: FakeDaemon, meshnode: Run, tmp_path: Path
) -> None:
    whole = {"name": "n", "datatype": "INT8", "shape": [-1]}
    many.metadata = {**many.metadata, "inputs": [whole]}
    for array, said in (
        (np.array([1.5]), 'convert it with astype("int8")'),
        (np.array([300]), "holds 300, which INT8 cannot"),
    ):
        (tmp_path / "a.npy").write_bytes(npy(array))
        result = meshnode("infer", "digits", f"n=@{tmp_path / 'a.npy'}")
        assert result.exit_code == 2
        assert said in result.stderr


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_pictures_of_these_forms_are_taken(
    daemon: FakeDaemon, meshnode: Run, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "picture").write_bytes(image(kind))
    assert meshnode("infer", "digits", str(tmp_path / "picture")).exit_code == 0
    assert inputs_of(daemon)[0]["image"]["shape"] == [1, 2, 2]


def test_an_array_alone_is_for_a_model_with_one_input(
    daemon: FakeDaemon, meshnode: Run, tmp_path: Path
) -> None:
    (tmp_path / "a.npy").write_bytes(npy(np.zeros((3, 2, 2), np.float32)))
    assert meshnode("infer", "digits", str(tmp_path / "a.npy")).exit_code == 0
    assert inputs_of(daemon)[0]["image"]["shape"] == [3, 2, 2]


def test_an_npz_file_names_its_inputs(many: FakeDaemon, meshnode: Run, tmp_path: Path) -> None:
    np.savez_compressed(
        tmp_path / "a.npz", x=np.ones((2, 1), np.float32), text=np.array(["a", "b"])
    )
    assert meshnode("infer", "digits", str(tmp_path / "a.npz")).exit_code == 0
    inputs, _ = inputs_of(many)
    assert {name: each["datatype"] for name, each in inputs.items()} == {
        "x": "FP32",
        "text": "BYTES",
    }


def test_a_file_for_an_input_of_bytes_is_sent_as_it_is(
    many: FakeDaemon, meshnode: Run, tmp_path: Path
) -> None:
    (tmp_path / "p.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    assert meshnode("infer", "digits", f"text=@{tmp_path / 'p.png'}").exit_code == 0
    assert inputs_of(many)[1] == struct.pack("<I", 9) + b"\x89PNG\r\n\x1a\n\xff"


def test_objects_are_never_unpickled(many: FakeDaemon, meshnode: Run, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (print, ("BOOM",))

    content = npy(np.array([Bomb()], dtype=object), allow_pickle=True)
    (tmp_path / "a.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content)
    for argument in (f"x=@{tmp_path / 'a.npy'}", str(tmp_path / "a.npz")):
        result = meshnode("infer", "digits", argument)
        assert result.exit_code == 2
        assert "holds Python objects" in result.stderr
        assert "BOOM" not in result.output


def test_a_zip_bomb_is_not_unpacked(
    many: FakeDaemon, meshnode: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.cli.inputs.MAX_BODY_BYTES", 10_000)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((100_000, 1), np.float32))
    result = meshnode("infer", "digits", str(tmp_path / "a.npz"))
    assert result.exit_code == 2
    assert "larger than a request's limit of 10000 bytes" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["y=1"], "no input 'y'; its inputs are 'image' (FP32 [-1, 2, 2]), 'x'"),
        (["x=1", "x=2"], "input 'x' is given twice"),
        (["x=one"], "input 'x' takes FP32; write a number, or JSON"),
        (["x=1", "-"], "'-' has no name"),
        (["x=@nowhere.npy"], "'nowhere.npy' cannot be read"),
        (["x=1", "--output", "out.txt"], "must end in .npz or .json"),
    ],
)
def test_what_does_not_fit_is_explained(
    many: FakeDaemon, meshnode: Run, arguments: list[str], said: str
) -> None:
    result = meshnode("infer", "digits", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert all(method == "GET" for method, _, _ in many.requests)


@pytest.mark.parametrize("content", [b"\x93NUMPY", npy(np.zeros(9))[:-1], b"PK\x03\x04rubbish"])
def test_a_damaged_array_is_refused(
    daemon: FakeDaemon, meshnode: Run, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "a").write_bytes(content)
    result = meshnode("infer", "digits", str(tmp_path / "a"))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")


def test_outputs_go_into_a_file_of_arrays_or_of_json(
    daemon: FakeDaemon, meshnode: Run, tmp_path: Path
) -> None:
    daemon.answer = {
        "model_name": "digits",
        "model_version": "1",
        "outputs": [
            {"name": "file", "datatype": "INT64", "shape": [1], "data": [2]},
            {"name": "words", "datatype": "BYTES", "shape": [2], "data": ["a", "bc"]},
        ],
    }
    stdin = json.dumps({"image": [[[0, 0], [0, 0]]]}).encode()
    arrays, document = tmp_path / "out.npz", tmp_path / "out.json"
    assert meshnode("infer", "digits", "-", "--output", str(arrays), stdin=stdin).exit_code == 0
    assert daemon.sent("POST", INFER)["parameters"]["binary_data_output"] is True
    with np.load(arrays, allow_pickle=False) as found:
        assert found["file"].tolist() == [2]
        assert found["words"].tolist() == [b"a", b"bc"]
    assert meshnode("infer", "digits", "-", "--output", str(document), stdin=stdin).exit_code == 0
    assert json.loads(document.read_text()) == daemon.answer
