"""A whole daemon on a virtual host: the real `meshnode.daemon.process.Daemon`, in other surroundings.

Its gateway speaks HTTP through aiohttp, its links say hello, its files lie in a real folder and its
models are loaded from them. Other than on a real machine are

- time, which is the host's (`meshnode.sim.virtual.host`),
- chance: each boot has one stream, from the seed, the node's name and the number of the boot,
- the network, and TLS, of which only what it costs and what it proves is there
  (`meshnode.sim.virtual.tls`),
- what models compute: they take their time and answer nothing that means anything
  (`meshnode.sim.stand_in`),
- the machine: what the scenario says of the device (`meshnode.sim.stand_in_machine`).
"""

from __future__ import annotations

import hashlib
import random
import signal
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from meshnode.daemon.process import Daemon
from meshnode.daemon.surroundings import Surroundings
from meshnode.errors import MeshError, UsageError
from meshnode.models.serving.server import ModelServer
from meshnode.net.certificate import self_signed
from meshnode.net.tls import ServerTls
from meshnode.options import DEFAULT_HTTP_PORT, DEFAULT_MESH_PORT, JoinOptions
from meshnode.sim.stand_in import StandInRuntime
from meshnode.sim.stand_in_machine import StandInHardware
from meshnode.sim.stand_in_server import StandInServer
from meshnode.sim.virtual.folder import VirtualDataFolder, VirtualDisk
from meshnode.sim.virtual.tls import StandInContext
from meshnode.types import Address, ReplicaState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from meshnode.daemon.assembly import Assembly
    from meshnode.effects import Emit
    from meshnode.models.runtimes.base import Runtime
    from meshnode.node import Node
    from meshnode.sim.stage import Machine
    from meshnode.sim.virtual.host import VirtualHost
    from meshnode.types import InferRequest

_GOES_ON: Final = (
    64  # keys that one boot may take after another; more is a daemon that turns in circles
)


class Work(NamedTuple):
    """What a model server really has to do.

    Attributes:
        in_system: Requests that run or wait.
        slots: Requests that can run at once, over all versions that are ready.
        serving: Versions that are ready.
    """

    in_system: int = 0
    slots: int = 0
    serving: int = 0


def work_of(server: ModelServer) -> Work:
    """Return what a model server has to do, whatever it tells others."""
    ready = [each.manifest for each in server.states() if each.state is ReplicaState.READY]
    reports = [ModelServer.load_report(server, each.model, each.version) for each in ready]
    return Work(
        sum(report.in_system for report in reports),
        sum(report.slots for report in reports),
        len(reports),
    )


class VirtualWorkers:
    """What runs a model's requests beside the event loop: executor functions of the virtual loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Work on this loop."""
        self._loop = loop

    def submit(self, work: Callable[..., Any], /, *args: Any) -> object:
        """Run it soon; what it spends delays what comes of it."""
        return self._loop.run_in_executor(None, work, *args)

    def shutdown(self, wait: bool = True) -> None:
        """Do nothing: no thread waits for work."""


