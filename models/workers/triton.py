"""Models written as for Triton's Python backend: `model.py` with a class `TritonPythonModel`.

`initialize(args)`, `execute(requests)`, `finalize()` and the static `auto_complete_config(config)` are called
as Triton calls them, on one thread. The module that such models import, `triton_python_backend_utils`, is
ours (`meshnode.models.workers.triton_python_backend_utils`), put in place before `model.py` is read.

Sources: the Python backend's documentation and the behaviour of its release 24.x.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from meshnode.errors import InferenceFailed, ModelError
from meshnode.models.execution import DynamicBatching
from meshnode.models.manifest import TensorSpec
from meshnode.models.runtimes.base import Described
from meshnode.models.variables import model_parameters
from meshnode.models.workers import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meshnode.models.workers.adaptor import Answer, Outcome, WorkerRequest, WorkerSurroundings

CLASS: Final = "TritonPythonModel"
_MODULE: Final = "triton_python_backend_utils"


def open_adaptor(surroundings: WorkerSurroundings) -> TritonAdaptor:
    """Return the adaptor of this spelling."""
    return TritonAdaptor(surroundings)


class TritonAdaptor:
    """One `model.py`."""

    asynchronous = False
    joins_rows = False
    concurrency = 1
    device = "cpu"

    def __init__(self, surroundings: WorkerSurroundings) -> None:
        """Put the stand-in module in place; `model.py` is not read yet."""
        self._opening = surroundings.opening
        self._model: Any = None
        self._class: Any = None
        self._described: Described | None = None
        self._decoupled = surroundings.opening.execution.decoupled
        # Decoupled models send while they execute; all their code runs on one thread of its own.
        self._thread = ThreadPoolExecutor(1, "model")
        self._loop: asyncio.AbstractEventLoop | None = None
        if surroundings.opening.device.startswith("gpu"):
            self.device = surroundings.opening.device
        sys.modules[_MODULE] = pb_utils
        pb_utils.set_caller(surroundings.call)

    def __repr__(self) -> str:
        return f"<TritonAdaptor {self._opening.model}/{self._opening.version}>"

    def describe(self) -> Described:
        """Return the configuration, completed by the model where it says how."""
        if self._described is None:
            self._class = _class_in(self._opening.folder / self._opening.entry, self._opening.model)
            self._described = self._completed()
        return self._described

    def initialise(self) -> None:
        """Make the model and call its `initialize`."""
        described = self.describe()
        self._model = self._class()
        initialize = getattr(self._model, "initialize", None)
        if initialize is None:
            return
        if self._decoupled:
            self._thread.submit(initialize, self._arguments(described)).result()
        else:
            initialize(self._arguments(described))

    def execute(self, requests: Sequence[WorkerRequest]) -> list[Outcome]:
        """Answer a batch."""
        if self._decoupled:
            outcomes: list[Outcome] = []
            for request in requests:
                outcomes += self._single(request)
            return outcomes
        given = [pb_utils.InferenceRequest.from_worker(each) for each in requests]
        answered = self._called(given)
        if not isinstance(answered, list | tuple):
            raise InferenceFailed(
                f"execute() returned {type(answered).__name__}; it must return a list with one "
                "InferenceResponse for each request"
            )
        if len(answered) != len(requests):
            raise InferenceFailed(
                f"execute() returned {len(answered)} responses to {len(requests)} requests; it must return one "
                "for each, in their order"
            )
        return [
            self._outcome(response, request)
            for response, request in zip(answered, given, strict=True)
        ]

    def stream(self, request: WorkerRequest) -> Iterator[Answer]:
        """Answer one request through its response sender, or in the plain way if it is not decoupled."""
        if not self._decoupled:
            (outcome,) = self.execute([request])
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome
            return
        given = pb_utils.InferenceRequest.from_worker(request)
        sender = given.get_response_sender()
        executing = self._thread.submit(self._called, [given])
        for response in sender.responses(executing, lambda: request.cancelled):
            outcome = self._outcome(response, given)
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome

    def finalise(self) -> None:
        """Call the model's `finalize`."""
        finalize = getattr(self._model, "finalize", None)
        if finalize is None:
            return
        if self._decoupled:
            self._thread.submit(finalize).result()
        else:
            finalize()

    def _called(self, given: list[pb_utils.InferenceRequest]) -> Any:
        """Call `execute`, which may be a coroutine function: to ask several models at once."""
        answered = self._model.execute(given)
        if not inspect.iscoroutine(answered):
            return answered
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(answered)

    def _single(self, request: WorkerRequest) -> list[Outcome]:
        try:
            answers = list(self.stream(request))
        except Exception as error:  # noqa: BLE001 - the model's own, for this request alone
            return [error]
        if len(answers) != 1:
            return [
                InferenceFailed(
                    f"the decoupled model gave {len(answers)} responses; ask it as a stream"
                )
            ]
        return [answers[0]]

    def _outcome(self, response: object, request: pb_utils.InferenceRequest) -> Outcome:
        if isinstance(response, pb_utils.InferenceResponse):
            return response.outcome()
        if response is None and request.is_sent:
            return InferenceFailed(
                "the model answered through a response sender; it is not decoupled"
            )
        return InferenceFailed(
            f"execute() returned {type(response).__name__} for a request; it must be an InferenceResponse"
        )

    # The configuration

    def _completed(self) -> Described:
        opening = self._opening
        auto_complete = getattr(self._class, "auto_complete_config", None)
        if auto_complete is None:
            described = Described(
                opening.inputs, opening.outputs, opening.max_batch_size, opening.execution
            )
        else:
            configured = Described(
                opening.inputs, opening.outputs, opening.max_batch_size, opening.execution
            )
            config = pb_utils.ModelConfig(self._config(configured))
            changed = auto_complete(config)
            document = (changed if changed is not None else config).as_dict()
            described = _read_config(document, opening)
        self._decoupled = described.execution.decoupled
        if not described.outputs:
            raise ModelError(
                f"model {opening.model} names no outputs: write them into its config.pbtxt, or set them in "
                "auto_complete_config()"
            )
        return described

    def _config(self, described: Described) -> dict[str, Any]:
        """Return a configuration as models see it: as JSON has Triton's."""
        execution = described.execution
        batches = described.max_batch_size > 0
        config: dict[str, Any] = {
            "name": self._opening.model,
            "backend": "python",
            "max_batch_size": described.max_batch_size,
            "input": [_io(each, batches=batches) for each in described.inputs],
            "output": [_io(each, batches=batches) for each in described.outputs],
            "model_transaction_policy": {"decoupled": execution.decoupled},
            "parameters": {
                key: {"string_value": value}
                for key, value in model_parameters(execution.parameters)
            },
        }
        if execution.batching is not None:
            config["dynamic_batching"] = {
                "preferred_batch_size": list(execution.batching.preferred_batch_sizes),
                "max_queue_delay_microseconds": execution.batching.max_queue_delay_us,
            }
        return config

    def _arguments(self, described: Described) -> dict[str, str]:
        """Return what Triton gives to `initialize`; all values are texts."""
        opening = self._opening
        config = self._config(described)
        kind, _, number = opening.device.partition(":")
        folder = opening.folder
        # Triton's repository is the folder above the version's; ours may be a version alone.
        is_version = folder.name == str(opening.version)
        return {
            "model_config": json.dumps(config),
            "model_instance_kind": "GPU" if kind == "gpu" else "CPU",
            "model_instance_name": f"{opening.model}_0_{opening.instance}",
            "model_instance_device_id": number or "0",
            "model_repository": str(folder.parent if is_version else folder),
            "model_version": str(opening.version),
            "model_name": opening.model,
        }


