"""Which model answers an HTTP path: the routes that models bring, found by method and path.

A path is written as FastAPI writes it: `/items/{item_id}` takes one segment for the parameter,
`/files/{name:path}` any number. The model itself reads the parameters: here only who answers is decided.
Of several that fit, the one with fewer parameters wins, then the model that comes first by name, so that
every gateway decides alike. The mesh's own paths are looked up before and always win.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from meshnode.errors import ModelError
from meshnode.limits import MAX_ROUTE_LENGTH, MAX_ROUTES, MAX_TABLE_ROUTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meshnode.models.execution import Route

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PARAMETER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?::([a-z]+))?\}")
_PATTERNS: Final = {
    "": "[^/]+", "str": "[^/]+", "path": ".*", "int": "[0-9]+", "float": r"[0-9]+(?:\.[0-9]+)?",
    "uuid": "[0-9a-fA-F-]{36}",
}  # fmt: skip
OWN_PATHS: Final = (
    "/v2", "/v1", "/mesh", "/healthz", "/readyz", "/metrics", "/inference", "/predictions", "/models", "/ping", "/explanations",
    "/docs", "/openapi.json",
)  # fmt: skip
"""Beginnings of paths that the mesh answers itself, now or in a later version."""


class Owner(NamedTuple):
    """What answers a route."""

    model: str
    path: str


@dataclass(frozen=True, slots=True)
class _Pattern:
    expression: re.Pattern[str]
    parameters: int
    owner: Owner
    methods: frozenset[str]


class RouteTable:
    """The routes of all models, as they were when it was made."""

    def __init__(self, routes: Mapping[str, Sequence[Route]]) -> None:
        """Take the routes of each model, but for those that `check_route` refuses or that are too many."""
        found: dict[Owner, set[str]] = {}
        for model in sorted(routes):
            for route in filter(_is_sound, routes[model]):
                found.setdefault(Owner(model, route.path), set()).add(route.method.upper())
        self._fixed: dict[str, list[_Pattern]] = {}
        self._patterns: list[_Pattern] = []
        for owner, methods in found.items():
            expression, parameters = _compiled(owner.path)
            pattern = _Pattern(expression, parameters, owner, frozenset(methods))
            if parameters:
                self._patterns.append(pattern)
            else:
                self._fixed.setdefault(owner.path, []).append(pattern)
            if len(self._fixed) + len(self._patterns) >= MAX_TABLE_ROUTES:
                break
        self._patterns.sort(key=lambda each: (each.parameters, each.owner))

    def __repr__(self) -> str:
        return f"<RouteTable of {len(self._fixed)} paths and {len(self._patterns)} patterns>"

    def find(self, method: str, path: str) -> tuple[Owner | None, frozenset[str]]:
        """Return who answers, and the methods that the path has.

        Args:
            method: Upper case; HEAD is answered by whoever answers GET.
            path: Decoded, without the query.

        Returns:
            None and no methods for a path that no model has; None and its methods for one that has others.
        """
        asked = "GET" if method == "HEAD" else method
        allowed: set[str] = set()
        for pattern in (*self._fixed.get(path, ()), *self._matching(path)):
            if method in pattern.methods or asked in pattern.methods:
                return pattern.owner, pattern.methods
            allowed |= pattern.methods
        return None, frozenset(allowed)

    def _matching(self, path: str) -> Iterable[_Pattern]:
        return (each for each in self._patterns if each.expression.fullmatch(path))


def check_routes(
    model: str, routes: Sequence[Route], others: Mapping[str, Sequence[Route]]
) -> None:
    """Check the routes that a model brings.

    Args:
        model: Its name.
        routes: What it brings.
        others: The routes of the other models that are known.

    Raises:
        ModelError: if one is malformed, or another model has it.
    """
    if len(routes) > MAX_ROUTES:
        raise ModelError(f"model {model!r} has {len(routes)} HTTP routes; at most {MAX_ROUTES}")
    for route in routes:
        check_route(route)
    taken = {
        (each.method, _shape(each.path)): other
        for other, theirs in others.items()
        if other != model
        for each in theirs
    }
    unreachable = hidden_routes(routes)
    for route in routes:
        if route in unreachable:
            continue  # neither model is ever asked there
        other = taken.get((route.method, _shape(route.path)))
        if other is not None:
            raise ModelError(
                f"models {model!r} and {other!r} both answer {route.method} {route.path}; give one of "
                "them another path"
            )


def check_route(route: Route) -> Route:
    """Return a route that can be served.

    Raises:
        ModelError: if its method or path is malformed.
    """
    path = route.path
    if route.method not in _METHODS:
        raise ModelError(f"{route.method[:20]!r} is not a method that a route can have")
    if not path.startswith("/") or len(path) > MAX_ROUTE_LENGTH or not path.isprintable():
        raise ModelError(
            f"{path[:60]!r} is not a path that a route can have: it begins with '/' and has at most "
            f"{MAX_ROUTE_LENGTH} characters"
        )
    rest = _PARAMETER.sub("", path)
    kinds = [found[2] or "" for found in _PARAMETER.finditer(path)]
    if "{" in rest or "}" in rest or not set(kinds) <= set(_PATTERNS):
        raise ModelError(f"the parameters of the route {path[:60]!r} cannot be read")
    # Two of them side by side could make finding a path take for ever.
    if kinds.count("path") > 1 or any(part.count("{") > 1 for part in path.split("/")):
        raise ModelError(
            f"the route {path[:60]!r} has two parameters in one segment, or two of kind path"
        )
    return route


def _is_sound(route: Route) -> bool:
    try:
        check_route(route)
    except ModelError:
        return False
    return True


def hidden_routes(routes: Sequence[Route]) -> tuple[Route, ...]:
    """Return those that no request reaches, because the mesh answers below such paths itself."""
    return tuple(route for route in routes if is_own_path(route.path))


def is_own_path(path: str) -> bool:
    """Whether the mesh itself answers at a path, or may in a later version."""
    return any(path == own or path.startswith(f"{own}/") for own in OWN_PATHS)


def _shape(path: str) -> str:
    """Return a path in which the names of parameters do not count."""
    return _PARAMETER.sub(lambda found: f"{{:{found[2] or 'str'}}}", path)


def _compiled(path: str) -> tuple[re.Pattern[str], int]:
    expression = ""
    end = parameters = 0
    for found in _PARAMETER.finditer(path):
        expression += re.escape(path[end : found.start()]) + _PATTERNS.get(found[2] or "", "[^/]+")
        end = found.end()
        parameters += 1
    return re.compile(expression + re.escape(path[end:])), parameters
