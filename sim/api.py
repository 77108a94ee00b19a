"""Worlds for people's tests: a mesh in virtual time that one can ask, hurt and look at.

    from meshnode.sim import Model, Region, World, faults

    with World([Region("eu-west", nodes=2), Region("us-east", nodes=2)], [Model(name="digits")], seed=7) as world:
        world.start()
        world.apply(faults.RegionDown(region="eu-west"))
        outcome = world.call("digits", via="us-east-1")
        assert outcome.code == "ok"

A world is at depth B unless it is told otherwise: whole daemons, real HTTP over a virtual network, one
process, no waiting. There `run` plays an asynchronous test body on a client's host, and `serve` starts an
aiohttp application of one's own on another one. At depth A a world is the pure cores: larger, faster,
without HTTP. Everything is decided by the seed.
"""

from __future__ import annotations

import contextvars
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, cast

import msgspec

from meshnode.errors import UsageError
from meshnode.sim.asking import (
    APP_PORT,
    Body,
    call_of,
    limited,
    raise_unhandled,
    require_seconds,
    serving,
)
from meshnode.sim.core_world import NotReachedError
from meshnode.sim.recording import Recording
from meshnode.sim.region import Region, nodes_of
from meshnode.sim.running.playing import stage_for
from meshnode.sim.running.report import write_report
from meshnode.sim.running.result import METRICS
from meshnode.sim.scenario import arrivals, checks
from meshnode.sim.scenario.model import (
    Depth,
    Device,
    Load,
    Model,
    NetworkPart,
    Nodes,
    Path,
    Place,
    Scenario,
)
from meshnode.sim.scenario.reading import read
from meshnode.sim.scenario.selection import select
from meshnode.sim.sessions import sessions_of_the_world

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Sequence
    from types import TracebackType

    import aiohttp
    from aiohttp import web

    from meshnode.sim.faults import Fault
    from meshnode.sim.running.result import Result
    from meshnode.sim.stage import Machine, Outcome, Sample, Stage
    from meshnode.sim.virtual.host import VirtualHost
    from meshnode.sim.virtual.stage import VirtualStage

T = TypeVar("T")

SETTLE_S: Final = 180.0
"""How long `check` waits until no call is open and all nodes agree, in virtual seconds."""

STOP_LIMIT_S: Final = 120.0
"""How long an application may take to stop: aiohttp waits a minute for open connections."""

LOOK_EVERY_S: Final = 0.05
"""How often `run_until` looks."""

_NEXT_STREAM: Final = 1_000_003  # between the seeds of two loads of a world

RUN_LIMIT_S: Final = 3600.0
"""How long a test body may take, in virtual seconds, unless it is told otherwise."""


