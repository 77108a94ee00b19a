"""What a model answered, looked at before it is sent: counts, parameters, failures."""

from __future__ import annotations

import asyncio
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from meshnode.errors import InferenceFailed, MeshError
from meshnode.limits import MAX_RUNTIME_MESSAGE_LENGTH, MAX_WORKER_ERROR_LENGTH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshnode.models.workers.adaptor import Answer, Outcome
    from meshnode.types import Scalar


def counted(outcomes: Any, wanted: int) -> Sequence[Outcome]:
    """Return the outcomes of a batch of `wanted` requests.

    Raises:
        InferenceFailed: if they are not as many.
    """
    if not isinstance(outcomes, list | tuple):
        raise InferenceFailed(
            f"the model answered a batch with {type(outcomes).__name__} instead of a list"
        )
    if len(outcomes) != wanted:
        raise InferenceFailed(
            f"the model gave {len(outcomes)} answers to a batch of {wanted} requests; it must give one for "
            "each, in their order"
        )
    return outcomes


def parameters_of(answer: Answer) -> dict[str, Scalar]:
    """Return an answer's parameters if a message can carry them.

    Raises:
        InferenceFailed: if not.
    """
    parameters: Mapping[Any, Any] = answer.parameters  # a model's code may have put anything there
    for name, value in parameters.items():
        if not isinstance(name, str) or type(value) not in (str, int, float, bool):
            raise InferenceFailed(
                f"the model gave the response parameter {name!r} as {type(value).__name__}; parameters are "
                "texts, numbers and booleans"
            )
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InferenceFailed(f"the model's response parameter {name!r} has more than 64 bits")
    return dict(answer.parameters)


def failure(error: object) -> MeshError:
    """Return what is told of an exception; the traceback of a model's own goes to its log."""
    if isinstance(error, MeshError):
        return error
    if not isinstance(error, BaseException):
        return InferenceFailed(
            f"the model answered with {type(error).__name__}, which is neither an answer nor an error"
        )
    if not isinstance(error, asyncio.CancelledError):
        with suppress(BaseException):  # it asks the model's exception for its text, which may raise
            traceback.print_exception(error)
    return InferenceFailed(text_of(error))


def text_of(error: BaseException) -> str:
    """Return what is told of an error, cut to what a person reads; never fails."""
    try:
        # What the model's own `__str__` returns may be odd: a text that cannot be sent, or that is none.
        said = str(error).encode(errors="backslashreplace").decode()
    except BaseException as raised:  # noqa: BLE001
        said = f"(its text cannot be made: that raises {type(raised).__name__})"
    if isinstance(error, MeshError):
        return said[:MAX_WORKER_ERROR_LENGTH]
    said = " ".join(said.split())
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    if len(text) > MAX_RUNTIME_MESSAGE_LENGTH:
        text = text[: MAX_RUNTIME_MESSAGE_LENGTH - 1] + "…"
    return text
