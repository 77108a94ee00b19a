"""Who may call a gateway: decided before anything else of a request is looked at.

    Host, Origin ── foreign ──> 403
        │ ours
    a key came with it ── valid ──> the key's caller, with its scope
        │        └── wrong, expired, revoked ──> 401; 429 where that source did so too often
        │ none
    no Host ──> 403
        │ there is one
    peer and Host are loopback, nothing was forwarded, and the owner
    does not want a key of everybody ──> LOCAL: infers and reads
        │ otherwise
       401

Then `require` compares what the caller may with what the route needs.

A proxy on this machine makes everybody's requests come from loopback. That it is one shows in the
headers that proxies add, or in a Host that is not loopback; such a request needs a key like any other
from elsewhere. One that does neither (nginx, unless it is told to) cannot be told from a program of
this machine: behind it, `require_key` wants a key of everybody.

HTTP/1.0 may leave out Host. A browser never does, so no rebound name hides behind that, and a valid key
passes; without one the request could be anything.

Where no key is needed, what does not even look like one is ignored: some clients always send one.

A key is found by the id that is part of its text and compared by SHA-256 in constant time; a wrong
id costs the same comparison. A valid key always passes: guesses from the same address (a proxy's, a
household's) must not lock it out, and no rate of guessing finds 256 bits. Nothing is remembered of
a key but what its entry says at this moment, so revocation and expiry count from the next request.

The table of sources with wrong keys is bounded. A source's count refills with time and its row goes
when it is full again; where no row is free, sources share one.
"""

from __future__ import annotations

import hmac
import math
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, Protocol

from meshnode.errors import Forbidden, Throttled, Unauthenticated
from meshnode.gateway.protocols.caller import LOCAL, OWNER, Caller
from meshnode.gateway.protocols.origin import is_loopback_host
from meshnode.key_limit import NO_LIMIT
from meshnode.limits import (
    KEY_FAILURE_REFILL_S,
    MAX_KEY_FAILURES,
    MAX_KEY_LENGTH,
    MAX_REMEMBERED_HOSTS,
    MAX_THROTTLED_SOURCES,
)
from meshnode.state.api_keys import hash_of, id_in
from meshnode.throttle import Throttle, source_of
from meshnode.trust.records import rfc3339
from meshnode.types import Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meshnode.gateway.protocols.origin import OriginPolicy
    from meshnode.state.api_keys import ApiKey

_NO_DIGEST: Final = bytes(32)  # no SHA-256 of anything that is known
_SHARED: Final = ""  # the source of all that have no row of their own
_OF_PROXIES: Final = frozenset(
    {b"via", b"client-ip", b"x-client-ip", b"x-client-cert", b"remote-user"}
    | {b"do-connecting-ip", b"x-scheme", b"x-proxyuser-ip"}
    | {b"x-host", b"x-rewrite-url", b"x-varnish", b"x-forward-for", b"front-end-https"}
)
_PREFIXES_OF_PROXIES: Final = (
    *(b"x-real-", b"x-cluster-", b"x-remote-", b"x-original-", b"x-originating-"),
    *(b"x-proxy-", b"x-nginx-", b"x-haproxy-", b"x-envoy-", b"x-auth-request-", b"x-webauth-"),
    *(b"x-azure-", b"x-arr-", b"x-fd-", b"x-amzn-", b"x-amz-cf-", b"x-appengine-", b"x-goog-iap-"),
    *(b"x-vercel-", b"x-nf-", b"x-heroku-", b"x-sucuri-", b"x-akamai-", b"x-ingress-"),
    *(b"cf-", b"cdn-", b"fly-", b"fastly-", b"akamai-", b"incap-", b"ngrok-", b"tailscale-"),
    *(b"true-client-", b"ssl-client-"),
)


class Approach(NamedTuple):
    """What shows who sent a request.

    Attributes:
        peer: The address at the other end of the connection; empty if there is none.
        host: The Host header, or what the request target names instead of it.
        origin: The Origin header.
        authorization: The Authorization header.
        api_key: The X-API-Key header.
        header_names: The names of all headers as they were sent, a line each.
    """

    peer: str
    host: str | None = None
    origin: str | None = None
    authorization: str | None = None
    api_key: str | None = None
    header_names: bytes = b""


class Access(Protocol):
    """Decides at one entrance."""

    def check(self, approach: Approach) -> None:
        """Pass whoever asks by a name of this entrance, from a page that may; what they show as a key is not looked at.

        Raises:
            Forbidden: for a foreign Host or Origin.
        """
        ...

    def admit(self, approach: Approach, now: float, wall_s: float) -> Caller:
        """Say who asks.

        Args:
            approach: What shows it.
            now: Monotonic seconds.
            wall_s: Seconds since the Unix epoch.

        Raises:
            Forbidden: for a foreign Host or Origin.
            Unauthenticated: without a valid key, where one is needed or one was shown.
            Throttled: for a wrong key too many.
        """
        ...