class World:
    """A mesh in virtual time; see the module's docstring.

    Attributes:
        scenario: What it is made of.
        seed: Decides everything that is drawn.
        depth: `B` for whole daemons, `A` for their cores.
        replay: How to play the test again, for reports; the pytest plugin sets it.
    """

    def __init__(
        self,
        regions: Sequence[Region],
        models: Sequence[Model] = (),
        *,
        seed: int = 1,
        depth: Depth = "B",
        network: NetworkPart | None = None,
        paths: Sequence[Path] = (),
        devices: dict[str, Device] | None = None,
        nodes: Sequence[Nodes] = (),
        name: str = "world",
    ) -> None:
        """Make a world; nothing runs before `start`.

        Args:
            regions: Where nodes are, and how many.
            models: What they serve; a model stands in for a real one and takes the time it is told.
            seed: Decides everything that is drawn.
            depth: `B`: whole daemons, up to 100; `A`: pure cores, up to 5,000.
            network: Delays, jitter and loss where no path says otherwise.
            paths: What differs between two regions.
            devices: Classes of devices besides the built-in ones.
            nodes: Further nodes, where those of a region differ.
            name: For reports and messages.

        Raises:
            ConfigError: if something of that does not fit together.
        """
        scenario = Scenario(
            name=name,
            title=f"A test's world of {len(regions)} {'region' if len(regions) == 1 else 'regions'}",
            depth=depth,
            seed=seed,
            regions={region.name: Place(at=region.at, place=region.place) for region in regions},
            paths=tuple(paths),
            network=network or NetworkPart(),
            devices=devices or {},
            nodes=(*(nodes_of(region) for region in regions if region.nodes), *nodes),
            models=tuple(models),
        )
        self._take(scenario, seed, depth)

    @classmethod
    def of(
        cls, scenario: Scenario | str, *, seed: int | None = None, depth: Depth | None = None
    ) -> Self:
        """Make the world of a scenario: its regions, nodes, models and network, but not its load and faults.

        Args:
            scenario: A scenario, a file or the name of one of the library.
            seed: Instead of the scenario's.
            depth: Instead of the scenario's.
        """
        if isinstance(scenario, str):
            scenario = read(scenario)
        world = cls.__new__(cls)
        world._take(scenario, scenario.seed if seed is None else seed, depth or scenario.depth)
        return world

    def _take(self, scenario: Scenario, seed: int, depth: Depth) -> None:
        if depth == "C":
            raise UsageError(
                "a world is in virtual time: depth A or B; `meshnode sim up` runs depth C"
            )
        self.scenario = msgspec.structs.replace(
            scenario, seed=seed, depth=depth, load=(), faults=(), expect=()
        )
        checks.check(self.scenario, METRICS)
        self.seed = seed
        self.depth = depth
        self._stage: Stage | None = None
        self._recording: Recording | None = None
        self.replay = f"World(..., seed={seed}, depth={depth!r})"
        self._closed = False
        self._inside = False
        self._loads = 0
        self._apps: list[tuple[web.AppRunner, VirtualHost]] = []

    def __repr__(self) -> str:
        if self._closed:
            where = "closed"
        else:
            where = f"at {self.now:.3f} s" if self.started else "not started"
        return f"<World {self.scenario.name}, seed {self.seed}, depth {self.depth}, {where}>"

    def __enter__(self) -> Self:
        """Return the world."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    # Starting and ending.

    def start(self, progress: Callable[[str], None] = lambda _text: None) -> Self:
        """Boot all nodes, wait until all know all and the models are ready; return the world.

        Args:
            progress: Told what it waits for.

        Raises:
            UsageError: if it was started or closed before.
            NotReachedError: if the mesh does not come about.
        """
        if self._stage is not None or self._closed:
            raise UsageError("a world starts once: make another one")
        self._stage = stage = stage_for(self.depth, self.scenario, self.seed)
        stage.start(progress)
        self._recording = Recording(stage, self.scenario, self.depth)
        self._recording.begin()
        return self

    @property
    def started(self) -> bool:
        """Whether `start` has succeeded."""
        return self._recording is not None

    def close(self) -> None:
        """Stop all applications, then end all nodes; may be called more than once."""
        if self._stage is None or self._closed:
            self._closed = True
            return
        try:
            while self._apps:
                runner, host = self._apps.pop()
                if host.running:
                    self._daemons.run(limited(runner.cleanup, STOP_LIMIT_S), host)
        finally:
            self._closed = True
            self._stage.close()

    # Who is there.

    @property
    def stage(self) -> Stage:
        """What it is played on, for whatever this class does not offer."""
        if self._stage is None or self._closed:
            state = "is closed" if self._closed else "has not started: call start() first"
            raise UsageError(f"the world {state}")
        return self._stage

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of all nodes."""
        return tuple(machine.name for machine in self.machines)

    @property
    def machines(self) -> tuple[Machine, ...]:
        """All nodes with their region and device."""
        return tuple(self.stage.machines)

    def sample(self) -> Sample:
        """Look at all nodes: who is up, whom each takes to be alive, what runs; its time is as `now`."""
        now = self.now
        return replace(self.stage.sample(), time_s=now)

    def select(self, *selection: str) -> list[str]:
        """Return the names of the nodes that a selection means: names, globs, `region:NAME`, `device:CLASS`."""
        return [machine.name for machine in select(selection, self.machines)]

    # Time.

    @property
    def now(self) -> float:
        """Seconds since the world has started."""
        return self._record.now()

    def run_for(self, seconds: float) -> None:
        """Let time pass.

        Raises:
            UsageError: if these are no seconds.
            InvariantBroken: if something happens that never may.
        """
        self._only_outside("run_for", "await asyncio.sleep(...)")
        require_seconds("run_for", seconds)
        self.stage.run_to(self.stage.now() + seconds)
        self._record.invariants.check()

    def run_until(
        self, condition: Callable[[], bool], limit_s: float, what: str = "what was waited for"
    ) -> float:
        """Let time pass until something is so, looked at twenty times a second.

        Args:
            condition: Whether it is.
            limit_s: How long to wait.
            what: Says in the error what did not come about.

        Returns:
            The seconds that it took.

        Raises:
            NotReachedError: if it is not so after `limit_s`.
        """
        require_seconds("limit_s", limit_s)
        began = self.now
        while not condition():
            if self.now - began >= limit_s:
                raise NotReachedError(
                    f"{what} did not come about within {limit_s:g} s (seed {self.seed}, at {self.now:.3f} s)"
                )
            self.run_for(LOOK_EVERY_S)
        return self.now - began

    # Faults.

    def apply(self, fault: Fault) -> None:
        """Do a fault now; it is undone after its `for_s`. Its `at_s` does not count: see `at`.

        Raises:
            UsageError: if it selects nothing, or this depth cannot do it.
        """
        self._possible(fault)
        self._do(fault)

    def undo(self, fault: Fault) -> None:
        """Undo a fault that was applied."""
        self._in_world(self.stage.undo, fault)
        self._record.mark(fault, undone=True)

    def at(self, time_s: float, fault: Fault) -> None:
        """Do a fault when `now` is this.

        Raises:
            UsageError: if the time has passed, the fault selects nothing, or this depth cannot do it.
        """
        self._possible(fault)
        require_seconds("the time of a fault", time_s)
        if time_s < self.now:
            raise UsageError(
                f"{time_s:g} s has passed already, it is {self.now:.3f} s; name a later time"
            )
        self.stage.at(self._record.stage_time(time_s), self._do, fault)

    # Asking.

    def call(
        self,
        model: str,
        *,
        via: str | None = None,
        work_s: float | None = None,
        timeout_s: float = 30.0,
        others: Sequence[str] = (),
    ) -> Outcome:
        """Let a client make one call, and let time pass until it has its answer.

        Args:
            model: For which model.
            via: Which node's gateway is asked; the first by default.
            work_s: How long it runs on a device of speed 1; the model's mean by default.
            timeout_s: What it may take.
            others: Gateways that are asked next if that one is lost.
        """
        self._only_outside("call", "session()")
        require_seconds("timeout_s", timeout_s)
        require_seconds("work_s", work_s or 0.0)
        call = call_of(self.scenario, self.machines, model, via, others, work_s, timeout_s)
        ends: list[Outcome] = []
        self._record.make(call, ends.append)
        self.run_until(lambda: bool(ends), timeout_s + 1.0, f"an answer of {model}")
        return ends[0]

    def load(self, load: Load, for_s: float) -> None:
        """Let clients send requests in the background from now on; `result` has what became of them.

        Args:
            load: Its shape; `start_s` and `end_s` count from now.
            for_s: How long.

        Raises:
            ConfigError: if it does not fit the world.
        """
        scenario = msgspec.structs.replace(self.scenario, load=(load,), duration_s=for_s)
        checks.check(scenario, METRICS)
        begin = self.stage.now()
        self._loads += 1
        for call in arrivals.calls(scenario, self.seed + (self._loads - 1) * _NEXT_STREAM):
            self.stage.at(begin + call.made_at_s, self._record.make, call, _ignore)

    # Checking and telling.

    def check(self, limit_s: float = SETTLE_S) -> None:
        """Let the mesh come to rest, then check all invariants: nothing lost, leaked or disagreed on.

        Faults that split the network or let nodes stand still (freeze, sleep) must be undone before;
        nodes may be down.

        Args:
            limit_s: How long it may take.

        Raises:
            NotReachedError: if calls stay open or nodes do not agree.
            InvariantBroken: if something is left over.
        """
        self._only_outside("check", "world.run first")
        require_seconds("limit_s", limit_s)
        self.stage.settle(limit_s)
        self._record.invariants.quiet()

    def result(self) -> Result:
        """Return what happened since the start, for a report or figures of one's own; also once it is closed."""
        if self._recording is None:
            return self._record.result()  # which says why there is none
        return self._recording.result()

    def report(self, path: str | pathlib.Path) -> None:
        """Write an HTML report of what happened since the start."""
        write_report([self.result()], path, replay=self.replay)

    # Depth B: real HTTP.

    def run(self, body: Body[T], *, region: str | None = None, limit_s: float = RUN_LIMIT_S) -> T:
        """Run an asynchronous test body on a client's host, in virtual time; return what it returns.

        Inside, `asyncio.sleep`, timeouts and time of the loop are virtual, and `aiohttp` reaches the
        world's hosts: nodes by `url`, applications by what `serve` returned.

        Args:
            body: A coroutine, or an asynchronous function without arguments.
            region: Where the client is; the first region by default.
            limit_s: What it may take, in virtual seconds.

        Raises:
            UsageError: at depth A, or inside another body.
            TimeoutError: if it takes longer.
            Exception: what a task in the background raised and nobody awaited, with a note that says so.
            InvariantBroken: if something happens that never may.
        """
        self._only_outside("run", "await the coroutine")
        require_seconds("limit_s", limit_s)
        stage = self._daemons
        host = stage.client_host(region or next(iter(self.scenario.regions)))
        told_before = [error for _, error in stage.loop.unhandled]
        self._inside = True
        try:
            with sessions_of_the_world():
                found = stage.run(limited(body, limit_s), host)
        finally:
            self._inside = False
        for each in (host, *(app_host for _, app_host in self._apps)):
            each.process.drop_done()  # so that a task which nobody keeps tells what it raised
        raise_unhandled(stage.loop.unhandled, told_before)
        self._record.invariants.check()
        return found

    def session(self, **options: Any) -> aiohttp.ClientSession:
        """Return an aiohttp session that shows the clients' API key; made and used inside `run`.

        Args:
            options: Those of `aiohttp.ClientSession`.
        """
        import aiohttp

        headers = {**self.headers, **options.pop("headers", {})}
        return aiohttp.ClientSession(headers=headers, **options)

    @property
    def headers(self) -> dict[str, str]:
        """What clients show gateways: an API key of the mesh."""
        return dict(self._daemons.mesh.client_headers)

    def url(self, node: str) -> str:
        """Return the URL of a node's gateway.

        Raises:
            UsageError: if there is no node of this name.
        """
        if node not in self.nodes:
            raise UsageError(f"there is no node {node!r}; there are {', '.join(self.nodes)}")
        return self._daemons.url(node)

    def serve(self, app: web.Application, *, region: str | None = None, name: str = "app") -> str:
        """Run an aiohttp application of one's own on a host of its own; return its URL.

        Args:
            app: The application; it runs until the world is closed.
            region: Where; the first region by default.
            name: The host's name; others can look it up.
        """
        self._only_outside("serve", "serve before run")
        stage = self._daemons
        host = stage.loop.add_host(name, region or next(iter(self.scenario.regions)))
        with sessions_of_the_world():
            self._apps.append((stage.run(serving(app, str(host.address)), host), host))
        return f"http://{name}:{APP_PORT}"

    # Inside.

    @property
    def _record(self) -> Recording:
        _ = self.stage
        assert self._recording is not None
        return self._recording

    @property
    def _daemons(self) -> VirtualStage:
        if self.depth != "B":
            raise UsageError(
                "at depth A there is no HTTP: make the world with depth='B', or use call()"
            )
        return cast("VirtualStage", self.stage)

    def _only_outside(self, name: str, instead: str) -> None:
        if self._inside:
            raise UsageError(f"World.{name} lets time pass, so a body cannot call it: {instead}")

    def _in_world(self, call: Callable[[Fault], None], fault: Fault) -> None:
        """Call something as the world, which no host's end takes along."""
        contextvars.Context().run(call, fault)

    def _possible(self, fault: Fault) -> None:
        checks.check(
            msgspec.structs.replace(
                self.scenario,
                faults=(msgspec.structs.replace(fault, at_s=0.0),),
                duration_s=604_800.0,
            ),
            METRICS,
        )
        why_not = self.stage.unsupported(fault)
        if why_not is not None:
            raise UsageError(f"{fault.verb} cannot be done at depth {self.depth}: {why_not}")

    def _do(self, fault: Fault) -> None:
        self._in_world(self.stage.apply, fault)
        self._record.mark(fault, undone=False)
        if fault.for_s is not None:
            self.stage.at(self.stage.now() + fault.for_s, self.undo, fault)


def _ignore(_outcome: Outcome) -> None:
    """Nobody waits for calls of a load."""
