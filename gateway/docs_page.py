"""`/docs` and `/openapi.json`: the API for people and for programs that read descriptions.

The page is this node's own: it loads nothing from elsewhere, so it works without internet, and a strict
Content-Security-Policy lets no other code run in it and no other page frame it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshnode import __version__
from meshnode.gateway.matching import RouteSet, get
from meshnode.gateway.openapi import describe
from meshnode.gateway.operations import Operation
from meshnode.gateway.protocols.http import HttpResponse, json_response
from meshnode.limits import MAX_DESCRIBED_MODELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.gateway.protocols.status import ErrorForm
    from meshnode.models.manifest import Manifest
    from meshnode.routing.table import ReplicaTable

_FOLDER: Final = Path(__file__).parent / "page"
_FILES: Final = {
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs/page.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/docs/page.css": ("docs.css", "text/css; charset=utf-8"),
}
OPEN_PATHS: Final = frozenset({*_FILES, "/docs/"})
"""What needs no API key, since browsers cannot send one: the same files on every node of every mesh. The description
of this mesh, which the page fetches with the key that its reader types, does need one."""

PAGE_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""Of everything that a browser shows as a page of this gateway: nothing foreign in it, nothing around it."""


class DocsPage:
    """Describes the API."""

    def __init__(
        self,
        operations: Callable[[], tuple[Operation, ...]],
        table: Callable[[], ReplicaTable],
        form_of: Callable[[str], ErrorForm],
    ) -> None:
        """Describe what these return at the moment."""
        self._operations = operations
        self._table = table
        self._form_of = form_of
        self._made_for: tuple[int, int] | None = None
        self._made = HttpResponse(200, {})

    def __repr__(self) -> str:
        return "<DocsPage>"

    def routes(self) -> RouteSet:
        """Return the routes."""
        fixed = {path: get(partial(_file, *found)) for path, found in _FILES.items()}
        fixed["/openapi.json"] = get(self._description)
        return RouteSet(fixed, {}, operations=_OPERATIONS)

    def _description(self) -> HttpResponse:
        table, operations = self._table(), self._operations()
        state = (table.revision, len(operations))
        if state != self._made_for:
            made = describe(operations, _newest(table), self._form_of, __version__)
            self._made, self._made_for = json_response(made), state
        return self._made


def _newest(table: ReplicaTable) -> list[Manifest]:
    newest: dict[str, Manifest] = {}
    for manifest in table.manifests():
        known = newest.get(manifest.model)
        if known is None or known.version < manifest.version:
            newest[manifest.model] = manifest
    return [newest[name] for name in sorted(newest)[:MAX_DESCRIBED_MODELS]]


def _file(name: str, media_type: str) -> HttpResponse:
    headers = {"Content-Type": media_type, **PAGE_HEADERS}
    return HttpResponse(200, headers, (_FOLDER / name).read_bytes())


_TAG = "About the API"
_OPERATIONS = (
    Operation(
        "GET", "/docs", "This API as a page; it needs no key", _TAG, media_types=("text/html",)
    ),
    Operation("GET", "/docs/page.js", "Its program", _TAG, media_types=("text/javascript",)),
    Operation("GET", "/docs/page.css", "Its looks", _TAG, media_types=("text/css",)),
    Operation("GET", "/openapi.json", "This API in OpenAPI 3.1", _TAG, answer={"type": "object"}),
)
