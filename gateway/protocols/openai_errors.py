"""Errors as OpenAI tells them: `{"error": {"message", "type", "param", "code"}}`.

| status | type | code | of |
|---|---|---|---|
| 400 | `invalid_request_error` | null, or `unsupported_parameter` | what the caller did wrong; `param` names the member |
| 401 | `authentication_error` | `invalid_api_key` | no key, or a wrong one |
| 403 | `permission_error` | null | a key without the scope, a foreign Host or Origin |
| 404 | `invalid_request_error` | `model_not_found` | no node has the model; `param` is `model` |
| 404, 405, 408 | `invalid_request_error` | null | |
| 409, 413, 422 | `invalid_request_error` | the mesh's own word | |
| 429 | `rate_limit_error` | `rate_limit_exceeded` | too many requests; all queues full |
| 503 | `service_unavailable_error` | the mesh's own word | no replica can answer now |
| 504 | `timeout_error` | `deadline_exceeded` | |
| 500 | `server_error` | the mesh's own word | |

OpenAI's clients try 408, 409, 429 and all from 500 on again, after what `Retry-After` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshnode.errors import DeadlineExceeded, InvalidRequest, ModelNotFound, Saturated
from meshnode.gateway.protocols.status import ErrorForm, status_of
from meshnode.limits import MAX_TOLD_MEMBER_LENGTH

if TYPE_CHECKING:
    from meshnode.errors import MeshError

_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
_CODES: Final = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
_OWN_WORDS_FROM: Final = 409  # our own words say more than OpenAI's, which has none for these


class WrongMember(InvalidRequest):
    """A member of a request is not what OpenAI's API or the model takes; `member` is its name.

    Changed: nothing; the model did not run.
    To do: correct or leave out that member; docs/protocols.md says which of OpenAI's there are.
    """

    def __init__(self, message: str, member: str, *, unsupported: bool = False) -> None:
        super().__init__(message)
        self.member = member[:MAX_TOLD_MEMBER_LENGTH]
        self.unsupported = unsupported


def _document(status: int, sentence: str, code: str) -> dict[str, dict[str, str | None]]:
    word = _CODES.get(status) or (code if status >= _OWN_WORDS_FROM else None)
    kind = _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": sentence, "type": kind, "param": None, "code": word}}


def _detailed(document: Any, error: MeshError) -> object:
    told = document["error"]
    if isinstance(error, ModelNotFound):
        told.update(param="model", code="model_not_found")
    elif isinstance(error, WrongMember):
        told["param"] = error.member
        if error.unsupported:
            told["code"] = "unsupported_parameter"
    return document


def _status(error: MeshError) -> int:
    if isinstance(error, Saturated):
        return 429
    if isinstance(error, DeadlineExceeded):
        return 504
    return status_of(error)


OPENAI: Final = ErrorForm(_document, _status, _detailed)
"""As the paths of OpenAI's API tell errors."""


def told(error: MeshError) -> object:
    """Return the document of an error that happens within a stream, where there is no status."""
    return _detailed(_document(_status(error), str(error), error.code), error)
