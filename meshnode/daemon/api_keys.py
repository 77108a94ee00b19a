"""Making, listing and revoking API keys on a node; every other node learns of it by gossip."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec

from meshnode.errors import InvalidRequest, NotFound
from meshnode.key_limit import NO_LIMIT, KeyLimit
from meshnode.state.api_keys import ID_BYTES, SECRET_BYTES, ApiKey, Keyring, make_api_key, to_forget
from meshnode.trust.records import rfc3339
from meshnode.types import Priority

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.clock import Clock
    from meshnode.daemon.driver import Driver
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.node import Node

log = logging.getLogger(__name__)


class ApiKeys:
    """The mesh's API keys, as one node shows and changes them."""

    def __init__(
        self,
        node: Node,
        driver: Driver,
        clock: Clock,
        require: Callable[[], None],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        """Work with these.

        Args:
            node: Has the keys.
            driver: Writes changes.
            clock: For what expires, and when.
            require: Raises Forbidden where this node's role allows no changes.
            random_bytes: Draws so many bytes that nobody can guess.
        """
        self._random_bytes = random_bytes
        self._node = node
        self._driver = driver
        self._clock = clock
        self._require = require
        self._keyring = Keyring(node.desired)

    def __repr__(self) -> str:
        return f"<ApiKeys {self._keyring!r}>"

    def get(self, key_id: str) -> ApiKey | None:
        """Return the key of an id, whatever its state, or None."""
        return self._keyring.get(key_id)

    def all(self) -> list[dict[str, Any]]:
        """Describe all keys, the oldest first."""
        wall_s = self._clock.wall_s()
        return [self._view(each, wall_s) for each in self._keyring.all()]

    def create(
        self,
        name: str,
        scopes: Sequence[str],
        ttl_s: int | None,
        caller: Caller,
        limit: KeyLimit = NO_LIMIT,
    ) -> dict[str, Any]:
        """Make a key; its text is in the answer, and nowhere else.

        Raises:
            Forbidden: if this node's role does not allow it.
            InvalidRequest: if a field breaks its rule, the name is taken or there are too many.
            ConfigError: if it could not be written to disk; there is no such key then.
        """
        self._require()
        wall_s = self._clock.wall_s()
        known = self._keyring.all()
        random_bytes = self._random_bytes(ID_BYTES + SECRET_BYTES)
        key, text = make_api_key(name, scopes, ttl_s, wall_s, random_bytes, known, limit)
        forgotten = to_forget(known, wall_s)
        self._keep(key, forgotten)
        if forgotten is not None:
            log.info("API key %s (%s) made room for it", forgotten.name, forgotten.id)
        log.info(
            "API key %s (%s) with %s was made by %s", name, key.id, ", ".join(key.scopes), caller
        )
        view = self._view(key, self._clock.wall_s())
        fields = ("id", "name", "scopes", "created_at", "expires_at")
        limits = ("rate", "concurrency", "priority", "share")
        return {**{field: view[field] for field in (*fields, *limits)}, "key": text}

    def revoke(self, wanted: str, caller: Caller) -> dict[str, Any]:
        """Revoke a key for ever, named by its id or its name; describe it.

        Raises:
            Forbidden: if this node's role does not allow it.
            NotFound: if there is no such key.
            InvalidRequest: if several keys have the name.
            ConfigError: if it could not be written to disk; the key is as it was then.
        """
        self._require()
        key = self._named(wanted)
        changed = key.revoked_at_s is None
        if changed:
            key = msgspec.structs.replace(key, revoked_at_s=int(self._clock.wall_s()))
            self._keep(key)
            log.info("API key %s (%s) was revoked by %s", key.name, key.id, caller)
        return {**self._view(key, self._clock.wall_s()), "changed": changed}

    def limit(self, wanted: str, limit: KeyLimit, caller: Caller) -> dict[str, Any]:
        """Say how much a key's holder may ask from now on; describe the key, named by its id or its name.

        Raises:
            Forbidden: if this node's role does not allow it.
            NotFound: if there is no such key.
            InvalidRequest: if several keys have the name, or it is revoked.
            ConfigError: if it could not be written to disk; the key is as it was then.
        """
        self._require()
        key = self._named(wanted)
        if key.revoked_at_s is not None:
            raise InvalidRequest(f"the API key {key.name!r} is revoked; its holder may ask nothing")
        changed = key.limit != limit
        if changed:
            key = msgspec.structs.replace(key, limit=limit)
            self._keep(key)
            log.info("API key %s (%s) was limited by %s", key.name, key.id, caller)
        return {**self._view(key, self._clock.wall_s()), "changed": changed}

    def _named(self, wanted: str) -> ApiKey:
        by_id = self._keyring.get(wanted)
        if by_id is not None:
            return by_id
        named = [each for each in self._keyring.all() if each.name == wanted]
        current = [each for each in named if each.revoked_at_s is None] or named[-1:]
        if not current:
            raise NotFound(f"there is no API key {wanted[:80]!r}; see: meshnode keys list")
        if len(current) > 1:
            ids = ", ".join(each.id for each in current)
            raise InvalidRequest(f"several keys are called {wanted!r}; name one by its id: {ids}")
        return current[0]

    def _keep(self, key: ApiKey, forget: ApiKey | None = None) -> None:
        self._driver.write(self._node.drafts.api_key(key, self._clock.wall_s(), forget))

    def _view(self, key: ApiKey, wall_s: float) -> dict[str, Any]:
        return {
            "id": key.id,
            "name": key.name,
            "scopes": list(key.scopes),
            "created_at": rfc3339(key.created_at_s),
            "expires_at": None if key.expires_at_s is None else rfc3339(key.expires_at_s),
            "revoked_at": None if key.revoked_at_s is None else rfc3339(key.revoked_at_s),
            "state": key.state(wall_s),
            "rate": key.limit.rate or None,
            "concurrency": key.limit.concurrency or None,
            "priority": Priority(key.limit.priority).name.lower(),
            "share": key.limit.share,
        }
