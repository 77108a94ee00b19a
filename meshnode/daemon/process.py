"""One run of the daemon: `meshnode join`, from its first message to its goodbye.

The order matters. Lock the folder and decide which mesh this is; take the ports, so that nothing is
founded or used up by a start that fails; be admitted, when joining; only then say hello to others,
start the node, its models, its control channel and its gateway, so that `/readyz` means what it says.
Going down is the same backwards: say goodbye, finish what runs, close.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import random
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from meshnode import __version__
from meshnode.client.control import plan_control, remove_control, write_control
from meshnode.daemon.assembly import Assembly, assemble
from meshnode.daemon.credentials import Credentials
from meshnode.daemon.driver import Driver
from meshnode.datafolder import DataFolder
from meshnode.errors import ConfigError, InviteError, LinkLost
from meshnode.events import Leave
from meshnode.hardware import reachable_hosts
from meshnode.net import sockets
from meshnode.net.clock import RealClock
from meshnode.net.links import LinkHub
from meshnode.net.mdns import Announcement, Discovery
from meshnode.net.tls import ServerTls, server_tls
from meshnode.net.udp import DatagramSocket
from meshnode.options import DEFAULT_LISTEN, is_loopback
from meshnode.trust.invite import Invite
from meshnode.types import Address
from meshnode.wire.link import LinkConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from typing import Any

    from meshnode.options import JoinOptions

log = logging.getLogger("meshnode")

SEARCH_S = 2.0
"""How long a device without an invite listens for meshes on the local network."""

DRAIN_LIMIT_S = 30.0
"""How long running requests may take to finish when the node stops: the default deadline."""

GOODBYE_S = 0.3
"""How long a leaving node stays reachable at least, so that peers hear of it before they ask again.
Programs with a standing HTTP connection have as long to ask once more and be told to close it."""

HTTP_GOODBYE_LIMIT_S = 2.0
"""How long a leaving node waits for its gateway to be quiet before it tells the mesh: most requests
have ended by then; the others go on while it leaves, and may still be sent to other nodes."""

DRAIN_POLL_S = 0.02
"""How often a leaving node looks whether anything still runs."""

MDNS_RETRY_S = 10.0
"""How often members that were heard on the local network and have no link are dialled."""

MDNS_DIALS = 8
"""At most so many of them at a time, in turn: anyone may announce any number of names."""

INVITE_FOR_PRINT_S = 24 * 3600
"""How long the invite lasts that a founder prints; `meshnode invite --ttl` makes others."""

_NAMES_SHOWN = 8  # nodes of one mesh that a search prints
_PORT_TRIES = 20  # free TCP ports whose UDP twin is taken are rare; this many in a row are a fault


def run(options: JoinOptions) -> int:
    """Run the daemon until it is told to stop; return its exit code.

    Raises:
        ConfigError: if it cannot start; the message says what to do.
        InviteError: if the invite cannot be used.
        HandshakeError: if the mesh refused this node.
        LinkLost: if no address of the invite could be reached.
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # a peer's bad TLS is counted, not logged
    _collect_less_often()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_run(options))


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


async def _run(options: JoinOptions) -> int:
    folder = DataFolder(Path(options.data_dir))
    try:
        daemon = Daemon(options, folder)
        return await daemon.run()
    finally:
        folder.close()


