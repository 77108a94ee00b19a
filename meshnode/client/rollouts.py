"""Releases, as flows of calls: how one stands, what is asked of it, and how it comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshnode.client.calls import (
    Call,
    Flow,
    Pause,
    ask,
    deployment_path,
    get_document,
    json_message,
)
from meshnode.client.results import read_as
from meshnode.client.rollout_results import RolloutInfo
from meshnode.errors import DeadlineExceeded, PeerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.state.release import Verb

LOOK_S: Final = 1.0
"""Seconds between two looks at a release: as often as its steward looks."""


def ignore(_: RolloutInfo) -> None:
    """Watch no progress."""


def show(name: str) -> Flow[RolloutInfo]:
    """Describe the release of a deployment."""
    return read_as(RolloutInfo, (yield from get_document(_path(name))))


def order(name: str, verb: Verb, reason: str) -> Flow[RolloutInfo]:
    """Ask something of a release."""
    wish: dict[str, Any] = {"verb": verb, **({"reason": reason} if reason else {})}
    call = Call("POST", _path(name), json_message(wish), repeatable=False, keyed=True)
    return read_as(RolloutInfo, (yield from ask(call)).document())


def follow(
    name: str,
    shown: Callable[[RolloutInfo], object],
    clock: Callable[[], float],
    wait_s: float | None,
    *,
    until_over: bool,
) -> Flow[RolloutInfo]:
    """Look at a release again and again, and tell of every change.

    Args:
        name: The deployment's.
        shown: Told of every change.
        clock: Monotonic seconds.
        wait_s: Seconds after which to stop; None for no end.
        until_over: Whether to stop when it has ended.

    Returns:
        The release as it was seen last.

    Raises:
        PeerError: if another release of the deployment took its place.
        DeadlineExceeded: when the time is over.
    """
    began = clock()
    last: RolloutInfo | None = None
    while True:
        found = yield from show(name)
        if last is not None and found.begun_at != last.begun_at:
            raise PeerError(
                f"another release of {name!r} took the place of this one; see: meshnode rollout status {name}"
            )
        if found != last:
            shown(found)
        last = found
        if until_over and found.is_over:
            return found
        if wait_s is not None and clock() >= began + wait_s:
            raise DeadlineExceeded(
                f"the release of {name!r} has not ended after {wait_s:g} s ({found.phase}: {found.reason}); it goes "
                f"on, see: meshnode rollout status {name}"
            )
        yield Pause(LOOK_S)


def _path(name: str) -> str:
    return f"{deployment_path(name)}/rollout"