class VirtualNode:
    """One device of a mesh: its host, its disk, and the daemon that runs on it.

    Attributes:
        machine: What the scenario says of it.
        host: Where it runs.
        path: Its data folder.
        disk: What outlives its boots.
        hardware: What its daemon finds.
        boots: How often it was started.
        daemon: The present or last one.
        ready: Whether the present one is a member that answers.
        left: Whether it ended by leaving.
        exit_code: What the last one ended with; None while one runs, or if it was killed.
        failure: Why the last one could not go on.
        reported: Told of everything that its cores report.
        on_made: Told of the cores of each boot before they hear of anything.
        on_request: Told of each request that its models are given.
        on_ended: Told when a boot's process is gone.
        membership: Settings of membership that differ from the preset's.
        busy_s: Seconds of work that its models were given, by beginning and end.
    """

    def __init__(
        self,
        machine: Machine,
        host: VirtualHost,
        path: Path,
        seed: int,
        reported: Callable[[VirtualNode, Emit], None],
    ) -> None:
        """Prepare a device that was never switched on.

        Args:
            machine: What it is.
            host: Where it runs.
            path: Its data folder, which need not exist.
            seed: Of the world.
            reported: Told of everything that its cores report.
        """
        self.machine = machine
        self.host = host
        self.path = path
        self.seed = seed
        self.reported = reported
        self.disk = VirtualDisk()
        self.hardware = StandInHardware(machine.device, self._utilisation)
        self.boots = 0
        self.daemon: Daemon | None = None
        self.ready = False
        self.left = False
        self.exit_code: int | None = None
        self.failure: BaseException | None = None
        self.membership: Mapping[str, float] = {}
        self._slowness = 1.0
        self._full = 0  # faults that fill its disk
        self.fail_share = 0.0
        self.load_share = 1.0
        self.load_age_s = 0.0
        self.busy_s: deque[tuple[float, float]] = deque()
        self.on_made: Callable[[VirtualNode, Node], None] = lambda _node, _cores: None
        self.on_request: Callable[[InferRequest], None] = lambda _request: None
        self.on_ended: Callable[[VirtualNode], None] = lambda _node: None
        self._folder: VirtualDataFolder | None = None
        self._server: StandInServer | None = None
        self._runtime: StandInRuntime | None = None

    def __repr__(self) -> str:
        return f"<VirtualNode {self.machine.name}, {self.state}>"

    @property
    def name(self) -> str:
        """Its name."""
        return self.machine.name

    @property
    def mesh_address(self) -> Address:
        """Where its mesh listens."""
        return Address(self.host.address, DEFAULT_MESH_PORT)

    @property
    def http_address(self) -> Address:
        """Where its gateway listens, if it has one."""
        return Address(self.host.address, DEFAULT_HTTP_PORT)

    @property
    def state(self) -> str:
        """As `meshnode.sim.stage.NodeSample` has it."""
        if self.host.off:
            return "off"
        if not self.host.running:
            return "left" if self.left else "down"
        return "frozen" if self.host.frozen else "up"

    @property
    def is_going(self) -> bool:
        """Whether its daemon is on its way out, or about to begin anew as another node."""
        return self.left or self.daemon is None or self.daemon.goes_on_as is not None

    @property
    def mesh(self) -> Assembly | None:
        """The parts of the running daemon, from when it is a member on."""
        if self.daemon is None or not self.host.running:
            return None
        return self.daemon.mesh

    @property
    def parts(self) -> Assembly:
        """The same.

        Raises:
            UsageError: if it is not there.
        """
        mesh = self.mesh
        if mesh is None:
            raise UsageError(f"the daemon of {self.name} is no running member")
        return mesh

    @property
    def models(self) -> StandInServer | None:
        """What serves models in the present boot."""
        return self._server if self.mesh is not None else None

    # Starting and ending.

    def start(self, invite: str | None = None, *, founds: bool = False) -> None:
        """Switch the daemon on, with an invite, as the founder, or as the member that it is already."""
        if not self.host.running:
            self.host.boot()
        elif self.daemon is not None:
            raise UsageError(f"the daemon of {self.name} runs already")
        self.boots += 1
        self.ready = self.left = False
        self.exit_code = self.failure = None
        self.host.run(self._run(self._options(invite, founds)), name=f"daemon of {self.name}")

    def crash(self) -> None:
        """Kill the process."""
        self.host.crash()
        self._ended()

    def power_off(self) -> None:
        """Cut the power."""
        self.host.power_off()
        self._ended()

    def leave(self) -> None:
        """Ask the daemon to end, as `meshnode stop` and systemd do."""
        self.left = True
        self.host.signal(signal.SIGTERM)

    def slow(self, factor: float) -> None:
        """Let all that it computes take `factor` times as long as before."""
        self._slowness *= factor
        self.host.slow(self._slowness)

    def fill_disk(self) -> Callable[[], None]:
        """Let nothing more be written; return what undoes it."""
        self._full += 1
        self.disk.is_full = self.hardware.is_disk_full = True

        def make_room() -> None:
            self._full -= 1
            self.disk.is_full = self.hardware.is_disk_full = self._full > 0

        return make_room

    def drain(self, percent: float) -> Callable[[], None]:
        """Take it off the mains, with this charge; return what puts it back on them."""
        self.hardware.battery_percent = percent

        def charge() -> None:
            self.hardware.battery_percent = None

        return charge

    def close(self) -> None:
        """Release what this process holds for it."""
        self._ended()

    def misbehave(
        self,
        *,
        fail_share: float | None = None,
        load_share: float | None = None,
        load_age_s: float | None = None,
    ) -> None:
        """Let models fail, or their load be told wrongly; what is None stays as it is."""
        self.fail_share = self.fail_share if fail_share is None else fail_share
        self.load_share = self.load_share if load_share is None else load_share
        self.load_age_s = self.load_age_s if load_age_s is None else load_age_s
        if self._runtime is not None:
            self._runtime.fail_share = self.fail_share
        if self._server is not None:
            self._server.load_share = self.load_share
            self._server.load_age_s = self.load_age_s

    def busy_between(self, start_s: float, end_s: float) -> float:
        """Return the seconds of work of all its slots between two times; forgets what ended before."""
        while self.busy_s and self.busy_s[0][1] <= start_s:
            self.busy_s.popleft()
        return sum(max(0.0, min(end, end_s) - max(begin, start_s)) for begin, end in self.busy_s)

    # Inside.

    async def _run(self, options: JoinOptions) -> None:
        """Do what `meshnode.daemon.process.run` does, on this host."""
        rng = random.Random(f"{self.seed}/node/{self.name}/{self.boots}")
        surroundings = self._surroundings(rng)
        may_begin_anew = False
        try:
            folder = self._folder = VirtualDataFolder(self.path, self.disk, rng.randbytes)
            for _ in range(_GOES_ON):
                daemon = self.daemon = Daemon(
                    options,
                    folder,
                    self._on_ready,
                    may_begin_anew=may_begin_anew,
                    surroundings=surroundings,
                )
                self.exit_code = await daemon.run()
                if daemon.goes_on_as is None:
                    break
                options, may_begin_anew = daemon.goes_on_as, daemon.was_ready
        except MeshError as error:
            self.failure = error
            self.exit_code = 1
        except Exception as error:
            self.failure = error
            self.exit_code = 1
            raise
        finally:
            self.host.loop.at(self.host.loop.now(), self._stopped, self.host.process)

    def _stopped(self, process: object) -> None:
        """The program has ended by itself: its process is gone with all that it has left over."""
        if self.host.running and self.host.process is process:
            self.host.crash()
            self._ended()

    def _ended(self) -> None:
        if self.daemon is not None:
            self.on_ended(self)
        self.ready = False
        self.daemon = None
        self._server = None
        self._runtime = None
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.close()

    def _on_ready(self) -> None:
        self.ready = True

    def _options(self, invite: str | None, founds: bool) -> JoinOptions:
        return JoinOptions(
            invite=invite,
            name=self.name,
            region=self.machine.region,
            zone="",
            labels=(("device", self.machine.device_class),),
            listen=self.mesh_address,
            http=self.http_address if self.machine.gateway else None,
            data_dir=str(self.path),
            models=None,
            new=founds,
            mdns=False,
            rejoin=invite is None and not founds,
            region_chosen=True,
            only_on_mains=True,
            membership=self.membership,
        )

    def _surroundings(self, rng: random.Random) -> Surroundings:
        return Surroundings(
            clock=self.host.clock,
            random_bytes=rng.randbytes,
            hardware=self.hardware,
            runtimes=lambda _environment: {StandInRuntime.name: self._make_runtime(rng)},
            model_server=self._make_server,
            mesh_tls=lambda _folder: self._mesh_tls(rng),
            dial_tls=StandInContext,
            platform="win32",  # where the owner's channel is TCP on loopback, which every host has
            say=_unheard,
            notify=_unheard,
            exit_now=self._exit_now,
            made=lambda node: self.on_made(self, node),
            reported=lambda emit: self.reported(self, emit),
        )

    def _make_runtime(self, rng: random.Random) -> StandInRuntime:
        runtime = self._runtime = StandInRuntime(
            self._spend,
            random.Random(rng.getrandbits(64)),
            speed=self.machine.device.speed,
            device_class=self.machine.device_class,
        )
        runtime.fail_share = self.fail_share
        return runtime

    def _make_server(self, runtimes: Mapping[str, Runtime], cores: int) -> StandInServer:
        loop = self.host.loop
        server = self._server = StandInServer(
            runtimes,
            cores=cores,
            slots=self.machine.device.slots,
            now=self.host.clock.now,
            timer=self.host.clock.now,
            make_workers=lambda _count, _name: VirtualWorkers(loop),
        )
        server.load_share, server.load_age_s = self.load_share, self.load_age_s
        server.on_request = self.on_request
        return server

    def _mesh_tls(self, rng: random.Random) -> ServerTls:
        certificate, _ = self_signed(rng.randbytes)
        context = StandInContext(certificate, server_side=True)
        return ServerTls(context, hashlib.sha256(certificate).digest())

    def _spend(self, seconds: float) -> None:
        begin = self.host.loop.now()
        self.host.spend(seconds)
        self.busy_s.append((begin, self.host.loop.now()))

    def _utilisation(self) -> float:
        """Return the share of the slots that work, in coarse steps as it goes into records."""
        server = self._server
        if server is None:
            return 0.0
        work = work_of(server)
        return min(1.0, work.in_system / work.slots) if work.slots else 0.0

    def _exit_now(self, code: int) -> NoReturn:
        """A second signal: the process ends here and now, and nobody hears of what it was doing."""
        self.exit_code = code
        self.crash()
        raise SystemError("the process has ended")


def _unheard(text: str) -> None:
    """Nobody sits at a virtual daemon's terminal, and nothing supervises it."""
    del text