class Daemon:
    """One daemon. `run` does everything."""

    def __init__(self, options: JoinOptions, folder: DataFolder) -> None:
        """Prepare; nothing is opened yet."""
        self._options = options
        self._folder = folder
        self._clock = RealClock()
        self._stop = asyncio.Event()
        self._discovery: Discovery | None = None
        self._driver: Driver | None = None
        self._signals: list[int] = []

    def __repr__(self) -> str:
        return f"<Daemon {self._options.name} in {self._options.data_dir}>"

    async def run(self) -> int:
        """Start, serve, stop; return the exit code."""
        self._catch_signals()
        try:
            async with contextlib.AsyncExitStack() as stack:
                return await self._run(stack)
        finally:
            self._release_signals()

    async def _run(self, stack: contextlib.AsyncExitStack) -> int:
        credentials = Credentials(self._folder, self._clock)
        for sentence in credentials.dropped:
            log.warning("%s", sentence)
        invite = self._check_mesh(credentials)
        driver = self._driver = Driver(
            folder=self._folder, credentials=credentials, clock=self._clock
        )
        hub, udp, mesh_address = await self._open_mesh(stack, credentials, driver)
        await self._require_free_http_port()
        if self._options.mdns:
            await self._listen_for_others(stack)
        if invite is not None:
            await self._unless_stopped(self._be_admitted(credentials, hub, invite))
        elif credentials.mesh_id is None:
            if not self._options.new and await self._unless_stopped(self._found_others()):
                return 2
            if not self._stop.is_set():
                credentials.found()
                log.info("founded a new mesh")
        if self._stop.is_set():  # before there was anything to serve
            return 128 + self._signals[0]
        hub.start_accepting()
        return await self._serve(stack, credentials, driver, hub, udp, mesh_address)

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

    # Which mesh

    def _check_mesh(self, credentials: Credentials) -> Invite | None:
        """Decide between rejoining (None), joining by invite, and founding (None, no mesh yet).

        An invite of its own mesh tells a member where the mesh is now.
        """
        options, mine = self._options, credentials.mesh_id
        if options.invite is None:
            if options.new and mine is not None:
                raise ConfigError(
                    f"{options.data_dir} belongs to mesh {mine} already; start it without --new, or "
                    "found another mesh with another --data-dir"
                )
            return None
        invite = Invite.parse(options.invite)
        if mine is None:
            invite.require_current(self._clock.wall_s())
            return invite
        if mine != invite.mesh_id:
            raise InviteError(
                f"{options.data_dir} belongs to mesh {mine}, and the invite to mesh "
                f"{invite.mesh_id}; name another folder with --data-dir, or remove this one to "
                "leave its mesh for good"
            )
        # Every address it knows may be an old one; those of the invite are of today.
        credentials.remember_seeds(invite.seeds)
        log.info(
            "this device is a member already; the invite's addresses are tried to find the mesh"
        )
        return None

    async def _listen_for_others(self, stack: contextlib.AsyncExitStack) -> None:
        interfaces = self._options.mdns_interfaces
        try:
            self._discovery = await stack.enter_async_context(
                Discovery(self._announced, interfaces)
            )
        except OSError as error:
            if interfaces:
                raise ConfigError(
                    f"--mdns-interface {', '.join(interfaces)}: mDNS does not work there ({error}); "
                    "give IP addresses of this machine"
                ) from error
            log.warning("mDNS does not work here (%s); nodes are found by invite only", error)

    async def _found_others(self) -> bool:
        """Search the local network; say what is there. True if there is a mesh to be admitted to."""
        if self._discovery is None:
            return False
        log.info("looking for meshes on the local network for %.0f s ...", SEARCH_S)
        await asyncio.sleep(SEARCH_S)
        meshes: dict[str, list[Announcement]] = {}
        for announcement in self._discovery.heard:
            meshes.setdefault(announcement.mesh_id, []).append(announcement)
        for mesh_id, nodes in sorted(meshes.items()):
            names = sorted(f"{each.name} ({each.addresses[0]})" for each in nodes)
            if len(names) > _NAMES_SHOWN:
                names[_NAMES_SHOWN:] = [f"{len(names) - _NAMES_SHOWN} more"]
            _print(f"Found mesh {mesh_id} with {', '.join(names)}.")
        if meshes:
            _print(
                "\nTo be admitted, run `meshnode invite` on one of these nodes and type the line that "
                "it prints here.\nTo found a separate mesh instead: meshnode join --new"
            )
        return bool(meshes)

    async def _be_admitted(self, credentials: Credentials, hub: LinkHub, invite: Invite) -> bool:
        where = ", ".join(str(seed) for seed in invite.seeds)
        log.info("joining mesh %s through %s", invite.mesh_id, where)
        credentials.invite = invite
        try:
            await hub.connect(invite.seeds, None)
        except LinkLost as error:
            raise LinkLost(
                f"no address of the invite could be reached ({error}); check that the inviting node "
                "runs, that both are on a common network, and that its port is open (TCP and UDP)"
            ) from error
        return True

    # The local network, once this node is a member

    def _announced(self, announcement: Announcement) -> None:
        """Dial a member that was heard; those that this finds no room for come with the rounds."""
        self._dial_heard([announcement])

    def _dial_heard(self, announcements: Iterable[Announcement]) -> None:
        driver = self._driver
        if driver is None or driver.node is None:
            return
        linked = set(driver.hub.peers()) | {driver.node.me}
        wanted = [
            each
            for each in announcements
            if each.mesh_id == driver.mesh_id and each.node_id not in linked
        ]
        if len(wanted) > MDNS_DIALS:
            wanted = random.sample(wanted, MDNS_DIALS)
        for each in wanted:
            driver.dial_heard(each.addresses, each.node_id)

    async def _meet_on_local_network(self, discovery: Discovery, mine: Announcement) -> None:
        """Announce this node, and dial members that were heard and are not linked."""
        try:
            await discovery.announce(mine)
        except OSError as error:
            log.warning("this node could not be announced by mDNS: %s", error)
        while True:
            self._dial_heard(discovery.heard)
            await asyncio.sleep(MDNS_RETRY_S)

    # Sockets

    async def _open_mesh(
        self, stack: contextlib.AsyncExitStack, credentials: Credentials, driver: Driver
    ) -> tuple[LinkHub, DatagramSocket, Address]:
        tls = _server_tls()
        hub = LinkHub(
            me=credentials.node_id,
            clock=self._clock,
            user=driver,
            tls=tls,
            dial_hello=credentials.dial_hello,
            accept_hello=credentials.accept_hello(tls),
            config=LinkConfig(),
        )
        stack.push_async_callback(hub.close)
        listen = self._options.listen
        driver.attach(hub, reachable_hosts(listen.host))
        for _ in range(_PORT_TRIES):
            try:
                bound = await hub.listen(listen)
            except OSError as error:
                raise _port_error("--listen", listen, error) from error
            try:
                udp = await DatagramSocket.open(bound, driver.datagram_received)
            except OSError as error:
                if listen.port != 0:
                    raise _port_error("--listen", listen, error) from error
                hub.unlisten()  # a free TCP port whose UDP twin is taken: try another one
                continue
            stack.push_async_callback(udp.close)
            return hub, udp, bound
        raise ConfigError(f"no port of {listen.host} is free for both TCP and UDP")

    async def _require_free_http_port(self) -> None:
        """Fail now rather than after a mesh was founded or joined."""
        http = self._options.http
        if http is None:
            return
        try:
            probe = await sockets.bind(http, socket.SOCK_STREAM)
        except OSError as error:
            raise _port_error("--http", http, error) from error
        probe.close()

    # Serving

    async def _serve(
        self,
        stack: contextlib.AsyncExitStack,
        credentials: Credentials,
        driver: Driver,
        hub: LinkHub,
        udp: DatagramSocket,
        mesh_address: Address,
    ) -> int:
        options = self._options
        plan = plan_control(options.data_dir, sys.platform)
        mesh = assemble(
            options=options,
            folder=self._folder,
            credentials=credentials,
            clock=self._clock,
            driver=driver,
            hub=hub,
            udp=udp,
            mesh_address=mesh_address,
        )
        stack.push_async_callback(mesh.close)
        if options.http is not None:
            await mesh.open_gateway(options.http)
        bound = await mesh.open_control(plan)
        write_control(options.data_dir, bound)
        stack.callback(remove_control, options.data_dir, bound)
        mesh.start()
        if options.models is not None:
            mesh.load_folder(Path(options.models))
        self._keep_options()
        self._welcome(mesh)
        if self._discovery is not None:
            meeting = asyncio.ensure_future(
                self._meet_on_local_network(self._discovery, _announcement(mesh))
            )
            stack.push_async_callback(_cancelled, meeting)
        await self._stop.wait()
        await self._say_goodbye(mesh)
        return 0

    def _keep_options(self) -> None:
        """Remember what the owner chose, now that it has proved to work."""
        try:
            self._folder.save_options(self._options.chosen)
        except ConfigError as error:
            log.error("the options are not kept for the next start: %s", error)

    def _welcome(self, mesh: Assembly) -> None:
        status = mesh.control.status()
        _print(f"meshnode {__version__}: node {status['name']} of mesh {status['mesh']}")
        _print(f"  mesh  {status['mesh_address']} (TCP and UDP)")
        _print(f"  HTTP  {status['http'] or 'none (--no-gateway)'}")
        _print(f"  data  {self._options.data_dir}")
        if not mesh.node.has_friends:
            line = mesh.control.create_invite(INVITE_FOR_PRINT_S)
            _print(
                f"\nOn the next device, within a day, type:\n\n  meshnode join {line['invite']}\n"
            )
            if is_loopback(self._options.listen.host):
                _print(
                    f"(This node listens on {self._options.listen.host}, which other devices cannot "
                    f"reach: for them, start it with --listen {DEFAULT_LISTEN}.)\n"
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

    # Signals

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self._signalled, number)
            except NotImplementedError:  # Windows: handlers run in the main thread
                signal.signal(number, lambda n, _: loop.call_soon_threadsafe(self._signalled, n))

    def _release_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)

    def _signalled(self, number: int) -> None:
        self._signals.append(number)
        self._stop.set()
        if len(self._signals) > 1:
            _exit_now(128 + number)


def _announcement(mesh: Assembly) -> Announcement:
    addresses = tuple(Address(*each) for each in mesh.record.addresses)
    return Announcement(mesh.node.me, str(mesh.credentials.mesh_id), mesh.record.name, addresses)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _server_tls() -> ServerTls:
    try:
        return server_tls()
    except OSError as error:
        raise ConfigError(
            f"no temporary file can be written ({error.strerror or error}); free some space, or name "
            "another folder in TMPDIR"
        ) from error


def _exit_now(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _port_error(option: str, address: Address, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {address.port} of {address.host} is in use by another program, perhaps another "
            f"meshnode; stop it, or name another port with {option} {address.host}:PORT"
        )
    if error.errno == errno.EACCES:
        return ConfigError(
            f"this user may not open port {address.port}; name one above 1023 with "
            f"{option} {address.host}:PORT"
        )
    reason = error.strerror or str(error)
    return ConfigError(f"cannot listen at {address}: {reason}; name another address with {option}")


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
