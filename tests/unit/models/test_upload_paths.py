"""Names that an upload may bring, and a table of attacks."""

from __future__ import annotations

import pytest

from meshnode.errors import InvalidRequest
from meshnode.models.repository.upload_paths import check_upload_paths


@pytest.mark.parametrize(
    ("paths", "place"),
    [
        (["digits/1/model.onnx"], "digits"),
        (["digits/config.pbtxt", "digits/1/model.onnx", "digits/1/vocab/a b.txt"], "digits"),
        (["digits.onnx"], "digits.onnx"),
        (["big.onnx", "big.onnx.data", "big.onnx_data"], "big.onnx"),
        (["größe/1/モデル.onnx"], "größe"),
        (["m/1/.hidden", "m/1/a..b"], "m"),
        (["/".join("a" * 16)], "a"),
        (["m/" + "x" * 255], "m"),
    ],
)
def test_ordinary_names_pass_and_tell_where_the_model_is(paths: list[str], place: str) -> None:
    assert check_upload_paths(paths) == place


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "/etc/passwd", "//host/share", "..", "../x", "m/../../x", "m/..", "m/./x", "m//x",
        "m/x/", "./x", ".", "m\\..\\x", "m\\x", "C:/x", "C:x", "c:\\x", "m/x:stream", "m/x\0.onnx",
        "m/\nx", "m/\x1b[2J", "m/\x7f", "m/\x85", "m/*", "m/?", "m/<x>", "m/a|b", 'm/"x"',
        "CON", "m/nul", "m/NUL.txt", "m/com1.onnx", "m/LPT9", "m/aux.tar.gz", "m/con .txt", "m/CONIN$",
        "m/x.", "m/x ", "m/ x", "m./x", "m /x", "m/...",
        "m/\u202ex", "m/\u200bx", "m/\ufeffx", "m/\u00a0x", "m/\u2028x", "m/\ue000", "m/\ud800",
        "m/\uff0e\uff0e/x", "m\uff0fx", "m/\ufb01le", "m/e\u0301", "m/\u212b", "m/\u2024\u2024/x",
        "m/com\u00b9",
        "m/" + "x" * 256, "m/" + "é" * 128, "/".join("a" * 17), "a/" * 1000 + "x",
    ],
)  # fmt: skip
def test_attacks_are_refused_wherever_they_stand(path: str) -> None:
    for paths in ([path], ["m/1/model.onnx", path], [path, "m/1/model.onnx"]):
        with pytest.raises(InvalidRequest, match="cannot be taken under this name"):
            check_upload_paths(paths)


@pytest.mark.parametrize(
    ("paths", "sentence"),
    [
        (["m/1/a", "m/1/a"], "a file is named twice"),
        (["m/1/a", "m/1/A"], "same name on some systems"),
        (["m/1/a", "M/1/b"], "same name on some systems"),
        (["m/x/a", "m/X/b"], "same name on some systems"),
        (["m/1/straße", "m/1/STRASSE"], "same name on some systems"),
        (["m/1", "m/1/a"], "as a file and as a folder"),
        (["m/1/a", "m/1"], "as a file and as a folder"),
        (["m/1/a", "m/1/a/b/c"], "as a file and as a folder"),
        (["m/1/a", "n/1/a"], "an upload is one model"),
        (["m/1/a", "b.onnx"], "an upload is one model"),
        (["a.onnx", "b.onnx"], "an upload is one model"),
        (["readme.txt"], "an upload is one model"),
    ],
)
def test_names_that_clash_or_are_several_models_are_refused(
    paths: list[str], sentence: str
) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        check_upload_paths(paths)


def test_a_long_name_does_not_fill_the_answer() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_upload_paths(["m/" + "\x01" * 100_000])
    assert len(str(caught.value)) < 1200