class GatewayAccess:
    """The rule for a gateway on TCP; see the top of this module."""

    def __init__(
        self,
        policy: OriginPolicy,
        find: Callable[[str], ApiKey | None],
        *,
        require_key: bool = False,
        on_refusal: Callable[[str, str], None] = lambda _peer, _reason: None,
    ) -> None:
        """Decide by these.

        Args:
            policy: The Host and Origin check.
            find: Returns the key of an id, whatever its state, or None.
            require_key: Want a key of programs on this machine too.
            on_refusal: Told the peer's address and the reason, without what was shown as a key,
                whenever nobody is recognised; not of what is throttled.
        """
        self._policy = policy
        self._find = find
        self._require_key = require_key
        self._on_refusal = on_refusal
        self._failures = Throttle(
            burst=MAX_KEY_FAILURES,
            refill_s=KEY_FAILURE_REFILL_S,
            max_sources=MAX_THROTTLED_SOURCES,
        )
        self._callers: dict[str, tuple[ApiKey, Caller]] = {}
        self._peers: dict[str, bool] = {}
        self._direct: dict[bytes, bool] = {}

    def __repr__(self) -> str:
        return f"<GatewayAccess {self._policy!r} {self._failures!r}>"

    def check(self, approach: Approach) -> None:
        """Look at Host and Origin only; see `Access`."""
        self._policy.check(approach.host, approach.origin)

    def admit(self, approach: Approach, now: float, wall_s: float) -> Caller:
        """Say who asks; see `Access`."""
        peer, host, origin, authorization, api_key, names = approach
        is_local_host = self._policy.check(host, origin)
        shown = authorization is not None or api_key is not None
        text = _shown(authorization, api_key)
        key_id = _id_of(text)
        if key_id is None or text is None:
            if is_local_host and self._may_be_local(peer) and self._is_direct(names):
                return LOCAL
            if not shown:
                self._refuse_without_key(peer, host)
            self._refuse(peer, _NO_FORM if text is None else _NO_SUCH_KEY, now)
        key = self._find(key_id)
        expected = _NO_DIGEST if key is None else key.sha256
        if not hmac.compare_digest(hash_of(text), expected) or key is None:
            self._refuse(peer, _NO_SUCH_KEY, now)
        flaw = _flaw(key, wall_s)
        if flaw:
            self._refuse(peer, flaw, now)
        return self._caller(key)

    def is_here(self, approach: Approach) -> bool:
        """Whether a request comes from a program on this machine, as far as shows; behind a proxy, nobody's does."""
        return self._may_be_local(approach.peer) and self._is_direct(approach.header_names)

    def _caller(self, key: ApiKey) -> Caller:
        """Return who holds a valid key; made once, since it costs more than all the rest."""
        known = self._callers.get(key.id)
        if known is not None and known[0] is key:
            return known[1]
        scope = key.scope
        if scope is None:
            raise Forbidden(
                f"the API key {key.name!r} has no scope that this version of meshnode knows; "
                "create another one"
            )
        limit = None if key.limit == NO_LIMIT else key.limit
        caller = Caller(scope, key.id, key.name, limit=limit)
        if len(self._callers) >= MAX_REMEMBERED_HOSTS:
            self._callers.clear()
        self._callers[key.id] = (key, caller)
        return caller

    def _may_be_local(self, peer: str) -> bool:
        known = self._peers.get(peer)
        if known is None:
            known = is_loopback_host(peer) and not self._require_key
            if len(self._peers) >= MAX_REMEMBERED_HOSTS:
                self._peers.clear()
            self._peers[peer] = known
        return known

    def _is_direct(self, names: bytes) -> bool:
        known = self._direct.get(names)
        if known is None:
            known = not is_forwarded(names)
            if len(self._direct) >= MAX_REMEMBERED_HOSTS:
                self._direct.clear()
            self._direct[names] = known
        return known

    def _refuse_without_key(self, peer: str, host: str | None) -> NoReturn:
        if host is None:
            raise Forbidden(
                "a request without a Host header needs an API key; send `Host`, or HTTP/1.1"
            )
        self._on_refusal(peer, "it showed no API key")
        raise Unauthenticated(_NO_KEY_HERE if self._require_key else _NO_KEY)

    def _refuse(self, peer: str, flaw: str, now: float) -> NoReturn:
        wait_s = math.ceil(self._failures.take(source_of(peer), now))
        if wait_s > 0:
            raise Throttled(
                "too many wrong API keys came from this address; "
                f"try again in {wait_s} s, with a valid one",
                wait_s,
            )
        self._on_refusal(peer, flaw)
        raise Unauthenticated(f"{flaw}. {_HOW_TO_GET_ONE}")


