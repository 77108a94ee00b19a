"""What the log says of callers without a valid key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.gateway import refusal_log as module
from meshnode.gateway.refusal_log import RefusalLog
from meshnode.limits import KEY_LOG_WINDOW_S, MAX_KEY_LOG_LINES, MAX_REQUEST_LOG_LINES

if TYPE_CHECKING:
    import pytest

    from tests.unit.gateway.conftest import FakeClock


def test_each_address_gets_a_few_lines_an_hour(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    told = RefusalLog(clock)
    for _ in range(10):
        told.write("192.0.2.1", "it showed no API key")
    told.write("192.0.2.2", "the API key 'phone' was revoked")
    told.write("", "it showed no API key")
    line = "a caller from 192.0.2.1 was refused: it showed no API key"
    assert [record.message for record in caplog.records] == [
        *[line] * (MAX_KEY_LOG_LINES - 1),
        line + "; more from there are counted only, for an hour",
        "a caller from 192.0.2.2 was refused: the API key 'phone' was revoked",
        "a caller from an unknown address was refused: it showed no API key",
    ]
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    clock.time_s += KEY_LOG_WINDOW_S
    told.write("192.0.2.1", "it showed no API key")
    assert caplog.records[-1].message == line
    assert repr(told) == "<RefusalLog of 1 addresses>"


def test_a_flood_from_everywhere_costs_little_log_and_memory(
    clock: FakeClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_THROTTLED_SOURCES", 50)
    told = RefusalLog(clock)
    for number in range(10_000):
        told.write(f"2001:db8::{number:x}", "it showed no API key")
    assert len(told._lines) == 50
    assert len(caplog.records) == MAX_REQUEST_LOG_LINES + 1  # and that there are more
