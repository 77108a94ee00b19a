"""One inference as a flow of calls, and its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from meshnode.client.calls import (
    Call,
    Flow,
    Message,
    Reply,
    ask,
    get_document,
    json_bytes,
    model_path,
    names_of,
    once,
)
from meshnode.client.hints import hinted
from meshnode.client.results import ModelMetadata, TensorInfo, read_as
from meshnode.client.tensors import (
    HEADER_LENGTH,
    Encoded,
    decode_answer,
    encode_inputs,
    needs_metadata,
)
from meshnode.errors import InvalidRequest, ModelNotFound
from meshnode.limits import MAX_CACHED_MODELS, MAX_REQUEST_ID_LENGTH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from meshnode.client.hints import Hints
    from meshnode.types import Buffer, Scalar

_MARGIN: Final = 0.1  # of the time that remains, at most:
_LONGEST_MARGIN_S: Final = 0.5
"""The gateway is told to be ready so much before the client stops waiting, so that its own answer to
a passed deadline, which says more, comes in time."""


@dataclass(frozen=True, slots=True)
class Route:
    """The way that a request took, as the gateway tells it in `Mesh-Route`.

    Attributes:
        node: Name of the node that ran the model; empty if the gateway does not say.
        region: Where it is.
        version: Version of the model that it ran, or 0.
        reason: Why that node was chosen.
        expected_ms: What the gateway expected it to take, in milliseconds.
        candidates: Replicas that could have run it.
        attempts: Replicas that were asked.
        tried: Name of the node and code of the error, of each attempt that failed.
        text: The header as it came.
    """

    node: str = ""
    region: str = ""
    version: int = 0
    reason: str = ""
    expected_ms: float = 0.0
    candidates: int = 0
    attempts: int = 1
    tried: tuple[tuple[str, str], ...] = ()
    text: str = ""

    def __str__(self) -> str:
        """Return the header."""
        return self.text


def parse_route(text: str) -> Route:
    """Read a `Mesh-Route` header; what is missing or malformed has its default."""
    fields = dict(_pairs(text))
    tried = (pair.partition(":") for pair in fields.get("tried", "").split(",") if pair)
    return Route(
        node=unquote(fields.get("node", "")),
        region=unquote(fields.get("region", "")),
        version=int(_number(fields.get("version"))),
        reason=unquote(fields.get("reason", "")),
        expected_ms=_number(fields.get("expected_ms")),
        candidates=int(_number(fields.get("candidates"))),
        attempts=int(_number(fields.get("attempts"))) or 1,
        tried=tuple((unquote(node), unquote(code)) for node, _, code in tried),
        text=text,
    )


def _pairs(header: str) -> Iterator[tuple[str, str]]:
    for part in header.split(";"):
        key, equals, value = part.strip().partition("=")
        if equals:
            yield key, value.strip('"')


def _number(text: str | None) -> float:
    try:
        number = float(text or 0)
    except ValueError:
        return 0.0
    return number if 0 <= number < 2**53 else 0.0


class InferResult(Mapping[str, "NDArray[Any]"]):
    """The outputs of a model by name, and how they came about.

    It is a mapping: `result["probabilities"]` is a NumPy array, whose memory belongs to this result
    alone. BYTES outputs are arrays of `bytes` objects (`text` decodes them), BF16 ones of float32.

    Attributes:
        model: The model that ran.
        version: Its version; 0 if the gateway does not say.
        parameters: What the model answered besides its outputs.
        route: The way that the request took.
        request_id: The request's id, which is in the logs of every node involved.
        gateway: URL of the gateway that answered.
    """

    __slots__ = ("_arrays", "gateway", "model", "parameters", "request_id", "route", "version")

    def __init__(
        self,
        arrays: Mapping[str, NDArray[Any]],
        *,
        model: str,
        version: int = 0,
        parameters: Mapping[str, Scalar] | None = None,
        route: Route | None = None,
        request_id: str = "",
        gateway: str = "",
    ) -> None:
        """Hold these."""
        self._arrays = dict(arrays)
        self.model = model
        self.version = version
        self.parameters: Mapping[str, Scalar] = parameters or {}
        self.route = route or Route()
        self.request_id = request_id
        self.gateway = gateway

    def __repr__(self) -> str:
        outputs = ", ".join(
            f"{name}: {array.dtype}{list(array.shape)}" for name, array in self._arrays.items()
        )
        where = f" by {self.route.node}" if self.route.node else ""
        return f"<InferResult of {self.model} {self.version}{where}: {outputs}>"

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return one output.

        Raises:
            KeyError: naming the outputs that there are.
        """
        try:
            return self._arrays[name]
        except KeyError:
            known = ", ".join(map(repr, self._arrays)) or "none"
            raise KeyError(f"no output {name!r}; there are {known}") from None

    def __iter__(self) -> Iterator[str]:
        """Yield the outputs' names in the model's order."""
        return iter(self._arrays)

    def __len__(self) -> int:
        """Return the number of outputs."""
        return len(self._arrays)

    def text(self, name: str) -> NDArray[Any]:
        """Return a BYTES output as an array of `str` objects.

        Raises:
            KeyError: as `result[name]` does.
            TypeError: if the output is numeric.
            UnicodeDecodeError: if it is no UTF-8.
        """
        array = self[name]
        if array.dtype != object:
            raise TypeError(f"output {name!r} holds {array.dtype}, no text")
        decoded = array.copy()
        flat = decoded.reshape(-1)
        flat[:] = [element.decode() for element in array.reshape(-1)]
        return decoded


