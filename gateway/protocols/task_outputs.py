"""What models answer to tasks: text, part by part, and vectors.

A model may say of its answer, in the parameters of any part, in outputs of these names, or in `usage` and
`finish_reason` of a document:

| name | |
|---|---|
| `prompt_tokens`, `completion_tokens` | how many tokens it has read and written so far |
| `finish_reason` | why it ended: `stop`, `length` |
"""

from __future__ import annotations

import codecs
import math
import struct
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshnode.errors import InferenceFailed, InvalidRequest
from meshnode.gateway.protocols.tensors import split_elements, unpack
from meshnode.limits import MAX_BODY_BYTES
from meshnode.models.http_calls import content_of, head_of
from meshnode.types import DataType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshnode.models.manifest import Manifest
    from meshnode.models.tasks import Offer
    from meshnode.types import ResponsePart, Tensor

_TEXT_MEMBERS: Final = (
    "text",
    "content",
    "reply",
    "response",
    "generated_text",
    "output",
    "answer",
)
_VECTOR_MEMBERS: Final = ("embedding", "vector", "embeddings", "vectors")
_TOLD: Final = ("prompt_tokens", "completion_tokens", "finish_reason")
_EVENTS: Final = "text/event-stream"
_LINES: Final = frozenset({"application/x-ndjson", "application/jsonl", "application/json-lines"})
_END_OF_EVENTS: Final = "[DONE]"


def wanted_outputs(manifest: Manifest, offer: Offer) -> tuple[str, ...]:
    """Return the outputs to ask a model for: the text or vector, and what it says of it."""
    if offer.takes_documents:
        return ()
    told = (spec.name for spec in manifest.outputs if spec.name in _TOLD)
    return (offer.mapping.output, *told)


def told_by(part: ResponsePart) -> dict[str, Any]:
    """Return what a part says of the answer, by name."""
    told: dict[str, Any] = dict(part.parameters)
    for tensor in part.outputs:
        if tensor.name in _TOLD and tensor.elements:
            values = unpack(tensor)
            told[tensor.name] = values[0] if tensor.datatype is DataType.BYTES else sum(values)
    return told


