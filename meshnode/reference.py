"""What the documentation and `meshnode config show --limits` list, read from where it is decided.

A limit is defined in `meshnode.limits` and nowhere described a second time: its section is the
comment above it and its reason the docstring below, so both are read from the module's source. An
error tells about itself in its docstring (`meshnode.errors` says in which form), and its HTTP status
is that of the gateway.
"""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshnode import limits as _limits
from meshnode import metric_catalogue as _catalogue
from meshnode.errors import MeshError, PeerError, UsageError

# For their errors, which are defined beside what raises them.
from meshnode.gateway.protocols import openai_errors as _openai_errors  # noqa: F401
from meshnode.gateway.protocols.status import status_of_kind
from meshnode.metric_catalogue import MetricSpec
from meshnode.trust import datagrams as _datagrams  # noqa: F401
from meshnode.trust import reasons as _reasons  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNITS: Final = {
    "_BYTES_PER_S": "bytes per second",
    "_BYTES": "bytes",
    "_MS": "milliseconds",
    "_S": "seconds",
    "_LENGTH": "characters",
    "_PIXELS": "pixels",
    "_C": "°C",
}
"""Units by the end of a limit's name; the others are counts."""

_STEPS: Final = {
    "bytes": ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes")),
    "bytes per second": ((2**20, "MiB/s"), (2**10, "KiB/s"), (1, "bytes/s")),
    "milliseconds": ((3_600_000, "h"), (1, "ms")),
    "seconds": ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")),
}
"""What a unit is gathered into, the largest first; a value is shown in the first that divides it."""

_POWERS: Final = {
    2**bits + less: f"2^{bits}{less or ''}" for bits in range(31, 65) for less in (0, -1)
}
"""Bounds of numbers in a computer, which nobody reads digit by digit."""

_SECTION: Final = re.compile(r"# (\S.*)")
_STORY: Final = re.compile(
    r"(?P<when>.*?)\n\s*Changed: (?P<changed>.*?)\n\s*To do: (?P<to_do>.*?)(\n\s*\n.*)?", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class LimitRow:
    """One limit.

    Attributes:
        section: What it belongs to: "HTTP gateway", "Links", ...
        name: Its name in `meshnode.limits`.
        value: Its value, in `unit`.
        unit: "bytes", "seconds", ...; "count" where things are counted.
        reason: What is limited, and why this number.
    """

    section: str
    name: str
    value: float
    unit: str
    reason: str

    @property
    def readable(self) -> str:
        """The value with its unit, as a person writes it: 64 MiB, 30 d, 4,096."""
        return _readable(self.value, self.unit)


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One class of errors.

    Attributes:
        name: Of the class.
        code: The stable word for programs; a special case of another error has that one's.
        family: "usage" (the caller's fault), "peer" (others'), or "internal" (a defect).
        retryable: Whether the gateway sends the request to another replica by itself.
        http_status: What the gateway answers with.
        exit_code: What the command line exits with.
        when: When it happens.
        changed: What is different after it.
        to_do: What helps.
    """

    name: str
    code: str
    family: str
    retryable: bool
    http_status: int
    exit_code: int
    when: str
    changed: str
    to_do: str


def limits() -> list[LimitRow]:
    """Return all limits in the order of their module, section by section.

    Raises:
        OSError: if the source of `meshnode.limits` is not installed with it.
    """
    return list(_limit_rows(inspect.getsource(_limits)))


def errors() -> list[ErrorRow]:
    """Return all errors, family by family, each parent before its special cases."""
    return [_error_row(error) for error in _descendants(MeshError)]


def metrics() -> list[tuple[str, list[MetricSpec]]]:
    """Return all metrics by section, in the order of `meshnode.metric_catalogue`.

    Raises:
        OSError: if the source of that module is not installed with it.
    """
    source = inspect.getsource(_catalogue)
    sections = _sections(source)
    found: dict[str, list[MetricSpec]] = {title: [] for title in sections.values()}
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            value = getattr(_catalogue, node.target.id)
            if isinstance(value, MetricSpec):
                above = max(line for line in sections if line < node.lineno)
                found[sections[above]].append(value)
    return list(found.items())


def _limit_rows(source: str) -> Iterator[LimitRow]:
    sections = _sections(source)
    body = ast.parse(source).body
    for node, following in zip(body, [*body[1:], None], strict=True):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        above = [line for line in sections if line < node.lineno]
        if not above:
            continue  # KIB and MIB, which the limits are written with.
        name = node.target.id
        value = getattr(_limits, name)
        yield LimitRow(sections[above[-1]], name, value, _unit(name), _text(following))


def _sections(source: str) -> dict[int, str]:
    """Return the comments that stand alone at the left margin, by line number."""
    return {
        number: match[1]
        for number, line in enumerate(source.splitlines(), 1)
        if (match := _SECTION.fullmatch(line))
    }


def _text(node: ast.stmt | None) -> str:
    match node:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return " ".join(text.split())
    return ""


def _unit(name: str) -> str:
    return next((unit for suffix, unit in _UNITS.items() if name.endswith(suffix)), "count")


def _readable(value: float, unit: str) -> str:
    steps = _STEPS.get(unit, ((1, "" if unit == "count" else unit),))
    size, name = next(
        (step for step in steps if value >= step[0] and value % step[0] == 0), steps[-1]
    )
    number = _POWERS.get(int(value)) if size == 1 else None
    return f"{number or f'{value / size:,.15g}'} {name}".strip()


def _descendants(error: type[MeshError]) -> Iterator[type[MeshError]]:
    """Yield an error and its special cases, those of `meshnode.errors` first."""
    yield error
    ours = [child for child in error.__subclasses__() if child.__module__.startswith("meshnode.")]
    elsewhere = [child for child in ours if child.__module__ != MeshError.__module__]
    for child in ours:
        if child not in elsewhere:
            yield from _descendants(child)
    for child in sorted(elsewhere, key=lambda child: child.__name__):
        yield from _descendants(child)


def _error_row(error: type[MeshError]) -> ErrorRow:
    text = inspect.cleandoc(error.__doc__ or "")
    story = _STORY.fullmatch(text)
    when, changed, to_do = (
        (" ".join(story[part].split()) for part in ("when", "changed", "to_do"))
        if story
        else (" ".join(text.split()), "", "")
    )
    return ErrorRow(
        name=error.__name__,
        code=error.code,
        family=_family(error),
        retryable=error.retryable,
        http_status=status_of_kind(error),
        exit_code=error.exit_code,
        when=when,
        changed=changed,
        to_do=to_do,
    )


def _family(error: type[MeshError]) -> str:
    if issubclass(error, UsageError):
        return "usage"
    return "peer" if issubclass(error, PeerError) else "internal"
