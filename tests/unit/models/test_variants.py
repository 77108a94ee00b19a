"""Which variant of a version a node takes."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from meshnode.errors import ModelError
from meshnode.models.manifest import FileEntry, Manifest, TensorSpec
from meshnode.models.variants import Facts, check_variants, choose_variant, precision
from meshnode.owner_limits import load_estimate_bytes
from meshnode.state.deployment import Deployment, kept_variants, with_variant
from meshnode.types import DataType

GIB = 1024**3
ONNX = frozenset({"onnx"})


def variant(name: str, gib: float = 0.1, runtime: str = "onnx") -> Manifest:
    spec = TensorSpec("x", DataType.FP32, (-1, 4))
    files = (FileEntry(f"{name}.onnx", int(gib * GIB), bytes(32)),)
    return Manifest("m", 1, runtime, "p", (spec,), (spec,), 8, files, f"{name}.onnx", variant=name)


FORMS = [variant("fp32", 4), variant("fp16", 2), variant("int8", 1)]


@pytest.mark.parametrize(
    ("facts", "chosen"),
    [
        (Facts(2, 16 * GIB, 0, ONNX), "int8"),
        (Facts(16, 4 * GIB, 0, ONNX), "int8"),
        (Facts(16, 32 * GIB, 0, ONNX), "fp32"),
        (Facts(16, 32 * GIB, 24 * GIB, ONNX), "fp16"),
        (Facts(16, 32 * GIB, 5 * GIB, ONNX), "fp16"),
        (Facts(16, 32 * GIB, 3 * GIB, ONNX), "int8"),  # all that the accelerator holds
        (Facts(16, 32 * GIB, GIB, ONNX), "fp32"),  # none fits there: the processor serves
        (Facts(16, 0, 0, ONNX), "fp32"),  # it does not say how much memory it has
    ],
)
def test_a_node_takes_the_best_that_fits(facts: Facts, chosen: str) -> None:
    for order in (FORMS, FORMS[::-1]):
        best = choose_variant(order, facts, load_estimate_bytes)
        assert best is not None
        assert best.variant == chosen


def test_a_variant_counts_only_where_its_runtime_is() -> None:
    forms = [variant("fp32"), variant("int8", runtime="litert")]
    small = Facts(2, 2 * GIB, 0, ONNX)
    best = choose_variant(forms, small, load_estimate_bytes)
    assert best is not None
    assert best.variant == "fp32"
    assert choose_variant(forms, Facts(2, 2 * GIB), load_estimate_bytes) is None


def test_a_node_too_small_for_all_takes_none() -> None:
    assert choose_variant(FORMS, Facts(2, GIB, 0, ONNX), load_estimate_bytes) is None


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "fp32"),
        ("FP16", "fp16"),
        ("int8-dynamic", "int8"),
        ("resnet_float16", "fp16"),
        ("pruned", "other"),
        ("-", "other"),
    ],
)
def test_a_name_tells_the_precision(name: str, told: str) -> None:
    assert precision(name) == told


def test_variants_must_take_and_give_the_same() -> None:
    check_variants(FORMS)
    other = replace(FORMS[2], inputs=(TensorSpec("x", DataType.INT8, (-1, 4)),))
    with pytest.raises(ModelError, match="fp32 and int8 of version 1 have different inputs"):
        check_variants([FORMS[0], other])


@pytest.mark.parametrize(
    ("forms", "reason"),
    [
        ([FORMS[0], FORMS[0]], "'m' names a version twice"),
        ([replace(FORMS[0], variant="../x")], "cannot be a variant's name"),
        ([variant(f"v{number}") for number in range(9)], "9 variants; at most 8"),
    ],
)
def test_a_deployment_refuses_variants_that_are_none(forms: list[Manifest], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        Deployment("m", tuple(forms)).encode()


def test_a_deployment_keeps_its_variants() -> None:
    deployment = Deployment("m", (*FORMS, replace(FORMS[0], version=2)))
    assert Deployment.decode(deployment.encode()) == deployment
    assert [len(forms) for forms in deployment.versions.values()] == [3, 1]


# A variant joins what is deployed.


def bare(name: str = "") -> Manifest:
    return replace(variant(name), variant="")


DEPLOYED = Deployment("m", (bare("fp32"),), replicas=2)


def test_a_variant_is_a_form_of_the_version_that_is_deployed() -> None:
    both = with_variant(DEPLOYED, "m", [bare("int8")], "int8", numbered=False)
    assert [each.variant for each in both.manifests] == ["", "int8"]
    assert both.replicas == 2
    again = with_variant(both, "m", [bare("smaller")], "int8", numbered=True)
    assert [each.entry for each in again.manifests] == ["fp32.onnx", "smaller.onnx"]


def test_a_variant_of_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match="deploy the model itself first"):
        with_variant(None, "m", [bare()], "int8", numbered=False)
    other = replace(bare("int8"), version=3)
    with pytest.raises(ModelError, match="version 3 of 'm' is not deployed"):
        with_variant(DEPLOYED, "m", [other], "int8", numbered=True)


def test_deploying_again_keeps_the_variants_of_what_has_not_changed() -> None:
    both = with_variant(DEPLOYED, "m", [bare("int8")], "int8", numbered=False)
    assert [each.variant for each in kept_variants(both, [bare("fp32")])] == ["int8"]
    assert kept_variants(both, [bare("edited")]) == []
    assert kept_variants(None, [bare("fp32")]) == []
