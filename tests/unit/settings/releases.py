"""Plans of releases, as a file can say them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from hypothesis import strategies as st

from meshnode.state.release import BUILT_IN_METRICS, Comparison, Gate, Release, Step, Strategy

if TYPE_CHECKING:
    from collections.abc import Callable

percents = st.integers(0, 100) | st.floats(0, 100).map(lambda each: round(each, 3))
seconds = st.integers(0, 9999).map(float)


def shares(least: float = 0.0) -> st.SearchStrategy[float]:
    return percents.filter(lambda each: each >= least).map(lambda each: round(each / 100, 8))


def gates(*, compares: bool) -> st.SearchStrategy[tuple[Gate, ...]]:
    own = [each for each in BUILT_IN_METRICS if compares or each != "agreement"]
    mine = st.sampled_from(own).flatmap(
        lambda metric: st.builds(
            Gate, st.just(metric), st.floats(1, 9) if "latency" in metric else st.floats(0, 1)
        )
    )
    words = st.sampled_from(("stars", "clicks per user", "é"))
    feedback = st.builds(Gate, words, st.floats(0, 1e9), st.booleans())
    return st.lists(mine | feedback, max_size=4, unique_by=lambda each: each.metric).map(tuple)


@st.composite
def releases(draw: st.DrawFn) -> Release:
    strategy: Strategy = draw(st.sampled_from(get_args(Strategy)))
    more: dict[str, Any] = {}
    if strategy == "canary":
        made = st.builds(Step, shares(1), st.just(0.0) | shares(), seconds, st.booleans())
        steps = tuple(sorted(draw(st.lists(made, min_size=1, max_size=5)), key=_share))
    else:
        share = shares() if strategy == "ab" else st.just(0.0)
        mirror = st.just(0.0) if strategy == "ab" else shares()
        steps = (draw(st.builds(Step, share, mirror, seconds, st.booleans())),)
    if strategy in ("canary", "ab"):
        more["split_by"] = draw(st.sampled_from(("", "key", "session", "header:x-beta")))
    if strategy == "ab" and more["split_by"] == "header:x-beta":
        more["only"] = draw(st.sampled_from(((), ("yes",), ("a", "b"))))
    compares = any(step.mirror for step in steps)
    if compares:
        kinds = ("", "labels", "deployment:old", "https://a.example/x?y=1", "request:Decision")
        more["against"] = draw(st.sampled_from(kinds))
        more["compare"] = draw(st.sampled_from(get_args(Comparison)))
        more["tolerance"] = draw(st.floats(0, 9))
    return Release(
        strategy,
        0,
        0,
        steps,
        draw(gates(compares=compares)),
        min_requests=draw(st.integers(1, 1_000_000)),
        max_wait_s=draw(seconds),
        keep_s=draw(seconds),
        confidence=draw(st.floats(0.5, 0.9999)),
        **more,
    )


_share: Callable[[Step], float] = lambda step: step.share  # noqa: E731
