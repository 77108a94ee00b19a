"""What asyncio asks of a loop besides running calls: error handlers, signals, settings, and what there is not."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, NoReturn, TypeVarTuple

from meshnode.sim.virtual.host import process_of, running_process
from meshnode.sim.virtual.tasks import VirtualHandle

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.sim.lines import Lines
    from meshnode.sim.network import Network
    from meshnode.sim.trace import Trace
    from meshnode.sim.virtual.host import Process, VirtualHost

    Unhandled = Callable[[Process, str, BaseException | None], None]

Ts = TypeVarTuple("Ts")

log = logging.getLogger("asyncio")  # where asyncio's own loops write what nobody catches

MAX_UNHANDLED = 1000
"""Exceptions that nobody caught and that are kept; the oldest fall out."""


def _lacking(what: str) -> Any:
    """Return a method that says that there is no such thing here."""

    def refuse(loop: LoopBase, *args: object, **options: object) -> NoReturn:
        raise NotImplementedError(f"{loop!r} has no {what}")

    return refuse


def _owner(context: dict[str, Any]) -> Process | None:
    """Return whose task or future an exception was left in: it may be dropped while another process runs."""
    for kind in ("task", "future"):
        process: Process | None = getattr(context.get(kind), "process", None)
        if process is not None:
            return process
    return None


class LoopBase(asyncio.AbstractEventLoop):
    """The part of `VirtualLoop` that keeps no time.

    Attributes:
        network: The paths between hosts, by their names.
        lines: What is on its way on connections between hosts.
        trace: Covers every delivery between hosts.
        hosts: By name, in the order in which they were added.
        by_address: By IPv4 address.
        names: What other names resolve to, besides those of hosts: addresses.
        world: The process of what runs on no host.
        unhandled: What nobody caught, as (process, exception); at most `MAX_UNHANDLED`.
        on_unhandled: Told of everything that nobody caught: the process, what happened, and the exception if
            there is one.
    """

    network: Network
    lines: Lines
    trace: Trace
    world: Process

    def __init__(self) -> None:
        """Begin with no hosts."""
        self.hosts: dict[str, VirtualHost] = {}
        self.by_address: dict[str, VirtualHost] = {}
        self.names: dict[str, tuple[str, ...]] = {}
        self.unhandled: deque[tuple[str, BaseException]] = deque(maxlen=MAX_UNHANDLED)
        self.on_unhandled: Unhandled = lambda _process, _what, _error: None
        self._closed = False
        self._numbers = 0
        self._exception_handler: Any = None
        self._task_factory: Any = None

    def next_number(self) -> int:
        """Count: the hash of the next task or future that needs one, the number of a connection."""
        self._numbers += 1
        return self._numbers

    # Settings.

    def get_debug(self) -> bool:
        """Whether asyncio's debug mode is on: never, as it slows everything down."""
        return False

    def set_debug(self, enabled: bool) -> None:
        """Do nothing."""

    def set_task_factory(self, factory: Any) -> None:
        """Make tasks otherwise; theirs is then to hash alike in every run."""
        self._task_factory = factory

    def get_task_factory(self) -> Any:
        """Return what was set."""
        return self._task_factory

    def set_default_executor(self, executor: object) -> None:
        """Do nothing: functions run inline."""

    async def shutdown_asyncgens(self) -> None:
        """Do nothing: a generator that nobody iterates any more is closed when it is dropped."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncio's signature
        """Do nothing: there is none."""

    # Errors.

    def set_exception_handler(self, handler: Any) -> None:
        """Tell somebody of what nobody caught, instead of logging it."""
        self._exception_handler = handler

    def get_exception_handler(self) -> Any:
        """Return what was set."""
        return self._exception_handler

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """Log what nobody caught."""
        exception = context.get("exception")
        log.error("%s", context.get("message") or "unhandled exception", exc_info=exception)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Note and tell what nobody caught; of a process that died nothing is told."""
        process = _owner(context) or running_process()
        if self._closed or (process is not None and process.dead):
            return
        self.not_caught(process, str(context.get("message")), context.get("exception"))
        if self._exception_handler is not None:
            self._exception_handler(self, context)
        else:
            self.default_exception_handler(context)

    def not_caught(self, process: Process | None, what: str, error: BaseException | None) -> None:
        """Note what nobody caught, or what was caught only to be written to a log as a defect."""
        process = process or self.world
        if error is not None:
            self.unhandled.append((repr(process), error))
        self.on_unhandled(process, what, error)

    def protocol_failed(self, what: str, error: BaseException) -> None:
        """Tell of an exception that a protocol's callback raised."""
        message = f"Fatal error: protocol.{what}() call failed."
        self.call_exception_handler({"message": message, "exception": error})

    # Signals.

    def add_signal_handler(self, sig: int, callback: Callable[[*Ts], object], *args: *Ts) -> None:
        """Let `VirtualHost.signal` make this call on the host that asks for it."""
        context = copy_context()
        process = process_of(context) or self.world
        process.signal_handlers[int(sig)] = VirtualHandle(callback, args, process, context)

    def remove_signal_handler(self, sig: int) -> bool:
        """Forget the call; return whether there was one."""
        process = running_process() or self.world
        return process.signal_handlers.pop(int(sig), None) is not None

    # What there is not.

    add_reader: Any = _lacking("file descriptors")
    remove_reader: Any = add_reader
    add_writer: Any = add_reader
    remove_writer: Any = add_reader
    connect_read_pipe: Any = _lacking("pipes")
    connect_write_pipe: Any = connect_read_pipe
    subprocess_exec: Any = _lacking("processes of an operating system")
    subprocess_shell: Any = subprocess_exec
    sendfile: Any = _lacking("sendfile, read the file and write it")
    sock_sendfile: Any = sendfile
    start_tls: Any = _lacking("start_tls, begin with create_connection(ssl=...)")
    sock_recv: Any = _lacking("reading from sockets, give them to create_connection(sock=...)")
    sock_recv_into: Any = sock_recv
    sock_recvfrom: Any = sock_recv
    sock_recvfrom_into: Any = sock_recv
    sock_sendto: Any = _lacking("writing to sockets, give them to create_connection(sock=...)")
    sock_sendall: Any = sock_sendto