class MetadataCache:
    """The inputs of models, as a client has seen them."""

    def __init__(self) -> None:
        """Begin with none."""
        self._known: dict[tuple[str, int | None], tuple[TensorInfo, ...]] = {}

    def __repr__(self) -> str:
        return f"<MetadataCache of {len(self._known)} models>"

    def get(self, model: str, version: int | None) -> tuple[TensorInfo, ...] | None:
        """Return a model's inputs, or None if they are not known."""
        return self._known.get((model, version))

    def put(self, model: str, version: int | None, inputs: tuple[TensorInfo, ...]) -> None:
        """Remember a model's inputs; the oldest makes room."""
        while len(self._known) >= MAX_CACHED_MODELS:
            self._known.pop(next(iter(self._known)), None)
        self._known[model, version] = inputs

    def forget(self, model: str, version: int | None) -> None:
        """Ask again next time."""
        self._known.pop((model, version), None)


def infer(
    cache: MetadataCache,
    model: str,
    inputs: object,
    *,
    version: int | None,
    outputs: Sequence[str],
    parameters: Mapping[str, Scalar] | None,
    request_id: str | None,
    timeout_s: float,
    idempotency_key: str | None,
    hints: Hints | None = None,
) -> Flow[InferResult]:
    """Run a model once; `MeshClient.infer` says the rest."""
    encoded = yield from encoded_for(cache, model, version, inputs)
    document = infer_document(encoded, outputs, parameters, binary=True)
    if idempotency_key is not None:  # the same in every try: another time would be another request
        document["parameters"] = {"timeout": round(timeout_s * 1e6), **document["parameters"]}
    call = infer_call(
        model,
        document,
        encoded.buffers,
        version=version,
        request_id=request_id,
    )
    try:
        reply = yield from ask(once(hinted(call, hints), idempotency_key))
    except (InvalidRequest, ModelNotFound):
        cache.forget(model, version)  # it may have been deployed anew, with other inputs
        raise
    return read_result(reply)


def encoded_for(
    cache: MetadataCache, model: str, version: int | None, inputs: object
) -> Flow[Encoded]:
    """Encode inputs for a model, which is asked for its own where they alone do not tell.

    Raises:
        InvalidRequest: if the name, the version or the inputs are none.
    """
    specs = None
    model_path(model, version)  # is refused before anything is asked
    if needs_metadata(inputs):
        specs = cache.get(model, version)
        if specs is None:
            specs = (yield from get_metadata(model, version)).inputs
            cache.put(model, version, specs)
    return encode_inputs(inputs, model, specs)


