"""How a model version is executed: what `config.pbtxt` says beyond names and shapes.

The settings travel in the version's manifest, so that every node that serves it executes it alike. They
are plain data with their own limits; what carries them out is beside them: `meshnode.models.serving.batching`,
`sequences`, `warmup`, the runtimes.

Times that end in `_us` are microseconds, as in Triton's configuration.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from meshnode.types import DataType


class Interface(StrEnum):
    """What a version takes and gives.

    TENSORS: the tensors of its manifest.
    JSON: one JSON document in, one out (or a stream of them): in tensors, a BYTES element `request` and
        one `response`.
    HTTP: it answers HTTP requests of its own routes: in tensors, UINT8 `body` in, `body` out; the rest is
        in parameters (`meshnode.models.http_calls`).
    """

    TENSORS = "tensors"
    JSON = "json"
    HTTP = "http"


class Spelling(StrEnum):
    """How the author of a Python model wrote it; empty for all other models."""

    NONE = ""
    TRITON = "triton"  # model.py with TritonPythonModel
    PIPELINE = "pipeline"  # pipeline.py with `pipe` or `Pipeline`, perhaps endpoint.py beside it
    PREDICTOR = "predictor"  # a class with predict() or async_predict()
    ARCHIVE = "archive"  # a TorchServe .mar


class Timeout(StrEnum):
    """What becomes of a request that has waited for its queue's timeout."""

    REJECT = "reject"
    DELAY = "delay"


class Resumable(StrEnum):
    """How a streamed answer goes on where the node that makes it is lost; see docs/routing.md.

    NO: it does not.
    REPLAY: the request runs anew elsewhere, and gives the same parts: those that came already are left out.
    DELIVERED: likewise, but a request may say what came already, and the model gives what follows.
    """

    NO = ""
    REPLAY = "replay"
    DELIVERED = "delivered"


class InstanceGroup(msgspec.Struct, array_like=True, frozen=True):
    """Instances of one kind.

    Attributes:
        count: How many, on each device; 0 lets the node decide.
        device: `auto` (an accelerator if the runtime has one), `cpu` or `gpu`.
        gpus: Which accelerators, by index; empty for all.
        passive: Opened, but given no requests.
    """

    count: int = 0
    device: str = "auto"
    gpus: tuple[int, ...] = ()
    passive: bool = False


class QueuePolicy(msgspec.Struct, array_like=True, frozen=True):
    """Of one priority level's queue.

    Attributes:
        timeout: What becomes of who waited too long.
        default_timeout_us: How long that is; 0 for ever (until the request's own deadline).
        allow_timeout_override: Whether a request's own `timeout` parameter counts, if shorter.
        max_queue_size: Requests that may wait; 0 for the node's limit.
    """

    timeout: Timeout = Timeout.REJECT
    default_timeout_us: int = 0
    allow_timeout_override: bool = False
    max_queue_size: int = 0


class DynamicBatching(msgspec.Struct, array_like=True, frozen=True):
    """Requests are joined to batches of rows.

    Attributes:
        preferred_batch_sizes: Rows at which a batch leaves without waiting for more; empty: the maximum.
        max_queue_delay_us: How long the oldest request may wait for others.
        preserve_ordering: Answers are given in the order in which requests came.
        priority_levels: 0 for one queue; else levels 1 (first) to this.
        default_priority_level: Level of requests that name none.
        default_queue_policy: Of each level that has none of its own.
        queue_policies: (level, policy) pairs.
    """

    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority_level: int = 0
    default_queue_policy: QueuePolicy = QueuePolicy()
    queue_policies: tuple[tuple[int, QueuePolicy], ...] = ()


class ControlKind(StrEnum):
    """What a control input of a sequence model is told."""

    START = "start"
    END = "end"
    READY = "ready"
    CORRELATION_ID = "correlation_id"


class ControlInput(msgspec.Struct, array_like=True, frozen=True):
    """An input that the node fills in: `values` are (false, true); empty for the correlation id."""

    name: str
    kind: ControlKind
    datatype: DataType
    values: tuple[float, ...] = ()


class SequenceState(msgspec.Struct, array_like=True, frozen=True):
    """An implicit state: the output is kept and given as the input of the sequence's next request."""

    input_name: str
    output_name: str
    datatype: DataType
    shape: tuple[int, ...]
    initial_file: str = ""