class ChannelAccess:
    """The rule for a control channel on loopback TCP: whoever has its token is the owner."""

    def __init__(self, policy: OriginPolicy, authorizes: Callable[[str | None], bool]) -> None:
        """Decide by the Host and Origin check, and by what the Authorization header is."""
        self._policy = policy
        self._authorizes = authorizes

    def check(self, approach: Approach) -> None:
        """Look at Host and Origin only; see `Access`."""
        self._policy.check(approach.host, approach.origin)

    def admit(self, approach: Approach, now: float, wall_s: float) -> Caller:  # noqa: ARG002 - as `Access`
        """Say who asks; see `Access`."""
        self._policy.check(approach.host, approach.origin)
        if approach.host is None:
            raise Forbidden("the control channel needs a Host header")
        if not self._authorizes(approach.authorization):
            raise Forbidden("the control channel needs the token of this node's data folder")
        return OWNER


_HOW_TO_GET_ONE: Final = (
    "Create one on a node of the mesh with `meshnode keys create NAME --scope infer`, and send it as "
    "`Authorization: Bearer KEY`"
)
_NO_FORM: Final = "the Authorization header is not of the form `Bearer KEY`"
_NO_SUCH_KEY: Final = "that is not an API key of this mesh; a key looks like mesh_…_…"
_NO_KEY: Final = f"this gateway needs an API key for calls from other machines. {_HOW_TO_GET_ONE}"
_NO_KEY_HERE: Final = (
    "this gateway needs an API key of every caller, programs on its own machine included, because it "
    "was started with --require-key or --allow-host: behind a proxy everybody seems to come from there. "
    f"{_HOW_TO_GET_ONE}"
)


def require(caller: Caller, needed: Scope) -> None:
    """Pass if a caller may do what needs this scope.

    Raises:
        Unauthenticated: if a key would help, and none was shown.
        Forbidden: if the key's scope does not suffice, or no key's does.
    """
    if caller.scope is needed or caller.scope.allows(needed):
        return
    if needed is Scope.OWNER:
        raise Forbidden(
            "only the owner of this node may do that: use the meshnode command on its machine"
        )
    how = f"meshnode keys create NAME --scope {needed}"
    if caller.key_id:
        raise Forbidden(
            f"this needs an API key with the scope {needed}, and {caller.name!r} has {caller.scope}; "
            f"create one on a node of the mesh with `{how}`"
        )
    raise Unauthenticated(
        f"this needs an API key with the scope {needed}: create one on a node of the mesh with "
        f"`{how}`, and send it as `Authorization: Bearer KEY`; or use the meshnode command on this "
        "machine"
    )


def key_shown(headers: Mapping[str, str]) -> str | None:
    """Return the API key's text that a request shows, valid or not; None if what it shows is no key.

    The control channel's token, which comes in the same header, is none.

    Args:
        headers: Of the request; lookups ignore case, or all keys are lower case.
    """
    text = _shown(headers.get("authorization"), headers.get("x-api-key"))
    return None if _id_of(text) is None else text


def _shown(authorization: str | None, api_key: str | None) -> str | None:
    """Return what a request shows as its key: of two headers the one that looks like one.

    Some clients always send an Authorization header, with a placeholder where their user gave none.
    """
    bearer = None if authorization is None else _bearer(authorization)
    if bearer is None or (_id_of(bearer) is None and _id_of(api_key) is not None):
        return api_key
    return bearer


def _id_of(text: str | None) -> str | None:
    """Return the id in what may be a key's text; None if it is none."""
    return id_in(text) if text is not None and len(text) <= MAX_KEY_LENGTH else None


def is_forwarded(header_names: bytes) -> bool:
    """Whether a request has headers by which a proxy says that it sends for somebody else.

    Args:
        header_names: Their names, a line each.
    """
    return any(
        b"forwarded" in name or name in _OF_PROXIES or name.startswith(_PREFIXES_OF_PROXIES)
        for name in header_names.lower().replace(b"_", b"-").split(b"\n")
    )


def _bearer(header: str) -> str | None:
    """Return what follows `Bearer`, or None if the header is of another form (RFC 6750, RFC 9110)."""
    if len(header) > len("Bearer ") + MAX_KEY_LENGTH:
        return ""
    scheme, space, text = header.partition(" ")
    return text.strip(" ") if space and scheme.lower() == "bearer" else None


def _flaw(key: ApiKey, wall_s: float) -> str:
    match key.state(wall_s):
        case "revoked":
            return f"the API key {key.name!r} was revoked at {rfc3339(key.revoked_at_s or 0)}"
        case "expired":
            return (
                f"the API key {key.name!r} expired at {rfc3339(key.expires_at_s or 0)} "
                f"(this gateway's clock says {rfc3339(int(wall_s))})"
            )
    return ""
