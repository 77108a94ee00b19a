"""What a request line asks for: a path, or a whole URL (RFC 9112, 3.2).

Clients send a path; some, and proxies always, send a URL (absolute-form), which a server must take
as well. The URL then says which host is meant. A client must send the same in Host (RFC 9112, 3.2);
two names would let a request pass for one host at a proxy, and for another here, so it is
refused rather than one of them believed.
"""

from __future__ import annotations

import re

from meshnode.gateway.protocols.status import HttpRefusal

_ABSOLUTE = re.compile(r"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)


def split_target(target: str) -> tuple[str | None, str]:
    """Return the authority that a target names, or None, and its path with the query.

    What is neither a path nor an http URL is returned as it is: nothing is found under it.
    """
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        return None, target
    rest = match[2].partition("#")[0]
    return match[1], rest if rest.startswith("/") else "/" + rest


def one_host(authority: str, header: str | None) -> str:
    """Return the host that a request is for.

    Args:
        authority: What its target names.
        header: Its Host header; HTTP/1.0 has none.

    Raises:
        HttpRefusal: if they are not the same.
    """
    if header is not None and header.strip().lower() != authority.lower():
        raise HttpRefusal(400, "the Host header is not the host of the URL in the request line")
    return authority
