"""The demo's stream of requests, and what it measured.

Some threads send one request after the other over keep-alive connections to one gateway. Each
request is recorded with its start and end, so that afterwards the moment of the kill divides them
into before, during (they overlap the first second after it) and after.
"""

import http.client
import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from meshnode.client.infer import parse_route
from meshnode.types import Address

DURING_S: Final = 1.0
"""How long after a kill requests count as `during`."""

_TIMEOUT_S: Final = 10.0  # a request that takes longer counts as failed
_MAX_RECORDS: Final = 200_000  # per stream: 40 s at 5,000 per second, 20 MB


@dataclass(frozen=True, slots=True)
class Record:
    """One request.

    Attributes:
        start_s: When it was sent, monotonic.
        end_s: When its answer was there.
        failure: What went wrong, or None.
        retried: Whether another replica had failed before the one that answered.
    """

    start_s: float
    end_s: float
    failure: str | None
    retried: bool

    @property
    def latency_ms(self) -> float:
        """Milliseconds from start to end."""
        return (self.end_s - self.start_s) * 1e3


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency of some requests in milliseconds; 0 where there are none."""

    requests: int
    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a stream of requests measured around a kill.

    Attributes:
        requests: How many were sent.
        failures: What went wrong, one sentence per failed request.
        retried: How many were answered by a second replica after a first one had failed.
        before: Those that ended before the kill.
        during: Those that overlap the first second after it.
        after: Those that began later.
    """

    requests: int
    failures: tuple[str, ...]
    retried: int
    before: Latency
    during: Latency
    after: Latency


class RequestStream:
    """Sends the same request to one gateway from several threads until `stop`; use it with `with`."""

    def __init__(
        self,
        gateway: Address,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        connections: int,
    ) -> None:
        """Prepare; `start` begins."""
        self._gateway = gateway
        self._path = path
        self._body = body
        self._headers = dict(headers)
        self._stopping = threading.Event()
        self.records: list[Record] = []  # append is atomic
        self._threads = [
            threading.Thread(target=self._run, name=f"demo-load-{index}", daemon=True)
            for index in range(connections)
        ]

    def __enter__(self) -> Self:
        """Begin to send."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop sending, and wait for the answers under way."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(_TIMEOUT_S)

    def _run(self) -> None:
        connection = http.client.HTTPConnection(*self._gateway, timeout=_TIMEOUT_S)
        while not self._stopping.is_set() and len(self.records) < _MAX_RECORDS:
            start_s = time.monotonic()
            failure, retried = self._send_one(connection)
            self.records.append(Record(start_s, time.monotonic(), failure, retried))
        connection.close()

    def _send_one(self, connection: http.client.HTTPConnection) -> tuple[str | None, bool]:
        try:
            connection.request("POST", self._path, self._body, self._headers)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return f"{type(error).__name__}: {error}", False
        if response.status != 200:
            return f"HTTP {response.status}: {content[:200].decode(errors='replace')}", False
        return None, parse_route(response.headers.get("Mesh-Route", "")).attempts != 1


def report(records: Sequence[Record], kill_s: float) -> LoadReport:
    """Divide requests by the moment of the kill (monotonic seconds) and sum each part up."""
    during_end_s = kill_s + DURING_S
    return LoadReport(
        requests=len(records),
        failures=tuple(it.failure for it in records if it.failure is not None),
        retried=sum(it.retried for it in records),
        before=latency(it.latency_ms for it in records if it.end_s < kill_s),
        during=latency(
            it.latency_ms for it in records if it.end_s >= kill_s and it.start_s < during_end_s
        ),
        after=latency(it.latency_ms for it in records if it.start_s >= during_end_s),
    )


def latency(latencies_ms: Iterable[float]) -> Latency:
    """Sum up latencies; percentiles by nearest rank."""
    ranked = sorted(latencies_ms)
    if not ranked:
        return Latency(0, 0.0, 0.0, 0.0)
    return Latency(len(ranked), _percentile(ranked, 0.5), _percentile(ranked, 0.99), ranked[-1])


def _percentile(ranked: Sequence[float], fraction: float) -> float:
    return ranked[max(math.ceil(fraction * len(ranked)) - 1, 0)]
