"""Which Host and Origin a gateway answers to.

A page from anywhere can make a browser on this machine send requests to a loopback port, and a
name that it controls can be made to resolve to 127.0.0.1 later (DNS rebinding): the browser then
takes our answers for the page's own. Both show: a rebound page sends its own name as Host, a
foreign page its own Origin. So Host must be a name that no attacker can own: an IP literal of
loopback, `localhost`, the address that the gateway is bound to, or a name that its owner allowed
(`--allow-host`); and Origin, where a browser sends one, must be the very host and port of the
request. Its scheme may differ, and an allowed name may come as `https` without a port: a proxy in
front of the gateway speaks TLS and on its own port.

A gateway bound to all interfaces is reached under addresses that it does not know. Any IP literal
is then accepted: rebinding needs a name.

Pages of other origins get no answer, unless the owner named their origin (`--cors-origin`, `cors`).
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from meshnode.errors import Forbidden
from meshnode.limits import MAX_REMEMBERED_HOSTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshnode.gateway.protocols.cors import Cors

_PORT = re.compile(r":[0-9]{1,5}")
_WILDCARDS = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - compared with, not bound to


class OriginPolicy:
    """Checks Host and Origin for a gateway bound to one address."""

    def __init__(
        self, bound_host: str, allowed: Iterable[str] = (), cors: Cors | None = None
    ) -> None:
        """Decide by these.

        Args:
            bound_host: The host part of the listening address, as it was given.
            allowed: Further names under which clients reach the gateway, without a port.
            cors: The other origins whose pages may ask; None for none.
        """
        self._cors = cors
        self._bound = _literal(bound_host) or bound_host.lower()
        self._any_literal = bound_host in _WILDCARDS
        self._allowed = frozenset(name.lower() for name in allowed)
        self._remembered: dict[str, bool] = {}

    def __repr__(self) -> str:
        names = ", ".join(["any address" if self._any_literal else self._bound, *self._allowed])
        return f"<OriginPolicy {names}>"

    def check(self, host: str | None, origin: str | None) -> bool:
        """Pass, or refuse.

        Args:
            host: The Host header's value, or None if there is none: then it names nobody, and who
                asks decides whether that will do.
            origin: The Origin header's value, or None if there is none.

        Returns:
            Whether Host names this machine's loopback, an address of it or `localhost`, and the page, if
            one asks, is trusted like a program there: one of an origin that only `*` allows is not.

        Raises:
            Forbidden: if either is not this gateway's, or a page asks without a Host.
        """
        is_local = self._remembered.get(host) if host is not None else None
        if is_local is None:
            is_local = self._judge(host)
        if origin is not None and (
            host is None or not self._is_own_page(origin.lower(), host.lower())
        ):
            if host is None or self._cors is None or not self._cors.allows(origin):
                raise Forbidden(
                    "pages of other origins may not use this gateway, unless its owner names their "
                    "origin: meshnode join --cors-origin ORIGIN"
                )
            return is_local and self._cors.names(origin)
        return is_local

    def _judge(self, host: str | None) -> bool:
        if host is None:
            return False
        name = _without_port(host)
        if name is None or not self._is_mine(name):
            raise Forbidden(
                "the Host header does not name this gateway: use its IP address or localhost, or "
                "let its owner allow the name: meshnode join --allow-host NAME"
            )
        is_local = is_loopback_host(name)
        if len(self._remembered) < MAX_REMEMBERED_HOSTS:
            self._remembered[host] = is_local
        return is_local

    def _is_mine(self, name: str) -> bool:
        literal = _literal(name)
        if literal is None:
            return name.lower() in ("localhost", self._bound) or name.lower() in self._allowed
        return (
            self._any_literal
            or literal == self._bound
            or literal in self._allowed
            or is_loopback_host(literal)
        )

    def _is_own_page(self, origin: str, host: str) -> bool:
        if origin in (f"http://{host}", f"https://{host}"):
            return True
        return origin.startswith("https://") and origin.removeprefix("https://") in self._allowed


def is_loopback_host(name: str) -> bool:
    """Whether a name or literal (without brackets) is loopback, also as IPv4 within IPv6."""
    if name.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


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
