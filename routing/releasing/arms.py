"""Which of the two versions of a release a request gets that names none."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.rollout import Progress
    from meshnode.state.release import Release

HEADER: Final = "header:"
"""How `Release.split_by` begins where a header's value decides."""

_PLACE_BYTES: Final = 8
_PLACES: Final = 2.0 ** (8 * _PLACE_BYTES)


def choose_arm(
    release: Release,
    progress: Progress,
    *,
    model: str,
    session: str,
    key_id: str,
    header: Callable[[str], str | None],
    draw: float,
) -> int:
    """Return the version that a request gets.

    Whoever gets the new version at one step gets it at each later one, at every gateway. Where a request lacks what
    decides (no session, no key, not this header), chance does.

    Args:
        release: The plan.
        progress: How far it has come.
        model: Public name.
        session: Word of the request's session; empty without one.
        key_id: The caller's API key; empty without one.
        header: Returns the value of a header, or None; asked only where one decides.
        draw: A random number, 0 to below 1.
    """
    share = progress.share(release)
    if share <= 0 or share >= 1:
        return release.candidate if share >= 1 else release.baseline
    value = _deciding(release, session, key_id, header)
    if release.only:
        is_chosen = value in release.only
    else:
        is_chosen = (place_of(release, model, value) if value else draw) < share
    return release.candidate if is_chosen else release.baseline


def place_of(release: Release, model: str, value: str) -> float:
    """Return where a value stands between 0 and 1: those below a step's share get the new version.

    Each release draws anew, so that it is not always the same people who get what is new.
    """
    text = f"{model}\0{release.baseline}\0{release.candidate}\0{value}"
    digest = blake2b(text.encode(errors="surrogatepass"), digest_size=_PLACE_BYTES).digest()
    return int.from_bytes(digest, "big") / _PLACES


def _deciding(
    release: Release, session: str, key_id: str, header: Callable[[str], str | None]
) -> str:
    if release.split_by == "key":
        return key_id
    if release.split_by.startswith(HEADER):
        return header(release.split_by.removeprefix(HEADER)) or ""
    return session
