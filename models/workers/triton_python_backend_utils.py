"""What `import triton_python_backend_utils as pb_utils` gives a model here.

Names and signatures are those of Triton's Python backend, so that its models run unchanged. What has no
meaning on a node of a mesh says so when it is called: loading and unloading models, custom metrics (which
count, but are shown nowhere), GPU tensors (arrays are in main memory).
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from meshnode.errors import InferenceFailed, InvalidRequest, MeshError
from meshnode.models.workers.adaptor import Answer, ModelCall, Outcome
from meshnode.models.workers.triton_config import Logger, Metric, MetricFamily, ModelConfig
from meshnode.models.workers.triton_types import (
    TritonModelException,
    datatype_of,
    deserialize_bytes_tensor,
    numpy_to_triton_type,
    serialize_byte_tensor,
    triton_string_to_numpy,
    triton_to_numpy_type,
    triton_type_of,
)

__all__ = [
    "TRITONSERVER_MEMORY_CPU",
    "TRITONSERVER_MEMORY_GPU",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START",
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL",
    "InferenceRequest",
    "InferenceResponse",
    "InferenceResponseSender",
    "Logger",
    "Metric",
    "MetricFamily",
    "ModelConfig",
    "PreferredMemory",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "datatype_of",
    "deserialize_bytes_tensor",
    "get_input_config_by_name",
    "get_input_tensor_by_name",
    "get_output_config_by_name",
    "get_output_tensor_by_name",
    "is_model_ready",
    "load_model",
    "numpy_to_triton_type",
    "serialize_byte_tensor",
    "set_caller",
    "triton_string_to_numpy",
    "triton_to_numpy_type",
    "triton_type_of",
    "unload_model",
    "using_decoupled_model_transaction_policy",
]

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from meshnode.models.workers.adaptor import WorkerRequest
    from meshnode.types import Scalar

TRITONSERVER_RESPONSE_COMPLETE_FINAL: Final = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_START: Final = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END: Final = 2
TRITONSERVER_MEMORY_CPU: Final = 0
TRITONSERVER_MEMORY_GPU: Final = 1

_QUEUED_RESPONSES: Final = 16
"""Responses of a decoupled model that wait to be sent; `send` waits for room beyond."""
_POLL_S: Final = 0.05

_caller: Callable[[ModelCall], list[Answer]] | None = None


def set_caller(caller: Callable[[ModelCall], list[Answer]]) -> None:
    """Say how this process asks other models; not part of Triton's module."""
    global _caller  # noqa: PLW0603 - a module is what models import
    _caller = caller


def _call(call: ModelCall) -> list[Answer]:
    if _caller is None:
        raise TritonModelException(
            "other models can only be asked from a model that is being served"
        )
    return _caller(call)


# Errors


class TritonError:
    """Why one request failed, for its response."""

    UNKNOWN: ClassVar = 0
    INTERNAL: ClassVar = 1
    NOT_FOUND: ClassVar = 2
    INVALID_ARG: ClassVar = 3
    UNAVAILABLE: ClassVar = 4
    UNSUPPORTED: ClassVar = 5
    ALREADY_EXISTS: ClassVar = 6
    CANCELLED: ClassVar = 7

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        """Say it, and what kind of error it is."""
        self._message = str(message)
        self._code = code

    def message(self) -> str:
        """Return what was said."""
        return self._message

    def code(self) -> int:
        """Return the kind."""
        return self._code

    def as_error(self) -> MeshError:
        """Return it as the mesh's error; not part of Triton's class."""
        if self._code in (self.INVALID_ARG, self.UNSUPPORTED):
            return InvalidRequest(self._message)
        return InferenceFailed(self._message)


# Tensors, requests and responses


