"""Daemons and cores that keep what they should let go: a leak is found wherever it is, and after a reboot too."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.daemon.assembly import Assembly
from meshnode.daemon.driver import Driver
from meshnode.gateway.access import GatewayAccess
from meshnode.gateway.pipeline import Pipeline
from meshnode.models.serving.server import ModelServer
from meshnode.net.connection import Connection
from meshnode.node import Node
from meshnode.routing.router import Router
from meshnode.sim.faults import Crash, Restart
from meshnode.sim.running.playing import play
from meshnode.sim.table_sizes import WINDOW, table_sizes
from meshnode.sim.virtual.leaks import SPARE
from meshnode.trust.descent import Descent
from tests.broken.rehearsals import rehearsal

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.sim.running.result import Result
    from meshnode.sim.scenario.model import Scenario

Patch = pytest.MonkeyPatch

BUSY = rehearsal(nodes=1, rate_per_s=150.0, mean_ms=2.0, duration_s=6.0)
"""Two nodes with more requests than a table may have entries."""


def before(patch: Patch, owner: type, name: str, act: Callable[..., object]) -> None:
    """Let a method do something else first, with its object."""
    right = getattr(owner, name)

    def method(self: Any, *args: Any, **options: Any) -> Any:
        act(self)
        return right(self, *args, **options)

    patch.setattr(owner, name, method)


def kept(owner: Any, name: str, make: Callable[[], Any]) -> Any:
    """Return an attribute that the right code does not have."""
    return owner.__dict__.setdefault(name, make())


def remembers(name: str, entries: int = 1) -> Callable[[Any], object]:
    """Return what adds entries to a dictionary at each call."""

    def remember(owner: Any) -> None:
        notes = kept(owner, name, dict)
        for _ in range(entries):
            notes[len(notes)] = True

    return remember


def gateway_remembers_requests(patch: Patch) -> None:
    before(patch, Pipeline, "answer", remembers("notes"))


def access_remembers_callers(patch: Patch) -> None:
    before(patch, GatewayAccess, "admit", remembers("notes"))


def links_remember_frames(patch: Patch) -> None:
    before(patch, Connection, "_dispatch_all", remembers("notes", 8))


def models_remember_requests(patch: Patch) -> None:
    before(patch, ModelServer, "load_report", remembers("notes"))


def a_queue_is_never_emptied(patch: Patch) -> None:
    before(
        patch,
        Pipeline,
        "answer",
        lambda it: kept(it, "queue", asyncio.Queue).put_nowait(b""),
    )


def trust_of_a_node_remembers_events(patch: Patch) -> None:
    def hang_on(node: Any) -> None:
        trust = kept(node, "descents", lambda: object.__new__(_RememberingDescent))
        remembers("notes", 2)(trust)

    before(patch, Node, "handle", hang_on)


class _RememberingDescent(Descent):
    """One that has a dictionary."""


_RememberingDescent.__module__ = Descent.__module__


def a_buffer_grows_with_each_event(patch: Patch) -> None:
    def grow(driver: Any) -> None:
        kept(driver, "buffer", bytearray).extend(bytes(1024))

    before(patch, Driver, "handle", grow)


def a_bytes_value_grows_with_each_request(patch: Patch) -> None:
    def grow(pipeline: Any) -> None:
        pipeline.log = getattr(pipeline, "log", b"") + bytes(1024)

    before(patch, Pipeline, "answer", grow)


@pytest.mark.parametrize(
    "flaw",
    [
        gateway_remembers_requests,
        access_remembers_callers,
        links_remember_frames,
        models_remember_requests,
        a_queue_is_never_emptied,
        trust_of_a_node_remembers_events,
        a_buffer_grows_with_each_event,
        a_bytes_value_grows_with_each_request,
    ],
    ids=lambda flaw: flaw.__name__,
)
def test_a_table_that_grows_anywhere_in_a_daemon_is_found(
    flaw: Callable[[Patch], None], monkeypatch: Patch
) -> None:
    flaw(monkeypatch)
    found = violation(BUSY, "B")
    assert found.startswith("tables-bounded: "), found


def test_a_buffer_that_grows_in_a_core_is_found(monkeypatch: Patch) -> None:
    before(monkeypatch, Router, "plan", lambda it: kept(it, "log", bytearray).extend(bytes(1024)))
    found = violation(BUSY, "A")
    assert found.startswith("tables-bounded: router.log of "), found


def violation(scenario: Scenario, depth: str) -> str:
    result: Result = play(scenario, seed=3, depth=depth)
    return "".join(f"{each.invariant}: {each.message}" for each in result.violations[:1])


# Tasks and timers.


async def _for_ever() -> None:
    await asyncio.Event().wait()


def starts_tasks(assembly: Assembly) -> None:
    for _ in range(SPARE + 1):
        assembly._tasks.start(_for_ever())


def starts_timers(_: Assembly) -> None:
    for _number in range(SPARE + 1):
        asyncio.get_running_loop().call_later(1e6, print)


@pytest.mark.parametrize("leak", [starts_tasks, starts_timers], ids=lambda it: it.__name__)
def test_a_few_tasks_or_timers_that_never_end_are_found_while_calls_go_on(
    leak: Callable[[Assembly], None], monkeypatch: Patch
) -> None:
    before(monkeypatch, Assembly, "start", leak)
    result = play(rehearsal(nodes=1, rate_per_s=20.0, duration_s=8.0), seed=3, depth="B")
    assert [each.invariant for each in result.violations] == ["no-leak"]
    assert result.violations[0].time_s < 8.0


@pytest.mark.parametrize("leak", [starts_tasks, starts_timers], ids=lambda it: it.__name__)
def test_a_leak_of_a_daemon_that_was_started_again_is_found(
    leak: Callable[[Assembly], None], monkeypatch: Patch
) -> None:
    """Only its second boot leaks."""
    boots: dict[str, int] = {}

    def second(assembly: Assembly) -> None:
        name = assembly.record.name
        boots[name] = boots.get(name, 0) + 1
        if boots[name] == 2:
            leak(assembly)

    before(monkeypatch, Assembly, "start", second)
    faults = Crash(at_s=1.0, nodes=("us",)), Restart(at_s=2.0, nodes=("us",))
    result = play(rehearsal(*faults, nodes=1, rate_per_s=2.0, duration_s=8.0), seed=3, depth="B")
    assert [each.invariant for each in result.violations] == ["no-leak"]
    assert result.violations[0].message.startswith("us has ")


# What is looked at.


class _Part:
    def __init__(self) -> None:
        self.tables = {number: [number] for number in range(3 * WINDOW)}
        self.pair = (1, [1, 2, 3, 4])
        self.last: deque[int] = deque(maxlen=9)
        self.text = b"12345"
        self.method = deque[int]([1]).append


_Part.__module__ = "meshnode.node"


def test_every_entry_of_a_table_is_looked_into_over_some_turns() -> None:
    part = _Part()
    part.tables[3 * WINDOW - 1] += range(7)
    assert [table_sizes(part, turn).tables["tables[]"] for turn in range(4)] == [1, 1, 8, 1]
    assert table_sizes(part).tables["tables[]"] == 8


def test_tables_in_tuples_count_and_those_that_limit_themselves_do_not() -> None:
    sizes = table_sizes(_Part())
    assert sizes.tables == {"tables": 3 * WINDOW, "tables[]": 1, "pair[]": 4}
    assert sizes.texts == {"text": 5}
