"""A model server that may be told to report a load that is not, or no longer, true."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from msgspec import structs

from meshnode.models.serving.server import ModelServer
from meshnode.models.serving.server_config import ServerConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meshnode.models.runtimes.base import Runtime
    from meshnode.types import InferRequest, InferResponse
    from meshnode.wire.messages import LoadReport

LOOK_EVERY_S: Final = 0.05
"""Seconds between remembered reports; a report of the past is right to as much."""

_MAX_REMEMBERED: Final = 2_000  # a minute and a half of looks


class StandInServer(ModelServer):
    """A device's model server: its slots are the device's, however long runs take.

    Attributes:
        load_share: It reports this share of its true load; 1 is honest.
        load_age_s: What it reports is as old as this.
        on_request: Told of each request that it is given.
    """

    def __init__(
        self,
        runtimes: Mapping[str, Runtime],
        *,
        cores: int,
        slots: int,
        now: Callable[[], float],
        **options: Any,
    ) -> None:
        """Start with no models.

        Args:
            runtimes: By name.
            cores: Processors of the device.
            slots: Requests of one model that it runs at once.
            now: The device's monotonic seconds.
            options: Of `ModelServer`.
        """
        config = ServerConfig(slots=slots, inline_limit_s=0.0)
        options.setdefault("give_back", _keep)  # a stand-in's models take no memory worth returning
        super().__init__(runtimes, cores=cores, config=config, **options)
        self.load_share = 1.0
        self.load_age_s = 0.0
        self.on_request: Callable[[InferRequest], None] = lambda _request: None
        self._now = now
        self._past: dict[tuple[str, int | None], deque[tuple[float, LoadReport]]] = {}

    async def infer(self, request: InferRequest) -> InferResponse:
        """Run a request in its turn, as every server does; none is so small that it runs at once."""
        self.on_request(request)
        return await super().infer(request)

    def load_report(self, model: str, version: int | None) -> LoadReport:
        """Return how busy a version is, as far as this server tells the truth."""
        report = super().load_report(model, version)
        if self.load_age_s == 0:
            self._past.clear()
        else:
            report = self._as_it_was(model, version, report)
        if self.load_share != 1.0:
            in_system = round(report.in_system * self.load_share)
            report = structs.replace(report, in_system=in_system)
        return report

    def _as_it_was(self, model: str, version: int | None, report: LoadReport) -> LoadReport:
        """Remember a report; return one that is old enough, or the oldest that is remembered."""
        now = self._now()
        past = self._past.setdefault((model, version), deque(maxlen=_MAX_REMEMBERED))
        if not past or now - past[-1][0] >= LOOK_EVERY_S:
            past.append((now, report))
        while len(past) > 1 and past[1][0] <= now - self.load_age_s:
            past.popleft()
        return past[0][1]


def _keep() -> None:
    """Return nothing to the system."""