class TextReader:
    """Reads the text of an answer, part by part.

    Attributes:
        prompt_tokens: As the model told; None if it does not.
        completion_tokens: The same.
        finish_reason: Why it ended, if the model told; else empty.
    """

    def __init__(self, model: str, offer: Offer) -> None:
        """Read what a model answers."""
        self._model = model
        self._output = offer.mapping.output
        self._documents = offer.takes_documents
        self._repeats = offer.option("parts") == "all"
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._so_far = ""
        self._media_type = ""
        self._unread = ""
        self._event: list[str] = []  # the data lines of the event that is being read
        self._events_are_documents = False
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.finish_reason = ""

    def __repr__(self) -> str:
        return f"<TextReader of {self._model}: {self.completion_tokens} tokens>"

    def read(self, part: ResponsePart) -> str:
        """Return the text that a part adds.

        Raises:
            InferenceFailed: if the part has no text where the mapping says.
        """
        self._note(told_by(part))
        if self._documents:
            return self._read_document(part)
        text = self._decoder.decode(self._element(part))
        if not self._repeats:
            return text
        if not text.startswith(self._so_far):
            raise InferenceFailed(
                f"model {self._model!r} is mapped with parts=all, but a part does not begin with what came before it"
            )
        added, self._so_far = text[len(self._so_far) :], text
        return added

    def end(self) -> str:
        """Return the text that was held back until the end.

        Raises:
            InferenceFailed: if a document ends in its middle, or has no text.
        """
        rest = self._decoder.decode(b"", final=True)
        if not self._documents:
            return rest
        unread, self._unread = self._unread + rest, ""
        if self._media_type == _EVENTS:
            return self._end_of_events(unread)
        return self._text_of_line(unread) if unread.strip() else ""

    def _element(self, part: ResponsePart) -> bytes:
        tensor = next((each for each in part.outputs if each.name == self._output), None)
        if tensor is None:
            if not part.outputs:  # an empty part that only ends a stream
                return b""
            raise InferenceFailed(
                f"model {self._model!r} answered without its output {self._output!r}"
            )
        if tensor.datatype is not DataType.BYTES:
            raise InferenceFailed(f"output {self._output!r} of model {self._model!r} is not BYTES")
        try:
            return b"".join(split_elements(tensor.data))
        except ValueError as error:
            raise InferenceFailed(
                f"output {self._output!r} of model {self._model!r}: {error}"
            ) from None

    def _note(self, told: Mapping[str, Any]) -> None:
        prompt, completion = told.get("prompt_tokens"), told.get("completion_tokens")
        if type(prompt) is int and prompt >= 0:
            self.prompt_tokens = prompt
        if type(completion) is int and completion >= 0:
            self.completion_tokens = completion
        reason = told.get("finish_reason")
        if isinstance(reason, str) and reason:
            self.finish_reason = reason[:40]

    # Documents: JSON, JSON lines, events, or plain text.

    def _read_document(self, part: ResponsePart) -> str:
        if not self._media_type:
            head = head_of(part.parameters)
            self._media_type = (
                head.header("content-type", "application/json").partition(";")[0].lower()
            )
            if head.status >= 400:
                raise _refused(self._model, head.status, bytes(document_bytes(part)))
        text = self._decoder.decode(document_bytes(part))
        if self._media_type == _EVENTS or self._media_type in _LINES:
            *lines, self._unread = (self._unread + text).split("\n")
            self._check_unread()
            read = self._text_of_event_line if self._media_type == _EVENTS else self._text_of_line
            return "".join(map(read, lines))
        if self._media_type.endswith("json"):
            self._unread += text
            self._check_unread()
            return ""
        return text

    def _check_unread(self) -> None:
        if len(self._unread) + sum(map(len, self._event)) > MAX_BODY_BYTES:
            raise InferenceFailed(
                f"model {self._model!r} answered a document of more than {MAX_BODY_BYTES} characters"
            )

    def _text_of_line(self, line: str) -> str:
        return self._text_in(decode_document(self._model, line)) if line.strip() else ""

    def _text_of_event_line(self, line: str) -> str:
        """Return the text of the event that a line ends; other lines have none yet."""
        line = line.removesuffix("\r")
        if line.startswith("data:"):
            self._event.append(line.removeprefix("data:").removeprefix(" "))
            return ""
        if line:
            return ""  # a comment, a name, or an id
        event, self._event = self._event, []
        return self._text_of_event("\n".join(event)) if event else ""

    def _text_of_event(self, data: str) -> str:
        if data == _END_OF_EVENTS:
            return ""
        try:
            document = msgspec.json.decode(data)
        except (msgspec.MsgspecError, RecursionError):
            if self._events_are_documents:
                raise InferenceFailed(
                    f"model {self._model!r} sent an event that is not JSON: {data[:80]!r}"
                ) from None
            return data
        if isinstance(document, int | float):  # plain text may look so
            return data
        self._events_are_documents |= not isinstance(document, str)
        return self._text_in(document)

    def _end_of_events(self, unread: str) -> str:
        """Return the text of the last event, if no empty line follows it.

        Raises:
            InferenceFailed: if its last line has not ended either, and is no whole document.
        """
        text = self._text_of_event_line(unread)
        data = "\n".join(self._event)
        if unread.strip() and data != _END_OF_EVENTS and not _is_document(data):
            raise InferenceFailed(f"model {self._model!r} broke off within an event")
        return text + self._text_of_event_line("")

    def _text_in(self, document: object) -> str:
        if isinstance(document, dict):
            if isinstance(document.get("usage"), dict):
                self._note(document["usage"])
            self._note(document)
            choices = document.get("choices")
            if isinstance(choices, list) and choices and isinstance(choices[0], dict):
                self._note({"finish_reason": choices[0].get("finish_reason")})
            said = _said_error(document.get("error"))
            if said:
                raise InferenceFailed(f"model {self._model!r} failed: {said[:400]}")
        text = member(document, self._output, _TEXT_MEMBERS, str)
        if text is None and isinstance(document, dict):
            text = _choice(document)
        if isinstance(text, str):
            return text
        where = f"the member {self._output!r}" if self._output else "a text"
        raise InferenceFailed(f"model {self._model!r} answered a document without {where}")


def vectors_of(model: str, offer: Offer, part: ResponsePart, rows: int) -> list[Sequence[float]]:
    """Return the vectors of an answer, one for each row that was asked.

    Raises:
        InferenceFailed: if the answer has no such vectors.
    """
    if offer.takes_documents:
        vectors = _document_vectors(model, offer, part)
    else:
        vectors = _tensor_vectors(model, offer, part, rows)
    if len(vectors) != rows:
        raise InferenceFailed(f"model {model!r} answered {rows} texts with {len(vectors)} vectors")
    if not all(all(map(math.isfinite, vector)) for vector in vectors):
        raise InferenceFailed(
            f"model {model!r} answered with a vector that holds NaN or an infinity, which JSON cannot tell"
        )
    if offer.option("normalize") == "true":
        return [unit(vector) for vector in vectors]
    return vectors


def unit(vector: Sequence[float]) -> list[float]:
    """Return a vector of finite numbers with length 1 in the same direction; one of zeros stays."""
    largest = max(map(abs, vector), default=0.0)
    if not largest:
        return [*vector]
    scaled = [value / largest for value in vector]  # the squares of huge numbers would be too large
    length = math.hypot(*scaled)
    return [value / length for value in scaled]


def told_tokens(part: ResponsePart) -> int | None:
    """Return how many tokens a model says that it has read."""
    value = told_by(part).get("prompt_tokens")
    return value if type(value) is int and value >= 0 else None


def document_bytes(part: ResponsePart) -> memoryview:
    """Return the bytes of a part of a document.

    Raises:
        InferenceFailed: if it is none.
    """
    try:
        return content_of(part.outputs)
    except InvalidRequest as error:
        raise InferenceFailed(f"the model's answer is no document: {error}") from None


