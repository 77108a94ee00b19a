"""An ensemble's steps: their order, and what is wrong with them, with both sides named."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from meshnode.errors import ModelError
from meshnode.models.ensemble_plan import check_no_circle, check_types, needed_for, plan_steps
from meshnode.models.execution import EnsembleStep, Execution
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.types import DataType

FP32, INT32 = DataType.FP32, DataType.INT32


def spec(name: str, *shape: int, datatype: DataType = FP32) -> TensorSpec:
    return TensorSpec(name, datatype, shape or (-1, 2))


def step(
    model: str, reads: dict[str, str], writes: dict[str, str], version: int = 0
) -> EnsembleStep:
    return EnsembleStep(model, version, tuple(reads.items()), tuple(writes.items()))


FIRST = step("first", {"x": "RAW"}, {"y": "MIDDLE"})
SECOND = step("second", {"x": "MIDDLE"}, {"y": "SCORES"})
IN, OUT = (spec("RAW"),), (spec("SCORES"),)


@dataclass
class Known:
    """Models by name, all with an input `x` and an output `y`."""

    manifests: dict[str, Manifest] = field(default_factory=dict)

    def add(
        self,
        name: str,
        x: TensorSpec | None = None,
        y: TensorSpec | None = None,
        execution: Execution | None = None,
    ) -> Known:
        self.manifests[name] = Manifest(
            name, 1, "onnx", "onnx", (x or spec("x"),), (y or spec("y"),), 0, (), "",
            execution or Execution(),
        )  # fmt: skip
        return self

    def __call__(self, model: str, version: int | None) -> Manifest | None:
        del version
        return self.manifests.get(model)


def test_steps_are_ordered_by_what_they_read() -> None:
    planned = plan_steps((SECOND, FIRST), IN, OUT)
    assert [each.model for each in planned] == ["first", "second"]
    assert [
        each.version for each in plan_steps((step("a", {"x": "RAW"}, {"y": "SCORES"}, 3),), IN, OUT)
    ] == [3]
    assert planned[0].version is None  # the newest


def test_only_the_steps_that_an_output_needs_are_run() -> None:
    other = step("other", {"x": "MIDDLE"}, {"y": "MORE"})
    planned = plan_steps((FIRST, SECOND, other), IN, (*OUT, spec("MORE")))
    chosen, tensors = needed_for(planned, ["MORE"])
    assert [each.model for each in chosen] == ["first", "other"]
    assert tensors == {"RAW", "MIDDLE", "MORE"}


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ((), "at least one step"),
        ((SECOND,), r"step 1 \(model 'second'\) reads 'MIDDLE', which nothing writes"),
        (
            (FIRST, SECOND, step("third", {"x": "RAW"}, {"y": "MIDDLE"})),
            r"'MIDDLE' is written by step 1 \(model 'first'\) and by step 3 \(model 'third'\)",
        ),
        (
            (step("first", {"x": "RAW"}, {"y": "RAW"}),),
            "'RAW' is written by the ensemble's input and by step 1",
        ),
        ((FIRST,), "output 'SCORES' is written by no step"),
        ((step("first", {}, {"y": "SCORES"}),), "input_map is empty"),
        (
            (EnsembleStep("first", 0, (("x", "RAW"), ("x", "RAW")), (("y", "SCORES"),)),),
            "input_map is empty or names a tensor twice",
        ),
        (
            (
                step("first", {"x": "RAW", "z": "SCORES"}, {"y": "MIDDLE"}),
                step("second", {"x": "MIDDLE"}, {"y": "SCORES"}),
            ),
            r"step 1 \(model 'first'\), step 2 \(model 'second'\) wait for each other's tensors in a",
        ),
    ],
)
def test_steps_that_make_no_graph_are_refused(steps: tuple[EnsembleStep, ...], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        plan_steps(steps, IN, OUT)


def test_an_input_that_nobody_reads_and_a_missing_signature_are_refused() -> None:
    with pytest.raises(ModelError, match="input 'UNUSED' is read by no step"):
        plan_steps((FIRST, SECOND), (*IN, spec("UNUSED")), OUT)
    with pytest.raises(ModelError, match=r"must be in its config\.pbtxt"):
        plan_steps((FIRST, SECOND), (), OUT)


def test_types_are_checked_against_the_models_that_are_known() -> None:
    planned = plan_steps((FIRST, SECOND), IN, OUT)
    assert check_types(planned, IN, OUT, Known()) == ("first", "second")
    assert check_types(planned, IN, OUT, Known().add("first")) == ("second",)
    assert check_types(planned, IN, OUT, Known().add("first").add("second")) == ()


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        (
            Known().add("first", x=spec("x", datatype=INT32)),
            r"step 1 .* its input 'x' is INT32 \[-1, 2\], but the ensemble's input 'RAW' is FP32 \[-1, 2\]",
        ),
        (
            Known().add("first", y=spec("y", -1, 3)).add("second"),
            r"step 2 \(model 'second'\): its input 'x' is FP32 \[-1, 2\], but output 'y' of step 1",
        ),
        (
            Known().add("second", y=spec("y", -1, 2, 2)),
            r"the ensemble's output 'SCORES' is FP32 \[-1, 2\], but output 'y' of step 2 .* \[-1, 2, 2\]",
        ),
        (
            Known().add("first", x=spec("z")),
            r"step 1 \(model 'first'\) has no input 'x'; its inputs are 'z'",
        ),
        (Known().add("first", y=spec("z")), "has no output 'y'; its outputs are 'z'"),
        (
            Known().add("first", execution=Execution(decoupled=True)),
            "may answer any number of times; a step must answer once",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_both_sides(known: Known, reason: str) -> None:
    planned = plan_steps((FIRST, SECOND), IN, OUT)
    with pytest.raises(ModelError, match=reason):
        check_types(planned, IN, OUT, known)


def test_an_input_of_a_step_that_is_given_nothing_must_be_optional() -> None:
    known = Known().add("first").add("second")
    wide = Manifest("first", 1, "onnx", "onnx", (spec("x"), spec("extra")), (spec("y"),), 0, (), "")
    known.manifests["first"] = wide
    planned = plan_steps((FIRST, SECOND), IN, OUT)
    with pytest.raises(
        ModelError, match=r"step 1 \(model 'first'\): nothing is given to its input 'extra'"
    ):
        check_types(planned, IN, OUT, known)
    from msgspec.structs import replace

    known.manifests["first"] = replace(wide, execution=Execution(optional_inputs=("extra",)))
    assert check_types(planned, IN, OUT, known) == ()


def test_an_ensemble_that_comes_back_to_itself_is_refused() -> None:
    inner = Execution(steps=(step("outer", {"x": "a"}, {"y": "b"}),))
    known = Known().add("first").add("second", execution=inner)
    planned = plan_steps((FIRST, SECOND), IN, OUT)
    with pytest.raises(ModelError, match="runs itself: outer → second → outer"):
        check_no_circle("outer", planned, known)
    check_no_circle("another", planned, known)