def get_metadata(model: str, version: int | None) -> Flow[ModelMetadata]:
    """Ask what a model takes and gives."""
    return read_as(ModelMetadata, (yield from get_document(model_path(model, version))))


def infer_document(
    encoded: Encoded,
    outputs: Sequence[str] = (),
    parameters: Mapping[str, Scalar] | None = None,
    *,
    binary: bool = False,
) -> dict[str, Any]:
    """Return the JSON part of a request.

    Args:
        encoded: The inputs.
        outputs: Names of the outputs wanted; empty for all.
        parameters: For the model.
        binary: Whether the outputs shall come as bytes.
    """
    document: dict[str, Any] = {"inputs": encoded.described}
    if outputs:
        document["outputs"] = [{"name": name} for name in names_of("outputs", outputs)]
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InvalidRequest(f"parameters must be a map from name to value, and are {parameters!r}")
    more = dict(parameters or {})
    if binary:
        more["binary_data_output"] = True
    if more:
        document["parameters"] = more
    return document


def infer_call(
    model: str,
    document: Mapping[str, Any],
    buffers: tuple[Buffer, ...] = (),
    *,
    version: int | None = None,
    request_id: str | None = None,
) -> Call:
    """Return the call for a request of the Open Inference Protocol.

    What cannot be JSON raises `InvalidRequest` when the message is made, before anything is sent.

    Args:
        model: Public name of the model.
        document: The JSON part. The time that remains is added to its parameters as `timeout`,
            unless it has one.
        buffers: The contents of the inputs that carry `binary_data_size`, in their order.
        version: A version, or None for the newest that is ready.
        request_id: Sent as `X-Request-Id`, if not None.

    Raises:
        InvalidRequest: if the id cannot be a header.
    """
    own = {} if request_id is None else {"X-Request-Id": checked_id(request_id)}
    given = document.get("parameters") or {}

    def message(remaining_s: float) -> Message:
        told_s = remaining_s - min(remaining_s * _MARGIN, _LONGEST_MARGIN_S)
        parameters = {"timeout": max(round(told_s * 1e6), 1), **given}
        head = json_bytes({**document, "parameters": parameters})
        if not buffers:
            return Message({"Content-Type": "application/json", **own}, (head,))
        headers = {
            "Content-Type": "application/octet-stream",
            HEADER_LENGTH: str(len(head)),
            **own,
        }
        return Message(headers, (head, *buffers))

    # A request of a sequence that ran twice would count twice in what the model keeps of it.
    repeatable = "sequence_id" not in given
    return Call("POST", f"{model_path(model, version)}/infer", message, repeatable=repeatable)


def checked_id(text: str) -> str:
    """Return a request id that can be a header.

    Raises:
        InvalidRequest: if it cannot.
    """
    if not isinstance(text, str):
        raise InvalidRequest(f"request_id must be text, and is {text!r}")
    if (
        not text
        or len(text) > MAX_REQUEST_ID_LENGTH
        or not all(c.isascii() and c.isprintable() for c in text)
    ):
        raise InvalidRequest(
            f"request_id {text[:40]!r} must be 1 to {MAX_REQUEST_ID_LENGTH} printable ASCII characters"
        )
    return text


def read_result(reply: Reply) -> InferResult:
    """Return an answer's outputs as arrays; raises as `decode_answer` does."""
    answer = decode_answer(reply)
    version = answer.model_version
    return InferResult(
        answer.arrays,
        model=answer.model_name,
        version=int(version) if version.isascii() and version.isdigit() else 0,
        parameters=answer.parameters,
        route=parse_route(reply.headers.get("mesh-route", "")),
        request_id=reply.headers.get("x-request-id", ""),
        gateway=reply.url,
    )
