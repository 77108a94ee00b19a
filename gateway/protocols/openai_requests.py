"""What requests of OpenAI's API ask for: their bodies, read and checked.

Members that no model could honour here are refused and not passed over: tools, images, log probabilities. Members
that are about a provider's own services (`store`, `metadata`, `user`) say nothing to a model and are dropped. All
other scalars are parameters for the model, those that OpenAI doesn't know too: `top_k`, say.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from meshnode.errors import InvalidRequest, ModelNotFound
from meshnode.gateway.protocols.content_coding import decompress
from meshnode.gateway.protocols.openai_errors import WrongMember
from meshnode.gateway.protocols.openai_templates import Message
from meshnode.limits import (
    MAX_BODY_BYTES,
    MAX_MODEL_NAME_LENGTH,
    MAX_REQUEST_CHOICES,
    MAX_REQUEST_MESSAGES,
    MAX_REQUEST_PARAMETERS,
    MAX_REQUEST_TEXT_LENGTH,
    MAX_REQUEST_TEXTS,
    MAX_STOP_LENGTH,
    MAX_STOP_TEXTS,
    MAX_TENSOR_ELEMENTS,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.gateway.protocols.http import HttpRequest
    from meshnode.types import Buffer, Scalar

Body = dict[str, Any]

_READ_HERE: Final = frozenset(
    {"model", "messages", "prompt", "input", "stream", "stream_options", "n", "best_of", "stop"}
    | {"max_tokens", "max_completion_tokens", "echo", "suffix", "encoding_format", "dimensions"}
    | {
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "functions",
        "function_call",
        "logprobs",
        "top_logprobs",
    }
    | {"response_format", "modalities", "audio", "prediction", "logit_bias", "web_search_options"}
    | {"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"}
)
_REFUSED: Final = {
    "tools": "tools are not supported: models here answer in text",
    "functions": "functions are not supported: models here answer in text",
    "audio": "audio is not supported: models here answer in text",
    "prediction": "predicted outputs are not supported",
    "web_search_options": "searching the web is not supported",
    "logprobs": "log probabilities are not supported",
    "top_logprobs": "log probabilities are not supported",
    "logit_bias": "biases of single tokens are not supported",
    "suffix": "a suffix is not supported: models here continue a text at its end",
}
_RANGES: Final = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
}


_WHOLE: Final = frozenset({"seed", "top_k"})
_WITHOUT_TOOLS: Final = frozenset({"none", "auto"})
_TEXT_PARTS: Final = ("text", "refusal")
_MEMBERS_OF_TOOLS: Final = ("tool_choice", "function_call")


class Wish(NamedTuple):
    """What is asked of a text besides the text.

    Attributes:
        parameters: For the model.
        stop: Texts at which the answer ends; they are no part of it.
        max_tokens: How long it may get; None leaves it to the model.
        stream: Whether it is sent as it is made.
        include_usage: Whether a stream ends with what was used.
        choices: How many answers.
    """

    parameters: Mapping[str, Scalar]
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    stream: bool = False
    include_usage: bool = False
    choices: int = 1


def read_body(http: HttpRequest) -> Body:
    """Return the JSON object of a request; members that are null are left out.

    Raises:
        InvalidRequest: if it is none.
        TooLarge: if it unpacks to more than a body may have.
    """
    body: Buffer = http.body
    coding = http.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        body = decompress(body, coding, MAX_BODY_BYTES)
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidRequest("the body must be a JSON object")
    return {name: value for name, value in document.items() if value is not None}


def model_of(body: Body) -> tuple[str, int | None]:
    """Return the model that a request names, and the version if it says `NAME@VERSION`.

    Raises:
        WrongMember: if it names none.
        ModelNotFound: if no model can have such a name.
    """
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise WrongMember(
            "you must provide a model: the name of one that GET /v1/models lists", "model"
        )
    name, at, version = name.partition("@")
    if len(name) > MAX_MODEL_NAME_LENGTH:  # it may be as long as a body: say only how it begins
        raise ModelNotFound(f"no node of this mesh has a model {name[:MAX_MODEL_NAME_LENGTH]!r}...")
    if not at:
        return name, None
    if not version.isascii() or not version.isdigit() or len(version) > 18:
        raise WrongMember(f"{version[:40]!r} is not a model version; write NAME@NUMBER", "model")
    return name, int(version)


def read_wish(body: Body) -> Wish:
    """Return what is asked of a chat or a completion besides its text.

    Raises:
        WrongMember: naming the member.
    """
    _refuse(body)
    stream = _flag(body, "stream")
    options = body.get("stream_options", {})
    if not isinstance(options, dict) or (options and not stream):
        raise WrongMember("stream_options is an object, and only for streams", "stream_options")
    include_usage = _flag(options, "include_usage", "stream_options.include_usage")
    choices = _whole(body, "n", 1, MAX_REQUEST_CHOICES) or 1
    if choices > 1 and stream:
        raise WrongMember("a stream has one choice: leave n out", "n", unsupported=True)
    if body.get("best_of", choices) != choices:
        raise WrongMember(
            "best_of is not supported: all choices are answered", "best_of", unsupported=True
        )
    newer = _whole(body, "max_completion_tokens", 1)
    max_tokens = _whole(body, "max_tokens", 0) if newer is None else newer
    parameters = _parameters(body)
    if max_tokens is not None:
        parameters["max_tokens"] = max_tokens
    return Wish(parameters, _stop(body), max_tokens, stream, include_usage, choices)


def messages_of(body: Body) -> list[Message]:
    """Return the messages of a conversation.

    Raises:
        WrongMember: if there are none, or one is not text.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise WrongMember("messages must be a list of at least one message", "messages")
    if len(messages) > MAX_REQUEST_MESSAGES:
        raise WrongMember(f"a conversation has at most {MAX_REQUEST_MESSAGES} messages", "messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def texts_of(body: Body, member: str) -> list[str] | list[list[int]]:
    """Return the texts, or the texts as token numbers, of `prompt` or `input`.

    Raises:
        WrongMember: if it is neither.
    """
    value = body.get(member)
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise WrongMember(
            f"{member} must be a text, a list of texts, a list of tokens, or a list of lists of tokens",
            member,
        )
    if all(type(each) is int for each in value):
        value = [value]
    if len(value) > MAX_REQUEST_TEXTS:
        raise WrongMember(
            f"{member} has at most {MAX_REQUEST_TEXTS} texts, not {len(value)}", member
        )
    if all(isinstance(each, str) for each in value):
        return value
    for each in value:
        if not isinstance(each, list) or not each or not all(type(token) is int for token in each):
            raise WrongMember(f"{member} mixes texts and tokens, or has an empty list", member)
    if sum(map(len, value)) > MAX_TENSOR_ELEMENTS:
        raise WrongMember(f"{member} has more than {MAX_TENSOR_ELEMENTS} tokens", member)
    return value


def dimensions_of(body: Body) -> int | None:
    """Return how many numbers a vector is to have; None for all."""
    return _whole(body, "dimensions", 1)


def wants_base64(body: Body) -> bool:
    """Whether vectors are to be base64 of little-endian FP32, which OpenAI's own client asks for.

    Raises:
        WrongMember: for another format.
    """
    form = body.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise WrongMember("encoding_format is float or base64", "encoding_format")
    return bool(form == "base64")


def echoes(body: Body) -> bool:
    """Whether a completion is to begin with its prompt."""
    return _flag(body, "echo")


def embedding_parameters(body: Body) -> dict[str, Scalar]:
    """Return what else a request for vectors says to the model."""
    return _parameters(body)


def _message(message: object, place: str) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise WrongMember(f"{place} must be an object with a role and a content", place)
    if message.get("tool_calls") or message["role"] in ("tool", "function"):
        raise WrongMember(f"{place}: {_REFUSED['tools']}", place, unsupported=True)
    content = message.get("content")
    if content is None:
        content = message.get("refusal")  # as a model's own message says that it did not answer
    if isinstance(content, list):
        content = "".join(_part(part, f"{place}.content[{i}]") for i, part in enumerate(content))
    if not isinstance(content, str):
        raise WrongMember(f"{place}.content must be a text, or a list of texts", f"{place}.content")
    return Message(message["role"], content)


def _part(part: object, place: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind in _TEXT_PARTS and isinstance(part.get(kind), str):
        text: str = part[kind]
        return text
    if isinstance(kind, str) and kind not in _TEXT_PARTS:
        raise WrongMember(
            f"{place} is of type {kind[:40]!r}; models here read text", place, unsupported=True
        )
    raise WrongMember(f"{place} must be an object with the type text and a text", place)


def _refuse(body: Body) -> None:
    for name, sentence in _REFUSED.items():
        if body.get(name) and not (name == "tools" and body.get("tool_choice") == "none"):
            raise WrongMember(sentence, name, unsupported=True)
    if body.get("logprobs", False) is not False:  # 0 asks for that of the chosen token
        raise WrongMember(_REFUSED["logprobs"], "logprobs", unsupported=True)
    for name in _MEMBERS_OF_TOOLS:
        wanted = body.get(name, "none")
        if not isinstance(wanted, str) or wanted not in _WITHOUT_TOOLS:
            raise WrongMember(_REFUSED["tools"], name, unsupported=True)
    form = body.get("response_format", {"type": "text"})
    if not isinstance(form, dict) or form.get("type") != "text":
        raise WrongMember(
            "response_format is text: what a model answers is not forced into a form",
            "response_format",
            unsupported=True,
        )
    if body.get("modalities", ["text"]) != ["text"]:
        raise WrongMember("models here answer in text", "modalities", unsupported=True)


def _stop(body: Body) -> tuple[str, ...]:
    value = body.get("stop", [])
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(each, str) for each in stops):
        raise WrongMember("stop is a text, or a list of texts", "stop")
    if len(stops) > MAX_STOP_TEXTS or any(len(each) > MAX_STOP_LENGTH for each in stops):
        raise WrongMember(
            f"stop has at most {MAX_STOP_TEXTS} texts of at most {MAX_STOP_LENGTH} characters",
            "stop",
        )
    return tuple(each for each in stops if each)


def _parameters(body: Body) -> dict[str, Scalar]:
    for name, (low, high) in _RANGES.items():
        value = body.get(name, low)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            raise WrongMember(f"{name} must be a number from {low:g} to {high:g}", name)
    found: dict[str, Scalar] = {}
    for name, value in body.items():
        if name in _READ_HERE:
            continue
        if not isinstance(value, str | int | float | bool):
            raise WrongMember(
                f"{name[:60]!r} is not known here, and a model's parameter is a text, a number, true or false",
                name,
                unsupported=True,
            )
        if isinstance(value, int) and not _is_64_bits(value):
            raise WrongMember(f"{name[:60]!r} must be a number of 64 bits", name)
        if name in _WHOLE and type(value) is not int:
            raise WrongMember(f"{name} must be a whole number, not {_shown(value)}", name)
        found[name] = value
    characters = sum(len(name) + len(str(value)) for name, value in found.items())
    if len(found) > MAX_REQUEST_PARAMETERS or characters > MAX_REQUEST_TEXT_LENGTH:
        raise InvalidRequest(
            f"a request has at most {MAX_REQUEST_PARAMETERS} parameters of {MAX_REQUEST_TEXT_LENGTH} characters"
        )
    return found


def _flag(body: Body, name: str, member: str = "") -> bool:
    value = body.get(name)
    if value is None:
        return False
    if type(value) is not bool:
        raise WrongMember(f"{member or name} must be true or false", member or name)
    return value


def _whole(body: Body, name: str, low: int, high: int = 2**31 - 1) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or not low <= value <= high:
        raise WrongMember(
            f"{name} must be a whole number from {low} to {high}, not {_shown(value)}", name
        )
    return value


def _shown(value: object) -> str:
    if type(value) is int and not _is_64_bits(value):
        return "one of more than 64 bits"
    return json.dumps(value)[:40] if isinstance(value, str | int | float) else "that"


def _is_64_bits(value: int) -> bool:
    return -(2**63) <= value < 2**63
