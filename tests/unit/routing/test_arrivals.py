"""Requests are counted for the models of which somebody wants to know."""

from __future__ import annotations

from meshnode.routing.arrivals import Arrivals


def test_only_what_is_followed_is_counted() -> None:
    arrivals = Arrivals()
    arrivals.came("digits")
    arrivals.follow(["digits", "faces"])
    for model in ("digits", "other", "digits"):
        arrivals.came(model)
    assert arrivals.counts() == (("digits", 2),)


def test_a_count_goes_on_when_others_are_followed_too() -> None:
    arrivals = Arrivals()
    arrivals.follow(["digits"])
    arrivals.came("digits")
    arrivals.follow(["digits", "faces"])
    arrivals.came("faces")
    assert arrivals.counts() == (("digits", 1), ("faces", 1))
    arrivals.follow(["faces"])
    assert arrivals.counts() == (("faces", 1),)
