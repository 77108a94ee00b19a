"""JSON bodies of `/mesh/v1`, read as what a route takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from meshnode.errors import InvalidRequest

if TYPE_CHECKING:
    from meshnode.gateway.protocols.http import HttpRequest

_T = TypeVar("_T")


def decode_body(http: HttpRequest, kind: type[_T]) -> _T:
    """Read a JSON body, which may be empty where every field has a default.

    Raises:
        InvalidRequest: if it is something else; names the field.
    """
    try:
        return msgspec.json.decode(http.body or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not what {http.path} takes: {error}") from error