def decode_document(model: str, text: str | memoryview) -> Any:
    """Return what a model's JSON means.

    Raises:
        InferenceFailed: if it is not JSON.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InferenceFailed(f"model {model!r} answered what is not JSON: {error}") from None


def member(document: object, path: str, usual: Sequence[str], kind: type) -> Any:
    """Return a member of a document, or the document itself, if it is of a kind; else None.

    Args:
        document: Decoded JSON.
        path: Names of members, and places in lists, joined by dots; empty to look for it.
        usual: Names to look for first; then the only member of that kind.
        kind: What it must be.
    """
    if path:
        for step in path.split("."):
            if isinstance(document, list) and step.isdigit() and int(step) < len(document):
                document = document[int(step)]
            else:
                document = document.get(step) if isinstance(document, dict) else None
        return document if isinstance(document, kind) else None
    if not isinstance(document, dict):
        return document if isinstance(document, kind) else None
    found = [document[name] for name in usual if isinstance(document.get(name), kind)]
    if not found:
        found = [value for value in document.values() if isinstance(value, kind)]
        found = found if len(found) == 1 else []
    return found[0] if found else None


def _said_error(error: object) -> str:
    """Return the sentence of an error that is told in plain text, or in OpenAI's own form; else nothing."""
    said = error.get("message") if isinstance(error, dict) else error
    return said if isinstance(said, str) else ""


def _is_document(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.MsgspecError, RecursionError):
        return False


def _choice(document: dict[str, Any]) -> str | None:
    """Return the text of an answer, or of a piece of one, in OpenAI's own form."""
    choices = document.get("choices")
    if not isinstance(choices, list):
        return None
    if not choices:
        return ""  # the last piece of a stream, which tells what was used
    choice = choices[0] if isinstance(choices[0], dict) else {}
    inner = choice.get("delta") or choice.get("message") or choice
    text = inner.get("content", inner.get("text", "")) if isinstance(inner, dict) else None
    return "" if text is None else text if isinstance(text, str) else None


def _refused(model: str, status: int, body: bytes) -> InvalidRequest | InferenceFailed:
    said = body[:400].decode("utf-8", "replace")
    sentence = f"model {model!r} refused the request with status {status}: {said}"
    return InvalidRequest(sentence) if status < 500 else InferenceFailed(sentence)


def _document_vectors(model: str, offer: Offer, part: ResponsePart) -> list[Sequence[float]]:
    head = head_of(part.parameters)
    data = document_bytes(part)
    if head.status >= 400:
        raise _refused(model, head.status, bytes(data))
    found = member(decode_document(model, data), offer.mapping.output, _VECTOR_MEMBERS, list)
    rows = found if found and isinstance(found[0], list) else [found]
    try:
        vectors = msgspec.convert(rows, list[list[float]], strict=True)
    except msgspec.ValidationError:
        raise InferenceFailed(
            f"model {model!r} answered a document without a vector of numbers"
        ) from None
    return [*vectors]


def _tensor_vectors(
    model: str, offer: Offer, part: ResponsePart, rows: int
) -> list[Sequence[float]]:
    name = offer.mapping.output
    tensor = next((each for each in part.outputs if each.name == name), None)
    if tensor is None:
        raise InferenceFailed(f"model {model!r} answered without its output {name!r}")
    values = _floats(tensor)
    shape = tensor.shape
    if len(shape) == 1 and rows == 1:
        return [values]
    if len(shape) == 2:
        width = shape[1]
        return (
            [values[start : start + width] for start in range(0, len(values), width)]
            if width
            else []
        )
    if len(shape) == 3:
        return _pooled(values, shape, offer.option("pooling", "mean"))
    raise InferenceFailed(
        f"output {name!r} of model {model!r} has shape {list(shape)}; a vector for each text, or for each of its tokens, "
        "was expected"
    )


def _floats(tensor: Tensor) -> Sequence[float]:
    if tensor.datatype is DataType.FP32 and tensor.size_bytes == 4 * tensor.elements:
        return struct.unpack(f"<{tensor.elements}f", tensor.data)
    return unpack(tensor)


def _pooled(values: Sequence[float], shape: Sequence[int], pooling: str) -> list[Sequence[float]]:
    """Return one vector per row of [rows, tokens, width]."""
    rows, tokens, width = shape
    vectors: list[Sequence[float]] = []
    for row in range(rows):
        start = row * tokens * width
        each = [
            values[start + token * width : start + (token + 1) * width] for token in range(tokens)
        ]
        if not each:
            continue
        if pooling == "mean":
            vectors.append([_mean(column) for column in zip(*each, strict=True)])
        else:
            vectors.append(each[0 if pooling == "first" else -1])
    return vectors


def _mean(values: Sequence[float]) -> float:
    try:
        return math.fsum(values) / len(values)
    except (OverflowError, ValueError):  # too large, or infinities of both signs: no number
        return math.nan
