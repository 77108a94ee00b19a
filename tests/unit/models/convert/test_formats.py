from __future__ import annotations

import pytest

from meshnode.errors import UsageError
from meshnode.models.convert.formats import (
    CODE,
    CONVERSIONS,
    Family,
    Looked,
    Quantization,
    Source,
    Target,
    conversion,
    identify,
    identify_function,
    split_function,
)


@pytest.mark.parametrize(
    ("looked", "source"),
    [
        (Looked("a.joblib"), Source.SKLEARN),
        (Looked("a.pkl", head=b"\x80\x04"), Source.SKLEARN),
        (Looked("a.h5", head=b"\x89HDF\r\n\x1a\n"), Source.KERAS),
        (Looked("any", head=b"PK", members=("config.json", "model.weights.h5")), Source.KERAS),
        (Looked("m", is_folder=True, members=("saved_model.pb", "variables")), Source.SAVED_MODEL),
        (Looked("a.pt", members=("m/data.pkl", "m/constants.pkl")), Source.TORCHSCRIPT),
        (Looked("a.pt", members=("m/data.pkl", "m/data/0")), Source.TORCH_PICKLE),
        (Looked("a.pt2", members=("m/archive_format", "m/data")), Source.TORCH_EXPORT),
        (Looked("f.jaxexport"), Source.JAX_EXPORT),
    ],
)
def test_a_path_is_known_by_its_content_and_else_by_its_name(
    looked: Looked, source: Source
) -> None:
    assert identify(looked) is source


def test_from_decides_where_a_file_says_nothing() -> None:
    assert identify(Looked("model.bin"), Family.SKLEARN) is Source.SKLEARN
    assert identify(Looked("model.bin"), Family.JAX) is Source.JAX_EXPORT
    assert identify(Looked("old.pth"), Family.TORCH) is Source.TORCH_PICKLE


def test_an_unknown_file_is_refused_with_what_to_say() -> None:
    with pytest.raises(UsageError, match=r"say what it is with --from"):
        identify(Looked("model.bin"))


def test_from_that_contradicts_the_file_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'a\.pt' is a TorchScript model, but --from says keras"):
        identify(Looked("a.pt", members=("m/constants.pkl",)), Family.KERAS)


def test_a_function_needs_from() -> None:
    assert identify_function("net.py", Family.TORCH) is Source.TORCH_CODE
    assert identify_function("net.py", Family.JAX) is Source.JAX_FUNCTION
    with pytest.raises(UsageError, match=r"say what 'net\.py' defines"):
        identify_function("net.py", None)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("net.py:Net", ("net.py", "Net")),
        ("package.module:make", ("package.module", "make")),
        ("folder/net.py:Net", ("folder/net.py", "Net")),
        ("C:model", None),
        ("net.py", None),
        ("net.py:1", None),
    ],
)
def test_a_function_is_named_by_its_file_or_module(text: str, parts: object) -> None:
    assert split_function(text) == parts


def test_a_way_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(UsageError, match=r"JAX function model cannot .* onnx or tflite"):
        conversion(Source.JAX_FUNCTION, Target.TORCHSCRIPT, Quantization.NONE)


def test_a_quantisation_that_is_not_possible_names_those_that_are() -> None:
    with pytest.raises(UsageError, match="possible there: dynamic, fp16"):
        conversion(Source.TORCH_CODE, Target.TORCHSCRIPT, Quantization.INT8)


def test_every_source_becomes_something_and_all_but_programs_of_jax_are_code() -> None:
    assert {source for source, _ in CONVERSIONS} == set(Source)
    assert set(Source) - set(CODE) == {Source.JAX_EXPORT}