class Tensor:
    """A named array."""

    def __init__(self, name: str, numpy_array: NDArray[Any]) -> None:
        """Name an array; it is not copied."""
        if not isinstance(name, str):
            raise TypeError(f"a tensor's name must be a str, not {type(name).__name__}")
        if not isinstance(numpy_array, np.ndarray):
            raise TypeError(
                f"tensor {name!r} must be a NumPy array, not {type(numpy_array).__name__}"
            )
        self._name = name
        self._array = numpy_array

    def __repr__(self) -> str:
        return f"<Tensor {self._name} {self._array.dtype} {list(self._array.shape)}>"

    def name(self) -> str:
        """Return its name."""
        return self._name

    def as_numpy(self) -> NDArray[Any]:
        """Return the array."""
        return self._array

    def shape(self) -> tuple[int, ...]:
        """Return its shape."""
        return self._array.shape

    def triton_dtype(self) -> int:
        """Return the number of its Triton data type."""
        return numpy_to_triton_type(self._array.dtype)

    def is_cpu(self) -> bool:
        """Whether it is in main memory: always."""
        return True

    def to_dlpack(self) -> Any:
        """Return it for another library, without a copy."""
        return self._array.__dlpack__()

    def __dlpack__(self, **options: Any) -> Any:
        """Return it for another library, without a copy."""
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        """Return where it is, as DLPack says it."""
        return self._array.__dlpack_device__()

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> Tensor:
        """Name a tensor of another library; one that lies on a GPU is copied to main memory."""
        cpu = getattr(tensor, "cpu", None)
        return Tensor(name, np.from_dlpack(cpu() if cpu is not None else tensor))


class PreferredMemory:
    """Where answers of other models are wanted; arrays are always in main memory here."""

    def __init__(self, preferred_memory_type: int, preferred_device_id: int = 0) -> None:
        """Take it, without effect."""
        self.preferred_memory_type = preferred_memory_type
        self.preferred_device_id = preferred_device_id