def _class_in(path: Any, model: str) -> Any:
    """Read `model.py` as a module of its own; its folder is where it imports from."""
    if not path.is_file():
        raise ModelError(f"{path.name!r} is missing in {path.parent}")
    for folder in (path.parent.parent, path.parent):
        sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    found = getattr(module, CLASS, None)
    if found is None or not inspect.isclass(found):
        raise ModelError(f"{path.name} of model {model} has no class {CLASS}")
    if not callable(getattr(found, "execute", None)):
        raise ModelError(f"{CLASS} of model {model} has no function execute(self, requests)")
    return found


def _io(spec: TensorSpec, *, batches: bool) -> dict[str, Any]:
    dims = spec.shape[1:] if batches else spec.shape
    return {
        "name": spec.name,
        "data_type": pb_utils.triton_type_of(spec.datatype),
        "dims": list(dims),
    }


def _read_config(document: dict[str, Any], opening: Any) -> Described:
    """Return what `auto_complete_config` has set, over what was configured."""
    import msgspec

    max_batch_size = int(document.get("max_batch_size", 0))
    lead = (-1,) if max_batch_size > 0 else ()
    inputs = tuple(_spec(each, lead) for each in document.get("input", ()))
    outputs = tuple(_spec(each, lead) for each in document.get("output", ()))
    optional = tuple(
        str(each["name"]) for each in document.get("input", ()) if each.get("optional")
    )
    policy = document.get("model_transaction_policy", {})
    execution = opening.execution
    batching = execution.batching
    if batching is None and "dynamic_batching" in document:
        batching = DynamicBatching()
    execution = msgspec.structs.replace(
        execution,
        decoupled=bool(policy.get("decoupled", execution.decoupled)),
        batching=batching,
        optional_inputs=tuple(dict.fromkeys((*execution.optional_inputs, *optional))),
    )
    return Described(inputs, outputs, max_batch_size, execution)


def _spec(entry: dict[str, Any], lead: tuple[int, ...]) -> TensorSpec:
    try:
        datatype = pb_utils.datatype_of(str(entry["data_type"]))
        return TensorSpec(str(entry["name"]), datatype, (*lead, *map(int, entry["dims"])))
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(
            f"auto_complete_config() gave a tensor {entry!r} that cannot be read: {error}"
        ) from None
