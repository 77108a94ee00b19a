"""Triton's model repository extension: the bodies of index, load and unload."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec

from meshnode.errors import InvalidRequest
from meshnode.gateway.protocols.content_coding import decompress
from meshnode.limits import MAX_BODY_BYTES, MAX_DEPLOYMENT_REPLICAS, MAX_MODEL_FILES

if TYPE_CHECKING:
    from meshnode.gateway.protocols.http import HttpRequest

_FILE: Final = "file:"
_T = TypeVar("_T")


class _Index(msgspec.Struct):
    ready: bool = False


class _Loading(msgspec.Struct):
    parameters: Annotated[dict[str, Any], msgspec.Meta(max_length=MAX_MODEL_FILES + 8)] = {}


class Loading(msgspec.Struct, frozen=True):
    """What a request to load says.

    Attributes:
        config: JSON of a `ModelConfig`, or None.
        files: By `VERSION/FILE`.
        replicas: On how many nodes; None if it does not say.
    """

    config: str | None = None
    files: dict[str, bytes] = {}
    replicas: int | None = None


def decode_index(http: HttpRequest) -> bool:
    """Return whether an index shall have ready models only; the body may be empty."""
    return _decoded(http, _Index).ready


def decode_load(http: HttpRequest) -> Loading:
    """Return what `POST …/load` asks for.

    Raises:
        InvalidRequest: naming the parameter that is wrong.
    """
    return loading(_decoded(http, _Loading).parameters)


def loading(parameters: dict[str, Any]) -> Loading:
    """Return what the parameters of a request to load say; those of gRPC have files as bytes.

    Raises:
        InvalidRequest: naming the parameter that is wrong.
    """
    config = parameters.get("config")
    if config is not None and not isinstance(config, str):
        raise InvalidRequest("parameter 'config' must be a text: the configuration as JSON")
    replicas = parameters.get("replicas")
    if replicas is not None and not (
        type(replicas) is int and 1 <= replicas <= MAX_DEPLOYMENT_REPLICAS
    ):
        raise InvalidRequest(
            f"parameter 'replicas' must be a number of nodes, 1 to {MAX_DEPLOYMENT_REPLICAS}"
        )
    files = {
        name.removeprefix(_FILE): _content(name, value)
        for name, value in parameters.items()
        if name.startswith(_FILE)
    }
    unknown = next(
        (name for name in parameters if name not in ("config", "replicas") and not name.startswith(_FILE)),
        None,
    )  # fmt: skip
    if unknown is not None:
        raise InvalidRequest(
            f"parameter {unknown[:40]!r} is not known; to load a model takes 'config', 'replicas' and "
            "'file:VERSION/NAME'"
        )
    if files and config is None:
        raise InvalidRequest(
            "a model that is loaded from files of the request also needs the parameter 'config'"
        )
    return Loading(config, files, replicas)


def decode_unload(http: HttpRequest) -> bool:
    """Return whether a request to unload a model means those that it depends on, too.

    Raises:
        InvalidRequest: if `unload_dependents` is neither true nor false.
    """
    dependents = _decoded(http, _Loading).parameters.get("unload_dependents", False)
    if type(dependents) is not bool:
        raise InvalidRequest("parameter 'unload_dependents' must be true or false")
    return dependents


def _content(name: str, value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value if isinstance(value, str) else "*", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            f"parameter {name[:80]!r} must be a file's content in base64"
        ) from None


def _decoded(http: HttpRequest, kind: type[_T]) -> _T:
    body = http.body
    if (coding := http.headers.get("content-encoding")) and coding.strip().lower() != "identity":
        body = decompress(body, coding, MAX_BODY_BYTES)
    if not memoryview(body).nbytes:
        return kind()
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not what {http.path} takes: {error}") from error
