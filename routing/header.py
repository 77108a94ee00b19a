"""A route as the `Mesh-Route` response header.

A list of `key=value` parameters, the same keys in the same order each time, `tried` only after a
failover::

    node=beta; region=eu-west; version=1; expected_ms=3.2; candidates=1; attempts=2;
    reason=only-candidate; tried="alpha:link_lost"

Names come from other nodes, so each is percent-encoded down to letters that cannot end a value, a
string or the header, and cut at a length; the header as a whole is then bounded as well.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from meshnode.limits import MAX_NAME_LENGTH, MAX_TRIED_SHOWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.routing.choice import Route

_PLAIN = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_NAME_LENGTH}}}")
_UNSAFE = re.compile(rb"[^A-Za-z0-9._-]")


def escape(name: str) -> str:
    """Return a name with every byte but ASCII letters, digits, `.`, `_`, `-` percent-encoded.

    Names longer than a mesh allows are cut; an empty one becomes `-`.
    """
    if _PLAIN.fullmatch(name):
        return name
    raw = name[:MAX_NAME_LENGTH].encode(errors="surrogatepass")
    return _UNSAFE.sub(_percent, raw).decode() or "-"


def _percent(match: re.Match[bytes]) -> bytes:
    return f"%{ord(match[0]):02X}".encode()


def mesh_route_header(
    route: Route, tried: Sequence[tuple[str, str]] = (), attempts: int | None = None
) -> str:
    """Return the header's value for a route.

    Args:
        route: The decision that led to the answer.
        tried: Name of the node and code of the error, of each attempt that failed.
        attempts: Attempts made; None for one more than those that failed.
    """
    made = len(tried) + 1 if attempts is None else attempts
    value = (
        f"{route.replica.label}; expected_ms={route.expected_ms:.3g}; "
        f"candidates={route.candidates}; attempts={made}; reason={route.reason}"
    )
    if tried:
        pairs = ",".join(f"{escape(name)}:{escape(code)}" for name, code in tried[:MAX_TRIED_SHOWN])
        value += f'; tried="{pairs}"'
    return value
