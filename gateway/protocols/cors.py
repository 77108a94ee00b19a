"""Cross-origin resource sharing (the Fetch standard, 3.2): which pages of other origins may use the gateway.

None, unless its owner names them (`--cors-origin`). A browser asks first (`OPTIONS` with
`Access-Control-Request-Method`), without the page's API key; that is answered here, and says nothing that the
page could not guess. The request that follows is treated like any other: `--cors-origin` opens no route that
its caller's key does not open.

`*` lets the pages of every origin ask. Such pages need an API key even on the machine itself, where programs
need none: else any page that its owner happens to visit could use the mesh.

Credentials in the browser's sense (cookies) do not exist here, so `Access-Control-Allow-Credentials` is never sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.gateway.protocols.http import HttpResponse
from meshnode.limits import CORS_PREFLIGHT_AGE_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ANY: Final = "*"
"""The origin that stands for all."""

_METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE"
_EXPOSED: Final = ", ".join(
    (
        *(
            "X-Request-Id",
            "Mesh-Route",
            "Mesh-Error",
            "Mesh-Cache",
            "Age",
            "Retry-After",
            "Location",
        ),
        *("Preference-Applied", "Idempotent-Replayed", "Inference-Header-Content-Length"),
    )
)


class Cors:
    """Answers for the origins that one gateway's owner named."""

    def __init__(self, origins: Iterable[str] = ()) -> None:
        """Let the pages of these origins ask: `https://app.example.org`, or `*`."""
        self._origins = frozenset(origin.lower() for origin in origins)
        self._all = ANY in self._origins

    def __repr__(self) -> str:
        return f"<Cors {', '.join(sorted(self._origins)) or 'closed'}>"

    @property
    def is_open(self) -> bool:
        """Whether any page of another origin may ask."""
        return bool(self._origins)

    def allows(self, origin: str) -> bool:
        """Whether pages of an origin may ask."""
        return self._all or origin.lower() in self._origins

    def names(self, origin: str) -> bool:
        """Whether the owner named this very origin: its pages are trusted like programs."""
        return origin.lower() in self._origins

    def headers(self, origin: str) -> Mapping[str, str]:
        """Return what an answer needs so that a page of this origin may read it; nothing if it may not."""
        if not self.allows(origin) or not origin.isprintable():
            return {}
        return {
            "Access-Control-Allow-Origin": ANY if self._all and not self.names(origin) else origin,
            "Access-Control-Expose-Headers": _EXPOSED,
            "Vary": "Origin",
        }

    def shared(self, headers: Mapping[str, str], origin: str | None) -> Mapping[str, str]:
        """Return an answer's headers with those of CORS.

        Args:
            headers: The answer's own.
            origin: Of the page that asks; None if none does.
        """
        own = {name: value for name, value in headers.items() if name.lower() != "vary"}
        varies = [value for name, value in headers.items() if name.lower() == "vary"]
        extra = {} if origin is None else self.headers(origin)
        return {**own, **extra, "Vary": ", ".join([*varies, "Origin"])}

    def preflight(self, origin: str, asked: Mapping[str, str]) -> HttpResponse | None:
        """Return the answer to a browser that asks whether a page may ask; None if this is no such question.

        Args:
            origin: The page's.
            asked: The request's headers; lookups ignore case, or all keys are lower case.
        """
        if "access-control-request-method" not in asked or not self.allows(origin):
            return None
        headers = {
            **self.headers(origin),
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Max-Age": str(CORS_PREFLIGHT_AGE_S),
            "Vary": "Origin, Access-Control-Request-Headers",
        }
        wanted = asked.get("access-control-request-headers", "")
        if wanted and wanted.isprintable() and wanted.isascii():
            headers["Access-Control-Allow-Headers"] = wanted
        if asked.get("access-control-request-private-network", "").lower() == "true":
            headers["Access-Control-Allow-Private-Network"] = "true"
        return HttpResponse(200, headers)
