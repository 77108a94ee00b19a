"""Two gateways and three servers on loopback under a steady load, and what clients notice when something breaks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import psutil

from bench.failover_load import Gateway, SteadyLoad, between, p99_ms
from bench.nodes import MeshNode, free_port, join_arguments, running, status_of
from meshnode.client.mesh import MeshClient
from meshnode.errors import MeshError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Callable, Sequence

MODELS: Final = Path(__file__).parent / "failover_models"
PACED: Final = "/mesh/v1/models/paced/infer"
SLEEP_MS: Final = 10.0
"""How long the model takes: with 200 requests a second two are always under way."""

DISTURBED_CORES: Final = 0.5
"""What others may take of the processor before a row says so."""

WARM_UP_S: Final = 6.0
"""Of load before the first row: what the first requests of a fleet cost is no part of any fault."""

START_LIMIT_S: Final = 60.0
BEFORE_S: Final = 3.0
"""Of load before a fault: what it is compared with."""

PLAYED: Final = ("paced", "numbers", "once_numbers")
"""The models of `MODELS`."""

GATEWAYS: Final = ("gate-1", "gate-2")
SERVERS: Final = ("serve-1", "serve-2", "serve-3")


@dataclass(frozen=True)
class Row:
    """What clients noticed of one fault.

    Attributes:
        fault: What was broken.
        requests: That were due from the fault to its end.
        errors: Of those, how many were not answered.
        before_ms: The 99th percentile before it.
        p99_ms: The same in the two seconds after it.
        worst_ms: The longest of all.
        notes: What else was seen.
        reach: What is to be reached.
        reached: Whether it was.
    """

    fault: str
    requests: int
    errors: int
    before_ms: float
    p99_ms: float
    worst_ms: float
    notes: str
    reach: str
    reached: bool

    def __str__(self) -> str:
        verdict = "ok" if self.reached else "MISSED"
        return (
            f"{self.fault:<52}{self.requests:>6}{self.errors:>5}{self.before_ms:>8.0f}{self.p99_ms:>8.0f}"
            f"{self.worst_ms:>8.0f}  {verdict:<7}{self.reach}; {self.notes}"
        )


HEADER: Final = f"{'fault':<52}{'calls':>6}{'err':>5}{'p99':>8}{'then':>8}{'worst':>8}"


class Fleet:
    """Two gateways and three servers on loopback, each of which can be ended and started again."""

    def __init__(self, folder: Path) -> None:
        """Keep their data in a folder."""
        self._folder = folder
        self._contexts: dict[str, contextlib.ExitStack] = {}
        self._ports = {name: free_port() for name in GATEWAYS}
        self._invite = ""
        self.nodes: dict[str, MeshNode] = {}

    def __repr__(self) -> str:
        return f"<Fleet {sorted(self.nodes)}>"

    def start_all(self) -> None:
        """Start every node, and wait until both gateways know all replicas."""
        for name in (*GATEWAYS, *SERVERS):
            self.start(name)
        self.wait_ready()

    def start(self, name: str) -> None:
        """Start a node, for the first time or again; return when it answers."""
        words = [self._invite] if self._invite else ["--new"]
        if name in self._contexts:
            words = []
        else:
            words += ["--allow-code"]
            if name in SERVERS:
                words += ["--models", str(MODELS)]
        http = f"127.0.0.1:{self._ports.get(name, 0)}"
        stack = self._contexts[name] = contextlib.ExitStack()
        arguments = join_arguments(self._folder, name, *words, http=http)
        process: subprocess.Popen[bytes] = stack.enter_context(running(*arguments, quiet=True))
        control = MeshClient.local(self._folder / name)
        status = status_of(control, process)
        port = int(str(status["http"]).rpartition(":")[2].rstrip("/"))
        self.nodes[name] = MeshNode(control, port, process.pid)
        if not self._invite:
            self._invite = str(control.post("/mesh/v1/invites", {"ttl_s": 3600})["invite"])

    def wait_ready(self, names: Sequence[str] = SERVERS) -> None:
        """Wait until both gateways know a ready replica of each model on these nodes.

        Raises:
            RuntimeError: if that takes too long.
        """
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if all(self._knows(gateway, names) for gateway in GATEWAYS):
                return
            time.sleep(0.05)
        raise RuntimeError("the replicas did not become ready")

    def _knows(self, gateway: str, names: Sequence[str]) -> bool:
        with contextlib.suppress(MeshError):
            models = self.nodes[gateway].control.get("/mesh/v1/models")
            ready = {
                (model["name"], replica["node"])
                for model in models
                for replica in model["replicas"]
                if replica["state"] == "ready"
            }
            return ready >= {(model, name) for model in PLAYED for name in names}
        return False

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a node's daemon a signal."""
        os.kill(self.nodes[name].pid, number)

    def kill(self, name: str) -> None:
        """End a node as a power cut does, its workers included."""
        process = psutil.Process(self.nodes[name].pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self._contexts[name].close()

    def workers(self, name: str) -> list[psutil.Process]:
        """Return the processes that run models on a node: those that started no others."""
        children = psutil.Process(self.nodes[name].pid).children(recursive=True)
        return [each for each in children if not each.children()]

    def gateways(self) -> list[Gateway]:
        """Return where to send requests."""
        return [Gateway(f"http://127.0.0.1:{self._ports[name]}") for name in GATEWAYS]

    def close(self) -> None:
        """End every node."""
        for name, stack in self._contexts.items():
            with contextlib.suppress(ProcessLookupError):
                self.signal(name, signal.SIGCONT)
            stack.close()


class Neighbours:
    """Measures what everybody else takes of the processor: a latency that they caused is no finding.

    A context; it looks in a thread of its own.
    """

    def __init__(self) -> None:
        """Begin when the block does."""
        self._looks: list[tuple[float, float]] = []  # when, cores
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def most_cores(self, from_s: float, to_s: float) -> float:
        """Return how many cores they took at most, for half a second, in a span of the monotonic clock."""
        return max((cores for at, cores in self._looks if from_s <= at <= to_s), default=0.0)

    def _look(self) -> None:
        me = psutil.Process()
        then_s, busy_s, own = time.monotonic(), _busy_s(), _family_s(me)
        while not self._ended.wait(0.5):
            now_s, busy_now_s, own_now = time.monotonic(), _busy_s(), _family_s(me)
            own_s = sum(used - own.get(pid, 0.0) for pid, used in own_now.items())
            others_s = busy_now_s - busy_s - own_s
            self._looks.append((now_s, max(0.0, others_s / (now_s - then_s))))
            then_s, busy_s, own = now_s, busy_now_s, own_now


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


def _family_s(process: psutil.Process) -> dict[int, float]:
    """Return the processor time of a process and of each of its descendants, by id."""
    used = {}
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = each.cpu_times()
            used[each.pid] = times.user + times.system
    return used


@dataclass
class Body:
    """Requests to the model that sleeps; `parameters` may change while they are sent."""

    parameters: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> dict[str, Any]:
        """Return the next one."""
        return paced(**self.parameters)


def paced(**parameters: Any) -> dict[str, Any]:
    """Return a request to the model that sleeps."""
    return {"inputs": {"sleep_ms": [SLEEP_MS]}, "parameters": parameters}


@dataclass
class Watched:
    """A steady load with a fault in it.

    Attributes:
        load: The load.
        broke_s: When the fault began, on the monotonic clock.
        mended_s: When it was over.
        neighbours: What others did on this machine meanwhile.
    """

    load: SteadyLoad
    neighbours: Neighbours
    broke_s: float = 0.0
    mended_s: float = 0.0

    def row(
        self,
        fault: str,
        reach: str,
        *,
        added_ms: float | None = None,
        worst_ms: float | None = None,
        fine: bool = True,
        notes: str = "",
    ) -> Row:
        """Return what clients saw.

        Args:
            fault: What was broken.
            reach: What is to be reached, in words.
            added_ms: What the 99th percentile may grow by; None for anything.
            worst_ms: What the longest may take; None for anything.
            fine: Whether all else was reached.
            notes: What else was seen.
        """
        before = between(self.load.records, self.broke_s - BEFORE_S, self.broke_s - 0.2)
        during = between(self.load.records, self.broke_s - 0.2, self.mended_s)
        first = between(self.load.records, self.broke_s - 0.2, self.broke_s + 2)
        failed = [each for each in during if not each.ok]
        words = Counter(each.code or f"HTTP {each.status}" for each in failed)
        if words:
            notes = f"{notes} {dict(words)}".strip()
        taken = self.neighbours.most_cores(self.broke_s - BEFORE_S, self.mended_s)
        if taken >= DISTURBED_CORES:
            notes = f"{notes}; others took up to {taken:.1f} cores".removeprefix("; ")
        longest_ms = max((each.took_s for each in during), default=0.0) * 1000
        reached = not failed and fine
        if added_ms is not None:
            reached &= p99_ms(first) <= p99_ms(before) + added_ms
        if worst_ms is not None:
            reached &= longest_ms <= worst_ms
        return Row(
            fault, len(during), len(failed), p99_ms(before), p99_ms(first), longest_ms,
            notes, reach, reached,
        )  # fmt: skip


@contextlib.asynccontextmanager
async def watched(
    gateways: Sequence[Gateway], rate: float, body: Callable[[], Any] = paced
) -> AsyncIterator[Watched]:
    """Load the gateways; the block begins when the fault may, and ends when all requests have."""
    with Neighbours() as neighbours:
        async with SteadyLoad(gateways, PACED, body, rate) as load:
            await asyncio.sleep(BEFORE_S + 1)
            seen = Watched(load, neighbours)
            seen.broke_s = time.monotonic()
            yield seen
            seen.mended_s = time.monotonic()
