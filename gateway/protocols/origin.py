"""Who may talk to a gateway that needs no key: the Host and Origin checks.

A page from anywhere can make a browser on this machine send requests to a loopback port, and a
name that it controls can be made to resolve to 127.0.0.1 later (DNS rebinding): the browser then
takes our answers for the page's own. Both show: a rebound page sends its own name as Host, a
foreign page its own Origin. So Host must be a name that no attacker can own: an IP literal of
loopback, `localhost`, or the address that the gateway is bound to; and Origin, where a browser
sends one, must be the very host and port of the request.

A gateway bound to all interfaces is reached under addresses that it does not know. Any IP literal
is then accepted: rebinding needs a name.
"""

from __future__ import annotations

import ipaddress
import re

from meshnode.errors import Forbidden

_PORT = re.compile(r":[0-9]{1,5}")
_WILDCARDS = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - compared with, not bound to
_MAX_REMEMBERED = 64  # spellings of a valid Host; there are a handful in use


class OriginPolicy:
    """Checks Host and Origin for a gateway bound to one address."""

    def __init__(self, bound_host: str) -> None:
        """`bound_host` is the host part of the listening address, as it was given."""
        self._bound = _literal(bound_host) or bound_host.lower()
        self._any_literal = bound_host in _WILDCARDS
        self._remembered: set[str] = set()

    def __repr__(self) -> str:
        return f"<OriginPolicy {'any address' if self._any_literal else self._bound}>"

    def check(self, host: str | None, origin: str | None) -> None:
        """Pass, or refuse.

        Args:
            host: The Host header's value.
            origin: The Origin header's value, or None if there is none.

        Raises:
            Forbidden: if either is not this gateway's.
        """
        if host not in self._remembered:
            if host is None or not self._is_mine(host):
                raise Forbidden(
                    "the Host header does not name this gateway: use its IP address or localhost"
                )
            if len(self._remembered) < _MAX_REMEMBERED:
                self._remembered.add(host)
        if origin is not None and origin.lower() not in (
            f"http://{host}".lower(),
            f"https://{host}".lower(),
        ):
            raise Forbidden("pages of other origins may not use this gateway")

    def _is_mine(self, host: str) -> bool:
        name = _without_port(host)
        if name is None:
            return False
        literal = _literal(name)
        if literal is None:
            return name.lower() in ("localhost", self._bound)
        return (
            self._any_literal or literal == self._bound or ipaddress.ip_address(literal).is_loopback
        )


def _without_port(host: str) -> str | None:
    """Return the name or the literal (without brackets) of `host[:port]`, or None if malformed."""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        if not bracket or ":" not in name:
            return None
    else:
        name, colon, number = host.partition(":")
        port = colon + number
    if not name or (port and not _PORT.fullmatch(port)):
        return None
    return name


def _literal(name: str) -> str | None:
    """Return an IP literal in its canonical form, or None if the name is none."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return None
