"""HTML and SVG as values: an element escapes what it is given, so nothing is ever pasted in as it is."""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_VOID: Final = frozenset({"br", "hr", "img", "input", "link", "meta"})


class Markup(str):
    """Text that is markup already; every other `str` is escaped when it is put inside an element."""

    __slots__ = ()


def number(value: float, digits: int = 1) -> str:
    """Return a coordinate as short as it can be."""
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def element(name: str, /, *inside: str, **attributes: object) -> Markup:
    """Return one element.

    Args:
        name: Its tag.
        inside: Its content; what is not `Markup` is escaped.
        attributes: Its attributes: None leaves one out, a trailing underscore is dropped and others
            become hyphens (`class_`, `stroke_width`), numbers are shortened.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None:
            continue
        text = number(value) if isinstance(value, int | float) else str(value)
        parts.append(f'{key.rstrip("_").replace("_", "-")}="{html.escape(text)}"')
    opening = f"<{' '.join(parts)}>"
    if name in _VOID:
        return Markup(opening)
    return Markup(f"{opening}{join(*inside)}</{name}>")


def join(*parts: str) -> Markup:
    """Return the parts one after another, those that are not `Markup` escaped."""
    return Markup(
        "".join(part if isinstance(part, Markup) else html.escape(part) for part in parts)
    )


def data(value: Any) -> Markup:
    """Return a value as JSON for a script of the page; no string in it can end the script."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    safe = text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")
    return Markup(f'<script type="application/json">{safe}</script>')


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, class_: str = "") -> Markup:
    """Return a table; the first column names the rows."""
    top = element("tr", *(element("th", cell, scope="col") for cell in head))
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell) for cell in row[1:]),
        )
        for row in rows
    ]
    whole = element("table", element("thead", top), element("tbody", *body), class_=class_ or None)
    return element("div", whole, class_="scroll")
