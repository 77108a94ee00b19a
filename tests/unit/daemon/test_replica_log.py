"""What a node's log says of its replicas."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from meshnode.daemon.replica_log import ReplicaLog
from meshnode.models.manifest import FileEntry, Manifest
from meshnode.node_events import ReplicaChanged, ReplicaGone
from meshnode.types import ReplicaState

if TYPE_CHECKING:
    from meshnode.events import Event

FILES = (FileEntry("model.onnx", 1, bytes(32)),)
MADE = Manifest("m", 1, "onnx", "onnx", (), (), 0, FILES, "model.onnx")


class Told:
    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="meshnode.daemon.replica_log")
        self.caplog = caplog
        self.events: list[Event] = []
        self.log = ReplicaLog(self.events.append)

    def replica(self, *states: ReplicaState, reason: str = "") -> None:
        for state in states:
            self.log(ReplicaChanged(MADE, state, reason if state is ReplicaState.FAILED else ""))

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for record in self.caplog.records]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    return Told(caplog)


def test_each_step_of_a_replica_is_written_down_once_and_passed_on(told: Told) -> None:
    loading, ready = ReplicaState.LOADING, ReplicaState.READY
    told.log.changed(MADE, ReplicaState.FETCHING)
    told.replica(loading, loading, ready, ready)
    told.log(ReplicaGone("m", 1))
    told.log(ReplicaGone("m", 1))
    assert told.lines == [
        "version 1 of model m is fetching",
        "version 1 of model m is loading",
        "version 1 of model m is ready",
        "version 1 of model m is unloaded",
    ]
    assert len(told.events) == 6


def test_a_failure_that_repeats_is_written_down_once_and_again_if_its_reason_is_new(
    told: Told,
) -> None:
    loading, failed = ReplicaState.LOADING, ReplicaState.FAILED
    for reason in ("the disk is full", "the disk is full", "no such operator"):
        told.replica(loading, failed, reason=reason)
    told.replica(ReplicaState.READY)
    told.replica(loading)
    assert told.lines == [
        "version 1 of model m is loading",
        "version 1 of model m failed: the disk is full",
        "version 1 of model m failed: no such operator",
        "version 1 of model m is ready",
        "version 1 of model m is loading",
    ]