class SequenceBatching(msgspec.Struct, array_like=True, frozen=True):
    """Requests of one sequence go to one instance, in order.

    Attributes:
        strategy: `direct` (a sequence owns a slot of a batch) or `oldest` (the oldest sequences make a batch).
        max_idle_us: A sequence that is silent for longer is over.
        controls: Inputs that the node fills in.
        states: States that the node keeps between requests.
        max_candidates: `oldest`: sequences at once.
        preferred_batch_sizes: `oldest`: as in dynamic batching.
        max_queue_delay_us: How long a batch may wait for further slots or sequences.
        minimum_slot_utilization: `direct`: share of slots at which a batch does not wait.
    """

    strategy: str = "direct"
    max_idle_us: int = 1_000_000
    controls: tuple[ControlInput, ...] = ()
    states: tuple[SequenceState, ...] = ()
    max_candidates: int = 0
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    minimum_slot_utilization: float = 0.0


class WarmUpInput(msgspec.Struct, array_like=True, frozen=True):
    """One input of a warm-up request: `data` is `zero`, `random`, or a file in the model's `warmup` folder."""

    name: str
    datatype: DataType
    shape: tuple[int, ...]
    data: str = "zero"
    file: str = ""


class WarmUp(msgspec.Struct, array_like=True, frozen=True):
    """A request that is made `count` times, with `batch_size` rows, before a version is ready."""

    name: str
    batch_size: int
    inputs: tuple[WarmUpInput, ...]
    count: int = 1


class EnsembleStep(msgspec.Struct, array_like=True, frozen=True):
    """One model of an ensemble: maps are (the model's tensor, the ensemble's tensor); version 0: the newest."""

    model: str
    version: int
    input_map: tuple[tuple[str, str], ...]
    output_map: tuple[tuple[str, str], ...]


class RateLimit(msgspec.Struct, array_like=True, frozen=True):
    """Requests per second that a version takes on one node, and how many at once; 0: no limit."""

    per_second: float = 0.0
    burst: int = 1


class Route(msgspec.Struct, array_like=True, frozen=True):
    """An HTTP route that a version answers: a path as FastAPI writes it (`/items/{item_id}`)."""

    method: str
    path: str


class Execution(msgspec.Struct, array_like=True, frozen=True):
    """All settings of one version. The default is a version without a configuration.

    Fields are only ever added at the end (docs/ARCHITECTURE.md, the upgrade contract).

    Attributes:
        instance_groups: Empty lets the node decide.
        batching: Configured dynamic batching; None: adaptive where the model's first dimension is free.
        adaptive: Whether batching that nobody configured is allowed; False for models that must see
            each request alone.
        sequences: Sequence batching, or None.
        warm_up: Requests before it is ready, besides the node's own.
        cache: Whether answers are kept in the node's response cache.
        decoupled: Whether a request may get any number of answers.
        repeatable: Whether a request may be tried again elsewhere.
        steps: An ensemble's models.
        reshape: (tensor, shape without the batch dimension) where the model wants another shape than clients.
        optional_inputs: Inputs that a request may leave out.
        parameters: For the runtime or the model.
        graph_level: ONNX Runtime's optimisation: -1 basic, 1 or more extended; 0 all.
        accelerators: (name, parameters) of execution accelerators, such as `tensorrt`.
        rate_limit: Per node.
        interface: What it takes and gives.
        spelling: How a Python model is written.
        routes: HTTP routes of an `HTTP` version.
        replicas: Instances that a `SERVER_MODELS` entry asks for; 0 otherwise.
        schema: JSON for people and tools: `{"request", "response"}` schemas of a `JSON` version,
            OpenAPI's `{"paths", "components"}` of an `HTTP` one; empty if it states none.
        resumable: Whether a stream can go on elsewhere: then the same request with the same `seed` gives the same parts.
    """

    instance_groups: tuple[InstanceGroup, ...] = ()
    batching: DynamicBatching | None = None
    adaptive: bool = True
    sequences: SequenceBatching | None = None
    warm_up: tuple[WarmUp, ...] = ()
    cache: bool = False
    decoupled: bool = False
    repeatable: bool = True
    steps: tuple[EnsembleStep, ...] = ()
    reshape: tuple[tuple[str, tuple[int, ...]], ...] = ()
    optional_inputs: tuple[str, ...] = ()
    parameters: tuple[tuple[str, str], ...] = ()
    graph_level: int = 0
    accelerators: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    rate_limit: RateLimit | None = None
    interface: Interface = Interface.TENSORS
    spelling: Spelling = Spelling.NONE
    routes: tuple[Route, ...] = ()
    replicas: int = 0
    schema: str = ""
    resumable: Resumable = Resumable.NO


DEFAULT_EXECUTION = Execution()
"""Of a version without a configuration."""
