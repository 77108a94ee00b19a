"""What a node's log says of its replicas: each step once, and a failure again only if its reason is new.

A load that fails is tried again later and later (`meshnode.reconcile`), for days if nobody looks. The log of
such a node has one line for the failure, and one more when it succeeds after all.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from meshnode.node_events import ReplicaChanged, ReplicaGone
from meshnode.types import ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.events import Event
    from meshnode.models.manifest import Manifest

log = logging.getLogger(__name__)

_UNDER_WAY: Final = (ReplicaState.FETCHING, ReplicaState.LOADING)


class ReplicaLog:
    """Passes on what is told of replicas, and writes it into the log."""

    def __init__(self, tell: Callable[[Event], None]) -> None:
        """Pass on to `tell`."""
        self._tell = tell
        # By model and version; bounded by this node's replicas.
        self._last: dict[tuple[str, int], tuple[ReplicaState, str]] = {}
        self._failed: dict[tuple[str, int], str] = {}  # for what reason; until it is ready or gone

    def __repr__(self) -> str:
        return f"<ReplicaLog of {len(self._last)}>"

    def __call__(self, event: Event) -> None:
        """Write down an event, and pass it on."""
        if isinstance(event, ReplicaChanged):
            # What cannot even be described is told with an empty manifest, and is in the log already.
            if event.deployed or event.manifest.entry or event.state is not ReplicaState.FAILED:
                self.changed(event.manifest, event.state, event.reason)
        elif isinstance(event, ReplicaGone):
            key = (event.model, event.version)
            self._failed.pop(key, None)
            if self._last.pop(key, None) is not None:
                log.info("version %d of model %s is unloaded", event.version, event.model)
        self._tell(event)

    def changed(self, manifest: Manifest, state: ReplicaState, reason: str = "") -> None:
        """Write down where a replica stands, if that is news."""
        key = (manifest.model, manifest.version)
        if self._last.get(key) == (state, reason):
            return
        self._last[key] = (state, reason)
        form = f" ({manifest.variant})" if manifest.variant else ""
        what = f"version {manifest.version} of model {manifest.model}{form}"
        if state is ReplicaState.FAILED:
            is_known = self._failed.get(key) == reason
            self._failed[key] = reason
            level = logging.DEBUG if is_known else logging.WARNING
            log.log(level, "%s failed: %s", what, reason or "no reason given")
        elif state in _UNDER_WAY and key in self._failed:
            log.debug("%s is %s once more", what, state)
        else:
            if state is ReplicaState.READY:
                self._failed.pop(key, None)
            log.info("%s is %s%s", what, state, f": {reason}" if reason else "")
