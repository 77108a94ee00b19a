"""Carries bytes between two links without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.wire.link import Link, LinkEvent

    Pump = Callable[..., tuple[list[LinkEvent], list[LinkEvent]]]


@pytest.fixture
def pump() -> Pump:
    """Exchange output between two links until both are silent; return what each was told."""

    def exchange(
        one: Link, other: Link, now: float = 0.0
    ) -> tuple[list[LinkEvent], list[LinkEvent]]:
        told_one: list[LinkEvent] = []
        told_other: list[LinkEvent] = []
        while one.has_output or other.has_output:
            told_other += other.receive(b"".join(one.take_output()), now)
            told_one += one.receive(b"".join(other.take_output()), now)
        return told_one, told_other

    return exchange