class InferenceRequest:
    """A request: one that came, or one to another model."""

    def __init__(
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        inputs: Sequence[Tensor] = (),
        requested_output_names: Sequence[str] = (),
        model_name: str = "",
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory | None = None,
        trace: object = None,
        priority: int = 0,
        parameters: Mapping[str, Scalar] | str | None = None,
    ) -> None:
        """Make a request to another model; version -1 is its newest, `timeout` in microseconds."""
        del preferred_memory, trace
        self._id = request_id
        self._correlation_id = correlation_id
        self._inputs = list(inputs)
        self._outputs = list(requested_output_names)
        self._model = model_name
        self._version = model_version
        self._flags = flags
        self._timeout_us = timeout
        self._priority = priority
        given = json.loads(parameters) if isinstance(parameters, str) else parameters
        self._parameters: dict[str, Scalar] = dict(given or {})
        self._worker: WorkerRequest | None = None
        self._sender: InferenceResponseSender | None = None

    @classmethod
    def from_worker(cls, worker: WorkerRequest) -> InferenceRequest:
        """Return a request that came; not part of Triton's class."""
        parameters = dict(worker.parameters)
        sequence = parameters.pop("sequence_id", 0)
        flags = TRITONSERVER_REQUEST_FLAG_SEQUENCE_START * bool(parameters.pop("sequence_start", 0))
        flags |= TRITONSERVER_REQUEST_FLAG_SEQUENCE_END * bool(parameters.pop("sequence_end", 0))
        request = cls(
            worker.request_id,
            sequence if isinstance(sequence, str) else int(sequence),
            [Tensor(name, array) for name, array in worker.inputs.items()],
            worker.outputs,
            flags=flags,
            timeout=int(parameters.pop("timeout", 0)),
            priority=int(parameters.pop("priority", 0)),
            parameters=parameters,
        )
        request._worker = worker
        return request

    @property
    def is_sent(self) -> bool:
        """Whether its response sender was taken; not part of Triton's class."""
        return self._sender is not None

    def request_id(self) -> str:
        """Return the caller's id of it."""
        return self._id

    def correlation_id(self) -> int | str:
        """Return the sequence that it belongs to; 0 for none."""
        return self._correlation_id

    def inputs(self) -> list[Tensor]:
        """Return its tensors."""
        return self._inputs

    def requested_output_names(self) -> list[str]:
        """Return the outputs that are wanted; empty for all."""
        return self._outputs

    def model_name(self) -> str:
        """Return the model that it is for."""
        return self._model

    def model_version(self) -> int:
        """Return that model's version."""
        return self._version

    def flags(self) -> int:
        """Return the flags of its sequence."""
        return self._flags

    def set_flags(self, flags: int) -> None:
        """Set the flags of its sequence."""
        self._flags = flags

    def timeout(self) -> int:
        """Return the time that it may take, in microseconds; 0 if nobody said."""
        return self._timeout_us

    def priority(self) -> int:
        """Return its priority; 0 if nobody said."""
        return self._priority

    def parameters(self) -> str:
        """Return its parameters as JSON."""
        return json.dumps(self._parameters)

    def is_cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._worker is not None and self._worker.cancelled

    def get_response_sender(self) -> InferenceResponseSender:
        """Return what a decoupled model answers with."""
        if self._sender is None:
            self._sender = InferenceResponseSender(self)
        return self._sender

    def exec(self, decoupled: bool = False) -> Any:
        """Ask the other model and wait; an iterator of responses if `decoupled`."""
        responses = self._executed(decoupled=decoupled)
        return iter(responses) if decoupled else responses[0]

    async def async_exec(self, decoupled: bool = False) -> Any:
        """Ask the other model; see `exec`."""
        responses = await asyncio.to_thread(self._executed, decoupled=decoupled)
        return _each(responses) if decoupled else responses[0]

    def _executed(self, *, decoupled: bool) -> list[InferenceResponse]:
        parameters = dict(self._parameters)
        if self._correlation_id:
            parameters["sequence_id"] = self._correlation_id
            parameters["sequence_start"] = bool(self._flags & 1)
            parameters["sequence_end"] = bool(self._flags & 2)
        call = ModelCall(
            self._model,
            {tensor.name(): tensor.as_numpy() for tensor in self._inputs},
            self._version if self._version > 0 else None,
            tuple(self._outputs),
            parameters,
            self._timeout_us / 1e6 if self._timeout_us else 30.0,
        )
        try:
            answers = _call(call)
        except MeshError as error:
            return [InferenceResponse(error=TritonError(str(error), _kind_of(error)))]
        if not decoupled and len(answers) != 1:
            error_text = (
                f"model {self._model} gave {len(answers)} responses; use exec(decoupled=True)"
            )
            return [InferenceResponse(error=TritonError(error_text))]
        return [
            InferenceResponse([Tensor(name, array) for name, array in each.outputs.items()])
            for each in answers
        ]


async def _each(responses: Sequence[InferenceResponse]) -> AsyncIterator[InferenceResponse]:
    for response in responses:
        yield response


def _kind_of(error: MeshError) -> int:
    if isinstance(error, InvalidRequest):
        return TritonError.INVALID_ARG
    return TritonError.UNAVAILABLE if error.retryable else TritonError.INTERNAL


class InferenceResponse:
    """An answer: tensors, or an error."""

    def __init__(
        self,
        output_tensors: Sequence[Tensor] = (),
        error: TritonError | str | None = None,
        parameters: Mapping[str, Scalar] | str | None = None,
    ) -> None:
        """Answer with tensors, or with an error."""
        for each in output_tensors:
            if not isinstance(each, Tensor):
                raise TypeError(f"output_tensors must be Tensors, not {type(each).__name__}")
        self._tensors = list(output_tensors)
        self._error = TritonError(error) if isinstance(error, str) else error
        given = json.loads(parameters) if isinstance(parameters, str) else parameters
        self._parameters: dict[str, Scalar] = dict(given or {})

    def output_tensors(self) -> list[Tensor]:
        """Return its tensors."""
        return self._tensors

    def has_error(self) -> bool:
        """Whether it is an error."""
        return self._error is not None

    def error(self) -> TritonError | None:
        """Return the error, if it is one."""
        return self._error

    def parameters(self) -> str:
        """Return its parameters as JSON."""
        return json.dumps(self._parameters)

    def outcome(self) -> Outcome:
        """Return it as an adaptor's outcome; not part of Triton's class."""
        if self._error is not None:
            return self._error.as_error()
        return Answer({each.name(): each.as_numpy() for each in self._tensors}, self._parameters)


