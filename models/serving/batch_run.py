"""One execution: requests are joined, run, and their answers cut out again.

A batch of several requests that fails is run once more, each request by itself, so that one bad request
fails alone; nothing is tried a third time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from meshnode.errors import InferenceFailed, MeshError, NotServing
from meshnode.models.serving.joining import join, split
from meshnode.types import ResponsePart, Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.models.runtimes.base import LoadedModel, ProcessModel, StoppableRun
    from meshnode.types import InferRequest

Answer = tuple[Tensor, ...] | ResponsePart | MeshError
"""A request's outputs, with parameters if there are any, or why there are none."""


@dataclass(slots=True)
class Ran:
    """What came of an execution.

    Attributes:
        answers: One for each request, in order.
        input_s: Time for joining.
        infer_s: Time in the model.
        output_s: Time for cutting the outputs.
        executions: Runs of the model.
        apart: Why requests of this model cannot be joined, if that was seen; else empty.
    """

    answers: Sequence[Answer]
    input_s: float = 0.0
    infer_s: float = 0.0
    output_s: float = 0.0
    executions: int = 1
    apart: str = ""

    @property
    def compute_s(self) -> tuple[float, float, float]:
        """The three times."""
        return self.input_s, self.infer_s, self.output_s


def run_loaded(
    model: LoadedModel | StoppableRun,
    requests: Sequence[Sequence[Tensor]],
    rows: Sequence[int],
    outputs: Sequence[str],
    timer: Callable[[], float],
    *,
    repeatable: bool = True,
) -> Ran:
    """Run requests on a model in this process; occupies the calling thread.

    Args:
        model: What runs.
        requests: The inputs of each.
        rows: Rows of each; not looked at for a single request.
        outputs: Names of the outputs wanted.
        timer: Seconds.
        repeatable: Whether a batch that failed may be run again, each request by itself.
    """
    if len(requests) == 1:
        return _run_alone(model, requests, outputs, timer)
    started = timer()
    joined = join(requests)
    joined_at = timer()
    try:
        results = model.run(joined, outputs)
    except Exception as error:  # noqa: BLE001 - each request then gets its own error
        if not repeatable:
            return Ran([as_mesh_error(error)] * len(requests))
        return _again_alone(model, requests, outputs, timer)
    ran_at = timer()
    try:
        answers = split(results, rows)
    except InferenceFailed as error:
        if not repeatable:
            return Ran([error] * len(requests))
        ran = _again_alone(model, requests, outputs, timer)
        ran.apart = str(error)
        return ran
    return Ran(answers, joined_at - started, ran_at - joined_at, timer() - ran_at)


def _again_alone(
    model: LoadedModel | StoppableRun,
    requests: Sequence[Sequence[Tensor]],
    outputs: Sequence[str],
    timer: Callable[[], float],
) -> Ran:
    ran = _run_alone(model, requests, outputs, timer)
    ran.executions += 1
    return ran


def _run_alone(
    model: LoadedModel | StoppableRun,
    requests: Sequence[Sequence[Tensor]],
    outputs: Sequence[str],
    timer: Callable[[], float],
) -> Ran:
    started = timer()
    answers: list[Answer] = []
    for inputs in requests:
        try:
            answers.append(model.run(inputs, outputs))
        except Exception as error:  # noqa: BLE001 - delivered to the caller, who awaits the answer
            answers.append(as_mesh_error(error))
    return Ran(answers, infer_s=timer() - started, executions=len(requests))


async def run_process(
    model: ProcessModel,
    requests: Sequence[InferRequest],
    rows: Sequence[int],
    timer: Callable[[], float],
    *,
    repeatable: bool = True,
) -> Ran:
    """Run requests on a model in a process of its own.

    Args:
        model: What runs.
        requests: At least one.
        rows: Rows of each; not looked at for a single request.
        timer: Seconds.
        repeatable: As for `run_loaded`.
    """
    if model.joins_rows and len(requests) > 1:
        return await _run_joined(model, requests, rows, timer, repeatable)
    started = timer()
    answers = await _execute(model, requests)
    return Ran(answers, infer_s=timer() - started)


async def _run_joined(
    model: ProcessModel,
    requests: Sequence[InferRequest],
    rows: Sequence[int],
    timer: Callable[[], float],
    repeatable: bool,
) -> Ran:
    started = timer()
    joined = replace(requests[0], inputs=join([request.inputs for request in requests]))
    joined_at = timer()
    [result] = await _execute(model, [joined])
    ran_at = timer()
    apart = ""
    if isinstance(result, NotServing) or (isinstance(result, MeshError) and not repeatable):
        return Ran([result] * len(requests))
    if not isinstance(result, MeshError):
        outputs = result.outputs if isinstance(result, ResponsePart) else result
        try:
            answers = split(outputs, rows)
        except InferenceFailed as error:
            if not repeatable:
                return Ran([error] * len(requests))
            apart = str(error)
        else:
            return Ran(answers, joined_at - started, ran_at - joined_at, timer() - ran_at)
    alone = [(await _execute(model, [request]))[0] for request in requests]
    return Ran(alone, infer_s=timer() - joined_at, executions=len(requests) + 1, apart=apart)


async def _execute(model: ProcessModel, requests: Sequence[InferRequest]) -> Sequence[Answer]:
    try:
        answers = await model.execute(requests)
    except Exception as error:  # noqa: BLE001 - delivered to the callers, who await their answers
        return [as_mesh_error(error)] * len(requests)
    if len(answers) == len(requests):
        return answers
    wrong = f"the model gave {len(answers)} answers to a batch of {len(requests)} requests"
    return [InferenceFailed(wrong)] * len(requests)


def as_mesh_error(error: Exception) -> MeshError:
    """Return what a model raised as an error that a caller understands.

    It comes without its traceback: the frames of that hold the request's tensors, and often the error itself.
    """
    return (
        error.with_traceback(None) if isinstance(error, MeshError) else InferenceFailed(repr(error))
    )
