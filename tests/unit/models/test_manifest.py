from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from meshnode.errors import InvalidRequest, ModelError
from meshnode.limits import MAX_MODEL_FILES
from meshnode.models.execution import Execution
from meshnode.models.manifest import (
    FileEntry,
    Manifest,
    TensorSpec,
    check_manifest,
    check_model_name,
    check_relative_path,
    check_request,
)
from meshnode.types import DataType, InferRequest, Tensor

MANIFEST = Manifest(
    model="m",
    version=1,
    runtime="onnx",
    platform="onnxruntime_onnx",
    inputs=(TensorSpec("x", DataType.FP32, (-1, 2)), TensorSpec("s", DataType.BYTES, (-1,))),
    outputs=(TensorSpec("y", DataType.FP32, (-1, 2)),),
    max_batch_size=4,
    files=(FileEntry("model.onnx", 3, b"\x01" * 32), FileEntry("sub/w.bin", 4, b"\x02" * 32)),
    entry="model.onnx",
)
X = Tensor("x", DataType.FP32, (1, 2), bytes(8))
S = Tensor("s", DataType.BYTES, (1,), b"\x01\x00\x00\x00a")


def but(**changes: Any) -> Manifest:
    return msgspec.structs.replace(MANIFEST, **changes)


def test_a_manifest_survives_its_codec_and_knows_its_size() -> None:
    encoded = msgspec.msgpack.encode(MANIFEST)
    assert msgspec.msgpack.decode(encoded, type=Manifest) == MANIFEST
    assert MANIFEST.size_bytes == 7


def test_the_digest_is_of_the_content_not_of_the_public_name() -> None:
    assert but(model="other", version=9).digest == MANIFEST.digest
    assert but(max_batch_size=5).digest != MANIFEST.digest


def test_the_digest_is_of_settings_but_not_of_schemas_which_libraries_word_as_they_like() -> None:
    assert but(execution=Execution(schema="{}")).digest == MANIFEST.digest
    assert but(execution=Execution(cache=True, schema="{}")).digest == (
        but(execution=Execution(cache=True)).digest
    )
    assert but(execution=Execution(cache=True)).digest != MANIFEST.digest


@pytest.mark.parametrize("name", ["a", "A-b_c.1", "x" * 128])
def test_plain_names_are_accepted(name: str) -> None:
    assert check_model_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "a/b", "a\\b", "a\0", "a..b", "-a", "é", "a\n", "x" * 129]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="cannot be a model's name"):
        check_model_name(name)


@pytest.mark.parametrize("path", ["a", "a/b.onnx", ".hidden/x", "a b"])
def test_plain_paths_are_accepted(path: str) -> None:
    assert check_relative_path(path) == path


@pytest.mark.parametrize(
    "path",
    ["", "/a", "a/", "a//b", ".", "../a", "a/../b", "a/./b", "a\\b", "C:a", "a\0", "x" * 256,
     "/".join(["x" * 200] * 6)],
)  # fmt: skip
def test_other_paths_are_refused(path: str) -> None:
    with pytest.raises(ModelError, match="not a plain relative path"):
        check_relative_path(path)


def test_a_good_manifest_from_elsewhere_is_taken() -> None:
    assert check_manifest(MANIFEST) is MANIFEST


FILE = MANIFEST.files[0]


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (but(model="../m"), "cannot be a model's name"),
        (but(version=0), "version 0"),
        (but(version=2**63), "not a positive integer"),
        (but(files=(FILE,) * (MAX_MODEL_FILES + 1)), "files; at most"),
        (but(files=(FileEntry("../x", 1, b"\0" * 32),)), "not a plain relative path"),
        (but(files=(FileEntry("x", -1, b"\0" * 32),)), "no valid size"),
        (but(files=(FileEntry("x", 1, b"\0" * 31),)), "no valid size or SHA-256"),
        (but(files=(FILE, FILE)), "names a file twice"),
        (but(entry="other.onnx"), "'other.onnx' is not one of the files"),
    ],
)
def test_a_bad_manifest_is_refused(manifest: Manifest, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        check_manifest(manifest)


def test_a_request_that_fits_passes_in_any_order_of_inputs() -> None:
    check_request(MANIFEST, InferRequest("m", (S, X), outputs=("y",)))
    check_request(MANIFEST, InferRequest("m", (X, replace(S, shape=(0,), data=b""))))


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ((X,), r"also needs input 's'"),
        ((X, X, S), r"'x' is given twice"),
        ((replace(X, name="z"), S), r"has no input 'z'; its inputs are 'x' \(FP32 \[-1, 2\]\)"),
        ((replace(X, datatype=DataType.FP64), S), r"'x' of model 'm' is FP32, not FP64"),
        ((replace(X, shape=(1, 3)), S), r"has shape \[-1, 2\] \(-1: any size\), not \[1, 3\]"),
        ((replace(X, shape=(2,)), S), r"has shape \[-1, 2\]"),
        ((replace(X, shape=(-1, 2)), S), r"not \[-1, 2\]"),
        ((replace(X, shape=(5, 2), data=bytes(40)), S), r"batch of 5 exceeds max_batch_size 4"),
        ((replace(X, data=bytes(7)), S), r"has 7 bytes, but FP32 of shape \[1, 2\] is 8"),
        ((replace(X, data=memoryview(bytes(9))), S), r"has 9 bytes"),
        ((X, replace(S, shape=(2,))), r"has 5 bytes, too few for 2 elements"),
    ],
)
def test_a_request_that_does_not_fit_is_told_what_was_expected(
    inputs: tuple[Tensor, ...], reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        check_request(MANIFEST, InferRequest("m", inputs))


def test_an_optional_input_may_be_missing() -> None:
    optional = replace(MANIFEST, execution=Execution(optional_inputs=("s",)))
    check_request(optional, InferRequest("m", (X,)))
    with pytest.raises(InvalidRequest, match="also needs input 'x'"):
        check_request(optional, InferRequest("m", (S,)))


def test_an_unknown_output_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"has no output 'z'; its outputs are 'y'"):
        check_request(MANIFEST, InferRequest("m", (X, S), outputs=("z",)))
