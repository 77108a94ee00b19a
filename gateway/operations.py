"""What one method of one path does, said once, beside the route: the API's description is made of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from meshnode.types import Scope


class Operation(NamedTuple):
    """One operation of the HTTP API.

    Attributes:
        method: Upper case.
        path: As OpenAPI writes it: `/v2/models/{model}/infer`.
        summary: One line.
        tag: The group under which it is shown, such as `Open Inference Protocol`.
        scope: What its caller needs.
        body: The type (a msgspec Struct, or what `msgspec.json.schema` takes) or JSON schema of its JSON body;
            None without one.
        answer: The type or JSON schema of its JSON answer; None where it is not JSON.
        status: Of a successful answer.
        query: (name, description) of what may follow `?`; a name that ends in `*` must be there.
        media_types: Of the answer.
        body_types: Media types of the body.
        errors: Statuses that it may answer with besides those that every operation has (400, 401, 403, 404, 405,
            413, 429, 503).
        also: Other statuses with the same answer, such as 503 of what tells whether it is ready.
        infers: Whether a model runs for it: it may then be made a job (202), and answered from the cache.
        body_optional: Whether it may come without its body.
        headers: (name, description) of headers of its own; those that every operation of its kind heeds are not named.
        schema_path: A path that satisfies `path` in tests, with `{model}` filled in by the test; empty: made from it.
    """

    method: str
    path: str
    summary: str
    tag: str
    scope: Scope = Scope.INFER
    body: Any = None
    answer: Any = None
    status: int = 200
    query: tuple[tuple[str, str], ...] = ()
    media_types: tuple[str, ...] = ("application/json",)
    body_types: tuple[str, ...] = ("application/json",)
    errors: tuple[int, ...] = ()
    schema_path: str = ""
    also: tuple[int, ...] = ()
    infers: bool = False
    body_optional: bool = False
    headers: tuple[tuple[str, str], ...] = ()