class InferenceResponseSender:
    """What a decoupled model answers one request with, from any thread."""

    def __init__(self, request: InferenceRequest) -> None:
        """Belong to a request."""
        self._request = request
        self._changed = threading.Condition()
        self._queue: deque[InferenceResponse] = deque()
        self._final = False
        self._closed = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """Send a response, the last one with TRITONSERVER_RESPONSE_COMPLETE_FINAL; waits for room."""
        if response is not None and not isinstance(response, InferenceResponse):
            raise TypeError(f"send() takes an InferenceResponse, not {type(response).__name__}")
        with self._changed:
            if self._final:
                raise TritonModelException("a response was sent after the final one")
            self._changed.wait_for(lambda: self._closed or len(self._queue) < _QUEUED_RESPONSES)
            if response is not None and not self._closed:
                self._queue.append(response)
            self._final = bool(flags & TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            self._changed.notify_all()

    def is_cancelled(self) -> bool:
        """Whether nobody waits for responses any more."""
        return self._request.is_cancelled()

    def responses(
        self, executing: Future[Any], cancelled: Callable[[], bool]
    ) -> Iterator[InferenceResponse]:
        """Yield what is sent until the final one; not part of Triton's class.

        Args:
            executing: The model's `execute`, which may end before or after.
            cancelled: Whether to stop early.
        """
        try:
            while True:
                with self._changed:
                    # Asked before the queue is: what the model sent before it raised is in there.
                    while not (failed := _has_failed(executing)) and not (
                        self._queue or self._final or cancelled()
                    ):
                        self._changed.wait(_POLL_S)
                    waiting = list(self._queue)
                    self._queue.clear()
                    ended = self._final
                    self._changed.notify_all()
                yield from waiting
                if ended or failed or cancelled():
                    break
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            executing.result()  # the slot is free when the model has come back; raises what it raised


def _has_failed(executing: Future[Any]) -> bool:
    return executing.done() and executing.exception() is not None


# Functions


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    """Return an input, or None."""
    return next((each for each in inference_request.inputs() if each.name() == name), None)


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    """Return an output, or None; raises what an erroneous response says."""
    error = inference_response.error()
    if error is not None:
        raise TritonModelException(error.message())
    return next((each for each in inference_response.output_tensors() if each.name() == name), None)


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> Any:
    """Return an input's part of a configuration, or None."""
    return next((each for each in model_config.get("input", ()) if each["name"] == name), None)


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> Any:
    """Return an output's part of a configuration, or None."""
    return next((each for each in model_config.get("output", ()) if each["name"] == name), None)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    """Whether a configuration says that the model is decoupled."""
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """Whether another model can be asked: found out by asking it nothing."""
    version = int(model_version) if model_version else None
    try:
        _call(ModelCall(model_name, {}, version, timeout_s=5.0))
    except InvalidRequest:
        return True  # it is there, and wants inputs
    except (MeshError, TritonModelException):
        return False
    return True


def load_model(model_name: str, *_args: Any, **_options: Any) -> None:
    """Refuse: models are deployed by their owners (`meshnode deploy`)."""
    raise TritonModelException(f"a model cannot load another ({model_name}) here; deploy it")


def unload_model(model_name: str, *_args: Any, **_options: Any) -> None:
    """Refuse: models are deployed by their owners (`meshnode undeploy`)."""
    raise TritonModelException(f"a model cannot unload another ({model_name}) here; undeploy it")
