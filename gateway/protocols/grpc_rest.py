"""Open Inference Protocol over gRPC: all calls but inferences, as the REST requests that ask for the same.

What a REST path answers in JSON has the names of the protobuf fields, so each message is read from that
document. A call so needs no code of its own: the path's scopes, rules and errors are the call's.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote

from meshnode.errors import ModelNotFound
from meshnode.gateway.protocols.grpc_schema import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Document = Any
"""What JSON can be."""


class RestCall(NamedTuple):
    """A REST request: `body` is a JSON document, or None for none."""

    method: str
    path: str
    body: Document = None


class Translation(NamedTuple):
    """How a call is asked, and its answer told.

    Attributes:
        request: Name of the request's message.
        asked: Returns the REST request.
        reply: Name of the answer's message.
        told: Returns the fields of the answer, as JSON names and has them, from the document.
        otherwise: What the answer is where REST answers 404; None where that is an error of the call, too.
    """

    request: str
    asked: Callable[[Any], RestCall]
    reply: str
    told: Callable[[Document], Mapping[str, Any]]
    otherwise: Mapping[str, Any] | None = None


def _as_it_is(document: Document) -> Mapping[str, Any]:
    found: Mapping[str, Any] = document
    return found


def _nothing(_document: Document) -> Mapping[str, Any]:
    return {}


def _model(name: str, version: str = "", rest: str = "") -> str:
    _require_name(name)
    path = f"/v2/models/{quote(name, safe='')}"
    if version:
        path += f"/versions/{quote(version, safe='')}"
    return f"{path}/{rest}" if rest else path


def _statistics(message: Any) -> RestCall:
    if not message.name:
        return RestCall("GET", "/v2/models/stats")
    return RestCall("GET", _model(message.name, message.version, "stats"))


def _require_name(name: str) -> None:
    if not name:
        raise ModelNotFound("the call names no model")


def _repository(message: Any, verb: str) -> RestCall:
    _require_name(message.model_name)
    parameters = {name: _repository_value(each) for name, each in message.parameters.items()}
    path = f"/v2/repository/models/{quote(message.model_name, safe='')}/{verb}"
    return RestCall("POST", path, {"parameters": parameters} if parameters else {})


def _repository_value(parameter: Any) -> Any:
    chosen = parameter.WhichOneof("parameter_choice")
    if chosen is None:
        return None
    value = getattr(parameter, chosen)
    return base64.b64encode(value).decode() if chosen == "bytes_param" else value


def _trace_setting(message: Any) -> RestCall:
    path = (
        _model(message.model_name, rest="trace/setting")
        if message.model_name
        else "/v2/trace/setting"
    )
    if not message.settings:
        return RestCall("GET", path)
    settings: dict[str, Any] = {}
    for name, setting in message.settings.items():
        values = list(setting.value)
        settings[name] = None if not values else values if name == "trace_level" else values[0]
    return RestCall("POST", path, settings)


def _trace_settings(document: Document) -> Mapping[str, Any]:
    return {
        "settings": {
            name: {"value": [str(each) for each in (value if isinstance(value, list) else [value])]}
            for name, value in document.items()
        }
    }


def _logging(message: Any) -> RestCall:
    if not message.settings:
        return RestCall("GET", "/v2/logging")
    settings = {}
    for name, setting in message.settings.items():
        chosen = setting.WhichOneof("parameter_choice")
        settings[name] = None if chosen is None else getattr(setting, chosen)
    return RestCall("POST", "/v2/logging", settings)


def _log_settings(document: Document) -> Mapping[str, Any]:
    return {"settings": {name: {_log_field(value): value} for name, value in document.items()}}


def _log_field(value: Any) -> str:
    if isinstance(value, bool):
        return "bool_param"
    return "uint32_param" if isinstance(value, int) else "string_param"


def _get(
    message_name: str, path: str, told: Callable[[Document], Mapping[str, Any]]
) -> Translation:
    return Translation(
        f"{message_name}Request", lambda _: RestCall("GET", path), f"{message_name}Response", told
    )


def _of_model(
    message_name: str,
    rest: str,
    told: Callable[[Document], Mapping[str, Any]],
    otherwise: Mapping[str, Any] | None = None,
) -> Translation:
    return Translation(
        f"{message_name}Request",
        lambda message: RestCall("GET", _model(message.name, message.version, rest)),
        f"{message_name}Response",
        told,
        otherwise,
    )


TRANSLATIONS: Final[Mapping[str, Translation]] = {
    "ServerLive": _get("ServerLive", "/v2/health/live", _as_it_is),
    "ServerReady": _get("ServerReady", "/v2/health/ready", _as_it_is),
    "ServerMetadata": _get("ServerMetadata", "/v2", _as_it_is),
    # Triton calls a model that it does not know not ready.
    "ModelReady": _of_model(
        "ModelReady", "ready", lambda document: {"ready": document["ready"]}, {"ready": False}
    ),
    "ModelMetadata": _of_model("ModelMetadata", "", _as_it_is),
    "ModelConfig": _of_model("ModelConfig", "config", lambda document: {"config": document}),
    "ModelStatistics": Translation(
        "ModelStatisticsRequest", _statistics, "ModelStatisticsResponse", _as_it_is
    ),
    "RepositoryIndex": Translation(
        "RepositoryIndexRequest",
        lambda message: RestCall("POST", "/v2/repository/index", {"ready": message.ready}),
        "RepositoryIndexResponse",
        lambda document: {"models": document},
    ),
    "RepositoryModelLoad": Translation(
        "RepositoryModelLoadRequest",
        lambda message: _repository(message, "load"),
        "RepositoryModelLoadResponse",
        _nothing,
    ),
    "RepositoryModelUnload": Translation(
        "RepositoryModelUnloadRequest",
        lambda message: _repository(message, "unload"),
        "RepositoryModelUnloadResponse",
        _nothing,
    ),
    "TraceSetting": Translation(
        "TraceSettingRequest", _trace_setting, "TraceSettingResponse", _trace_settings
    ),
    "LogSettings": Translation(
        "LogSettingsRequest", _logging, "LogSettingsResponse", _log_settings
    ),
}
"""By the name of the call."""


def encode_reply(translation: Translation, fields: Mapping[str, Any]) -> bytes:
    """Return the encoded answer of a call that has these fields; what the message does not know is left out."""
    from google.protobuf.json_format import ParseDict

    reply = getattr(messages(), translation.reply)()
    ParseDict(fields, reply, ignore_unknown_fields=True)
    encoded: bytes = reply.SerializeToString()
    return encoded
