"""One run of the daemon: `meshnode join`, from its first message to its goodbye.

The order matters. Lock the folder and decide which mesh this is; take the ports, so that nothing is
founded or used up by a start that fails; be admitted, when joining; only then say hello to others,
start the node, its models, its control channel and its gateway, so that `/readyz` means what it says.
Going down is the same backwards: say goodbye, finish what runs, close.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from meshnode import __version__
from meshnode.client.control import plan_control, remove_control, write_control
from meshnode.daemon import eviction, grpc_entrance, logs, ports, triton_ports
from meshnode.daemon.composition import assemble
from meshnode.daemon.credentials import Credentials
from meshnode.daemon.driver import Driver
from meshnode.daemon.enforcement import apply_to_process
from meshnode.daemon.joining import be_admitted, check_mesh, come_in
from meshnode.daemon.local_network import LocalNetwork
from meshnode.daemon.logs import LOG_FILE, set_up_logging
from meshnode.daemon.model_folder import SOURCES_FOLDER
from meshnode.daemon.pairing import JoinDesk
from meshnode.daemon.surroundings import real_surroundings
from meshnode.daemon.waking import Waking
from meshnode.daemon.whereabouts import Whereabouts
from meshnode.datafolder import DataFolder
from meshnode.errors import ConfigError
from meshnode.events import Leave
from meshnode.gateway.bodies import bodies_limit_bytes
from meshnode.hardware.addresses import reachable_hosts
from meshnode.limits import (
    DRAIN_LIMIT_S,
    HTTP_GOODBYE_LIMIT_S,
    MAX_LINK_BUFFERED_BYTES,
    MAX_PART_BYTES,
)
from meshnode.net.links import LinkHub
from meshnode.net.listening import check_advertised, usable
from meshnode.net.mdns import Announcement
from meshnode.options import (
    DEFAULT_LISTEN,
    ONLY_HERE,
    is_loopback,
    only_here,
)
from meshnode.trust.reasons import TrustError
from meshnode.types import Address
from meshnode.wire.link import LinkConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from meshnode.daemon.assembly import Assembly
    from meshnode.daemon.logs import LogSetup
    from meshnode.daemon.surroundings import Surroundings
    from meshnode.gateway.tls import GatewayTls
    from meshnode.net.udp import DatagramSocket
    from meshnode.options import JoinOptions

log = logging.getLogger("meshnode")

_HANG_UP: int | None = getattr(signal, "SIGHUP", None)  # not on Windows

GOODBYE_S = 0.3
"""How long a leaving node stays reachable at least, so that peers hear of it before they ask again.
Programs with a standing HTTP connection have as long to ask once more and be told to close it."""

DRAIN_POLL_S = 0.02
"""How often a leaving node looks whether anything still runs."""

INVITE_FOR_PRINT_S = 24 * 3600
"""How long the invite lasts that a founder prints; `meshnode invite --ttl` makes others."""


def run(options: JoinOptions, on_ready: Callable[[], None] = lambda: None) -> int:
    """Run the daemon until it is told to stop; return its exit code.

    The data folder stays locked until the process has ended, and not only until this returns: whoever
    waits for the lock (`meshnode stop`) knows then that the process, too, is gone.

    Args:
        options: What it shall be.
        on_ready: Called once, when the node is a member and answers.

    Raises:
        ConfigError: if it cannot start; the message says what to do.
        InviteError: if the invite cannot be used.
        HandshakeError: if the mesh refused this node.
        LinkLost: if no address of the invite could be reached.
    """
    log_setup = set_up_logging(options.log_level, options.log_format)
    apply_to_process(options.max_cpus, options.nice)  # before there are threads
    _collect_less_often()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_run(options, log_setup, on_ready))


def _collect_less_often() -> None:
    """Look for garbage cycles less often than a short script should.

    Requests make thousands of short-lived objects that reference counts free; looking at them for
    cycles every 700 cost a tenth of a gateway's time and most of its slowest percent.
    """
    gc.freeze()  # what the imports made stays for good
    gc.set_threshold(20_000, 20, 50)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _run(options: JoinOptions, log_setup: LogSetup, on_ready: Callable[[], None]) -> int:
    folder = DataFolder(Path(options.data_dir))
    log_setup.write_to(folder.path.joinpath(*LOG_FILE))
    logs.identify(node=options.name)
    daemon = Daemon(options, folder, on_ready)
    code = await daemon.run()
    while daemon.goes_on_as is not None:  # with another key, so with new cores
        daemon = Daemon(
            daemon.goes_on_as,
            folder,
            _nothing if daemon.was_ready else on_ready,
            may_begin_anew=daemon.was_ready,
        )
        code = await daemon.run()
    return code


def _nothing() -> None:
    """Do nothing: whoever waited until the node was a member knows."""


class Daemon:
    """One daemon. `run` does everything.

    Attributes:
        goes_on_as: Set when it ended only to begin anew in this process: what it shall be then.
        was_ready: Whether it has been a member that answers.
    """

    def __init__(
        self,
        options: JoinOptions,
        folder: DataFolder,
        on_ready: Callable[[], None] = _nothing,
        *,
        may_begin_anew: bool = True,
        surroundings: Surroundings | None = None,
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            options: What it shall be.
            folder: Its data folder.
            on_ready: Called once, when the node is a member.
            may_begin_anew: Whether it may take another key if the mesh has revoked the one that it has.
            surroundings: The machine that it runs on; the real one by default.
        """
        self._surroundings = surroundings or real_surroundings()
        self._on_ready = on_ready
        self._may_begin_anew = may_begin_anew
        self._options = options
        self._folder = folder
        self._clock = self._surroundings.clock
        self._stop = asyncio.Event()
        self._driver: Driver | None = None
        self._network: LocalNetwork | None = None
        self._tls: GatewayTls | None = None
        self._mesh: Assembly | None = None
        self._forgets = False
        self._evicted: str | None = None  # why
        self._signals: list[int] = []
        self.goes_on_as: JoinOptions | None = None
        self.was_ready = False

    def __repr__(self) -> str:
        return f"<Daemon {self._options.name} in {self._options.data_dir}>"

    @property
    def mesh(self) -> Assembly | None:
        """Its parts, from when it is a member on."""
        return self._mesh

    async def run(self) -> int:
        """Start, serve, stop; return the exit code."""
        self._catch_signals()
        try:
            async with contextlib.AsyncExitStack() as stack:
                code = await self._run(stack)
            if self._forgets:
                self._folder.forget()
                log.info("the mesh is forgotten; this device belongs to none now")
            return code
        finally:
            self._release_signals()

    async def _run(self, stack: contextlib.AsyncExitStack) -> int:
        eviction.begin_anew(self._folder, self._options, self._clock.wall_s())
        credentials = Credentials(self._folder, self._clock, self._surroundings.random_bytes)
        for sentence in credentials.dropped:
            log.warning("%s", sentence)
        invite = check_mesh(self._options, credentials, self._clock.wall_s())
        driver = self._driver = Driver(
            folder=self._folder,
            credentials=credentials,
            clock=self._clock,
            reported=self._surroundings.reported,
        )
        desk = JoinDesk(credentials, self._clock)
        hub, udp, mesh_address = await self._open_mesh(stack, credentials, driver, desk)
        if self._options.http is not None:
            await ports.require_free("--http", self._options.http)
            await grpc_entrance.check(self._options)
            await triton_ports.check(self._options)
            self._tls = _gateway_tls(self._options)
        network = self._network = LocalNetwork(driver, self._options.mdns_interfaces)
        if self._options.mdns:
            await network.open(stack)
        try:
            if invite is not None:
                await self._unless_stopped(be_admitted(credentials, hub, invite))
            elif credentials.mesh_id is None:
                entering = come_in(self._options, credentials, hub, network, driver.kinds)
                came_in = await self._unless_stopped(entering)
                if not came_in and not self._stop.is_set():
                    return 2
        except TrustError as error:
            if not self._may_begin_anew or not eviction.is_of_an_old_key(error, credentials):
                raise
            eviction.take_another_key(self._folder)
            self.goes_on_as = self._options
            return 0
        if self._stop.is_set():  # before there was anything to serve
            return 128 + self._signals[0]
        hub.start_accepting()
        return await self._serve(stack, credentials, driver, hub, udp, mesh_address, desk)

    async def _unless_stopped(self, work: Coroutine[Any, Any, bool]) -> bool:
        """Wait for this work; when a signal to stop comes first, cancel it and return False."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not working.done():
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
        return not working.cancelled() and working.result()

    # Sockets

    async def _open_mesh(
        self,
        stack: contextlib.AsyncExitStack,
        credentials: Credentials,
        driver: Driver,
        desk: JoinDesk,
    ) -> tuple[LinkHub, DatagramSocket, Address]:
        tls = self._surroundings.mesh_tls(self._folder.path)
        hub = LinkHub(
            me=credentials.node_id,
            clock=self._clock,
            user=driver,
            tls=tls,
            dial_hello=credentials.dial_hello,
            accept_hello=credentials.accept_hello(tls),
            config=link_config(self._options.max_memory_bytes),
            pairing=desk,
            dial_tls=self._surroundings.dial_tls(),
        )
        stack.push_async_callback(hub.close)
        listen = usable(self._options.listen)
        check_advertised(self._options.advertise, listen)
        driver.attach(hub, reachable_hosts(listen.host))
        udp, bound = await ports.open_mesh(hub, listen, driver.datagram_received)
        stack.push_async_callback(udp.close)
        return hub, udp, bound

    # Serving

    async def _serve(
        self,
        stack: contextlib.AsyncExitStack,
        credentials: Credentials,
        driver: Driver,
        hub: LinkHub,
        udp: DatagramSocket,
        mesh_address: Address,
        desk: JoinDesk,
    ) -> int:
        options = self._options
        logs.identify(mesh=credentials.mesh_id)
        plan = plan_control(options.data_dir, self._surroundings.platform)
        driver.on_evicted = self._was_evicted
        mesh = self._mesh = assemble(
            options=options,
            folder=self._folder,
            credentials=credentials,
            clock=self._clock,
            driver=driver,
            hub=hub,
            udp=udp,
            mesh_address=mesh_address,
            desk=desk,
            surroundings=self._surroundings,
        )
        stack.push_async_callback(mesh.close)
        mesh.control.on_shutdown = self._shut_down
        mesh.control.trust.on_rotated = self._go_on
        if options.http is not None:
            await mesh.open_gateway(
                options.http,
                options.allow_hosts,
                self._tls,
                require_key=options.is_key_required_here,
                cors_origins=options.cors_origins,
            )
            await grpc_entrance.open_entrance(mesh, options, self._tls)
            await triton_ports.open_entrances(mesh, options, self._tls)
        bound = await mesh.open_control(plan)
        write_control(options.data_dir, bound)
        stack.callback(remove_control, options.data_dir, bound)
        mesh.start()
        if options.models is not None:
            copies = Path(options.data_dir) / SOURCES_FOLDER
            mesh.follow_models(options.models, options.models_poll_s, copies)
        self._keep_options()
        self._welcome(mesh)
        whereabouts = Whereabouts(mesh, options, mesh_address)
        stack.push_async_callback(_cancelled, asyncio.ensure_future(whereabouts.follow()))
        waking = Waking(self._clock, driver.handle, hub.prove_links, whereabouts.look)
        stack.push_async_callback(_cancelled, asyncio.ensure_future(waking.follow()))
        if self._network is not None and options.mdns:
            meeting = asyncio.ensure_future(self._network.meet(lambda: _announcement(mesh)))
            stack.push_async_callback(_cancelled, meeting)
        self.was_ready = True
        self._on_ready()
        self._surroundings.notify("READY=1")
        await self._stop.wait()
        if self.goes_on_as is None:
            self._surroundings.notify("STOPPING=1")
        await self._say_goodbye(mesh)
        if self._evicted is None:
            return 0
        mesh_id = str(credentials.mesh_id)
        eviction.remember(self._folder, mesh_id, self._evicted, self._clock.wall_s())
        return eviction.EXIT_CODE

    def _keep_options(self) -> None:
        """Remember what the owner chose, now that it has proved to work."""
        try:
            self._folder.save_options(self._options.chosen)
        except ConfigError as error:
            log.error("the options are not kept for the next start: %s", error)

    def _welcome(self, mesh: Assembly) -> None:
        status, say = mesh.control.status(), self._surroundings.say
        say(f"meshnode {__version__}: node {status['name']} of mesh {status['mesh']}")
        say(f"  mesh  {status['mesh_address']} (TCP and UDP)")
        say(f"  HTTP  {status['http'] or 'none (--no-gateway)'}")
        if status["grpc"] is not None:
            say(f"  gRPC  {status['grpc']}")
        say(f"  data  {self._options.data_dir}")
        self._tell_of_callers(mesh)
        if not mesh.node.has_friends:
            line = mesh.control.trust.create_invite(INVITE_FOR_PRINT_S)
            say(f"\nOn the next device, within a day, type:\n\n  meshnode join {line['invite']}\n")
            if is_loopback(self._options.listen.host):
                say(
                    f"(This node listens on {self._options.listen.host}, which other devices cannot "
                    f"reach: for them, start it with --listen {DEFAULT_LISTEN}.)\n"
                )
            elif only_here(line["addresses"]):
                say(f"{ONLY_HERE}\n")

    def _tell_of_callers(self, mesh: Assembly) -> None:
        """Say what callers need of a gateway that other machines reach, or a proxy does."""
        http, say = self._options.http, self._surroundings.say
        if http is None or mesh.control.http is None:
            return
        if self._options.is_key_required_here:
            say("        every caller needs a key: meshnode keys create NAME")
        elif not is_loopback(http.host):
            say("        other machines need a key: meshnode keys create NAME")
        if is_loopback(http.host):
            return
        if (
            http.host in ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to
            and not self._options.is_key_required_here
        ):
            scheme, port = mesh.control.http.split(":")[0], mesh.control.http.rpartition(":")[2]
            say(f"        programs on this machine need none: {scheme}://localhost:{port}")
        if self._tls is None:
            log.warning(
                "the gateway at %s has no TLS: API keys and data cross the network readably; "
                "give it --tls-cert and --tls-key, or keep it in a network that you trust",
                http,
            )

    async def _say_goodbye(self, mesh: Assembly) -> None:
        """Send clients elsewhere, tell the others, finish what runs, at most `DRAIN_LIMIT_S`.

        Clients come first: as long as this node is a full member, what they still ask is served like
        before. After the goodbye peers ask nothing of this node, while it may still ask them.
        """
        log.info("leaving: finishing what runs (again to exit at once)")
        begin = self._clock.now()
        mesh.control.leaving = True
        if mesh.control.http is not None:
            await mesh.stop_http()
            await self._quiet(lambda: mesh.http_busy, min(HTTP_GOODBYE_LIMIT_S, DRAIN_LIMIT_S))
        mesh.driver.handle(Leave())
        mesh.hub.go_away()
        mesh.close_idle_http()
        await self._quiet(lambda: mesh.busy, DRAIN_LIMIT_S - (self._clock.now() - begin))
        mesh.driver.stop()

    async def _quiet(self, is_busy: Callable[[], bool], limit_s: float) -> None:
        """Wait until nothing has run for `GOODBYE_S`, at most so long."""
        begin = quiet_since = self._clock.now()
        while (now := self._clock.now()) - begin < limit_s:
            if is_busy():
                quiet_since = now
            elif now - quiet_since >= GOODBYE_S:
                return
            await asyncio.sleep(DRAIN_POLL_S)

    # Membership that ends while it runs

    def _was_evicted(self, why: str) -> None:
        """End, because this node is no member any more; unless it gave its membership to another key."""
        if self._mesh is not None and self._mesh.control.trust.rotates:
            return
        self._evicted = why
        self._stop.set()

    def _go_on(self) -> None:
        """End and begin anew with the key that this node has now, at the same addresses."""
        assert self._mesh is not None
        control = self._mesh.control
        self.goes_on_as = eviction.as_successor(
            self._options, control.mesh_address, control.http, control.grpc
        )
        self._stop.set()

    # Signals

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _stop_signals():
            try:
                loop.add_signal_handler(number, self._signalled, number)
            except NotImplementedError:  # Windows: handlers run in the main thread
                signal.signal(number, lambda n, _: loop.call_soon_threadsafe(self._signalled, n))

    def _release_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _stop_signals():
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)

    def _reopened(self) -> bool:
        """Open the access log anew, as SIGHUP asks for where no terminal was closed; False if there is no such file."""
        return self._mesh is not None and self._mesh.reopen_access_log()

    def _shut_down(self, leave: bool) -> None:
        """Stop as after a signal, because the owner asked for it; forget the mesh too, if told."""
        self._forgets = self._forgets or leave
        self._stop.set()

    def _signalled(self, number: int) -> None:
        if number == _HANG_UP and not self._options.on_terminal and self._reopened():
            return
        self._signals.append(number)
        self._stop.set()
        if len(self._signals) > 1:
            self._surroundings.exit_now(128 + number)


def link_config(max_memory_bytes: int | None) -> LinkConfig:
    """Return how links behave on a node that may take so much memory, or any amount.

    What a peer sends on one link may take as much as all bodies that a gateway's callers send.
    """
    if max_memory_bytes is None:
        return LinkConfig()
    limit_bytes = min(MAX_LINK_BUFFERED_BYTES, bodies_limit_bytes(max_memory_bytes))
    return LinkConfig(
        max_part_bytes=min(MAX_PART_BYTES, limit_bytes), max_buffered_bytes=limit_bytes
    )


def _gateway_tls(options: JoinOptions) -> GatewayTls | None:
    if options.tls_cert is None or options.tls_key is None:
        return None
    from meshnode.gateway.tls import GatewayTls  # only where it is asked for

    return GatewayTls(options.tls_cert, options.tls_key)


def _stop_signals() -> tuple[int, ...]:
    """Return the signals that mean a polite stop; a closed terminal is one, unless under nohup."""
    if _HANG_UP is None or signal.getsignal(_HANG_UP) is signal.SIG_IGN:
        return (signal.SIGINT, signal.SIGTERM)
    return (signal.SIGINT, signal.SIGTERM, _HANG_UP)


def _announcement(mesh: Assembly) -> Announcement:
    record = mesh.node.membership.record
    addresses = tuple(Address(*each) for each in record.addresses)
    mesh_id, gateway = str(mesh.credentials.mesh_id), mesh.control.http or ""
    return Announcement(mesh.node.me, mesh_id, record.name, addresses, gateway)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
