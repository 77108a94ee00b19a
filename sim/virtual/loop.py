"""An asyncio loop in virtual time: it never waits, and one seed gives one run.

Time jumps to the next thing that is due. All hosts of a world share the loop; each has its processes
(`meshnode.sim.virtual.host`), its clocks, its sockets (`kernel`) and the paths to the others
(`meshnode.sim.network`). Code needs no change to run here as long as it asks its loop for sockets:
`create_server`, `create_connection`, datagram endpoints, `getaddrinfo`, `run_in_executor`, and
`open_socket` where it would have made a socket itself. There are no threads and no operating system: an
executor's function runs inline, and its result comes as much later as it has said, with
`VirtualHost.spend`, that it takes. What the loop lacks (processes, file descriptors, pipes) raises
NotImplementedError.

What is ready runs in the order in which it became so. Calls that are due at the very same time on
different hosts are put into an order that the seed's stream `scheduler` draws.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
from collections import deque
from contextvars import Context, copy_context
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple

from meshnode.errors import UsageError
from meshnode.sim.lines import Lines
from meshnode.sim.network import Network, NetworkConfig
from meshnode.sim.trace import Trace
from meshnode.sim.virtual.endpoints import Endpoints
from meshnode.sim.virtual.host import Process, VirtualHost, process_of, running_process
from meshnode.sim.virtual.tasks import (
    VirtualFuture,
    VirtualHandle,
    VirtualTask,
    VirtualTimer,
    dispose,
    settle,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterator
    from concurrent.futures import Executor

    from meshnode.sim.virtual.tasks import AnyHandle

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_FOREVER: Final = float("inf")

_MANY_CANCELLED: Final = 100
"""Cancelled timers that are kept before those that are due later are looked through, as in asyncio."""

_COLLECT_EVERY: Final = 10_000
"""Moments of time after which young garbage is collected. What ends by that (a writer that nobody closed,
a generator) must end at the same moment in every run, so the collector does not run by itself."""

_COLLECT_ALL_EVERY: Final = 20 * _COLLECT_EVERY


class Stuck(RuntimeError):
    """Nothing is left that could happen, and what was waited for has not."""


class VirtualLoop(Endpoints):
    """The loop of one virtual world.

    Attributes:
        seed: Decides every draw.
        network: The paths between hosts, by their names; faults are laid on it.
        kernel_context: What the network runs in; no host's.
    """

    def __init__(
        self, seed: int, network: Network | None = None, trace: Trace | None = None
    ) -> None:
        """Make an empty world at second 0.

        Args:
            seed: Decides every draw.
            network: How hosts reach one another; by default one without loss.
            trace: What deliveries are recorded in; by default a new one.
        """
        super().__init__()
        self.seed = seed
        self.network = network or Network(NetworkConfig(), random.Random(f"{seed}/network"))
        self.trace = trace or Trace()
        self._rng = random.Random(f"{seed}/scheduler")
        self._now = 0.0
        self._ahead_s = 0.0  # what the running call has spent
        self._spender: Process | None = None
        self._in_thread = False
        self._skewed = False  # whether any host's clock may show another time than the loop's
        self._ready: deque[AnyHandle] = deque()
        self._timers: list[tuple[float, int, AnyHandle]] = []
        self._made = 0
        self._steps = 0
        self._cancelled_timers = 0
        self._buried: list[asyncio.Task[Any]] = []
        self._running = False
        self._stopping = False
        self._failure: BaseException | None = None
        self.world = Process(self, None, 0)
        self.kernel_context = Context()
        self.lines = Lines(self.network, self)
        self.network.on_change(self._network_changed)

    def __repr__(self) -> str:
        ahead = len(self._timers) - self._cancelled_timers
        return f"<VirtualLoop seed {self.seed} at {self._now:.6f} s: {len(self.hosts)} hosts, {ahead} calls ahead>"

    # The world.

    def add_host(self, name: str, region: str, address: str | None = None) -> VirtualHost:
        """Add a machine; it runs, with an empty process.

        Args:
            name: What others resolve, and its key in the network.
            region: Where it is.
            address: Its IPv4 address; the next free one of 10.0.0.0/8 by default.

        Raises:
            UsageError: if there is such a name or address already.
        """
        number = len(self.hosts) + 1
        address = address or f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        if name in self.hosts or any(host.address == address for host in self.hosts.values()):
            raise UsageError(f"there is a host {name!r} or {address} already; name another")
        self.network.place(name, region)
        host = self.hosts[name] = VirtualHost(self, name, address, region, number)
        self.by_address[address] = host
        return host

    def now(self) -> float:
        """Return the world's seconds, with what the call that runs now has spent."""
        return self._now + self._ahead_s

    def time(self) -> float:
        """Return the seconds that the running host's monotonic clock shows."""
        if self._skewed:
            process = running_process()
            if process is not None and process.host is not None:
                return process.host.clock.now()
        return self._now + self._ahead_s

    def clock_skewed(self) -> None:
        """Note that a host's clock changed its rate: from then on it shows another time than the loop."""
        self._skewed = True

    def spend(self, process: Process, seconds: float) -> None:
        """Let what runs now take so long; see `VirtualHost.spend`."""
        if seconds < 0:
            raise UsageError(f"nothing takes {seconds} s")
        if not self._running:
            raise UsageError("only what the loop runs can spend time")
        self._ahead_s += seconds
        self._spender = process

    def fail(self, error: BaseException) -> None:
        """Stop the run that is going on, and let it raise this: an invariant is broken."""
        self._failure = self._failure or error
        self._stopping = True

    # Calls.

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> VirtualHandle:
        """Let the process that calls this make a call, after what is ready already."""
        if context is None:
            context = copy_context()
        handle = VirtualHandle(callback, args, process_of(context) or self.world, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> Any:
        """Call soon; from an executor's function, after what it has spent so far."""
        if self._in_thread and self._ahead_s:
            return self._call_at(self.time(), callback, args, context)
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> VirtualTimer:
        """Let the process that calls this make a call after `delay` of its host's seconds."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> VirtualTimer:
        """Let the process that calls this make a call when its host's clock shows `when`."""
        return self._call_at(when, callback, args, context)

    def _call_at(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: Context | None,
    ) -> VirtualTimer:
        if context is None:
            context = copy_context()
        process = process_of(context) or self.world
        timer = VirtualTimer(when, callback, args, process, context, self)
        if self._skewed and process.host is not None:
            when = process.host.clock.when(when)
        self._made += 1
        heappush(self._timers, (max(when, self._now), self._made, timer))
        return timer

    def at(self, time_s: float, callback: Callable[..., object], *args: Any) -> None:
        """Let the world (the network, a player) make a call at a time; equal times keep their order."""
        self._made += 1
        handle = VirtualHandle(callback, args, self.world, self.kernel_context)
        heappush(self._timers, (max(time_s, self._now), self._made, handle))

    def after(self, delay_s: float, callback: Callable[..., object], *args: Any) -> None:
        """Let the world make a call after `delay_s` seconds."""
        self.at(self._now + self._ahead_s + delay_s, callback, *args)

    def ready(self, handle: AnyHandle) -> None:
        """Let a process make a call after what is ready already."""
        self._ready.append(handle)

    def resume(self, waiting: deque[AnyHandle]) -> None:
        """Let a process that runs on make the calls that waited, before its later ones.

        Timers come last, as in asyncio: a loop that wakes up looks at its sockets first.
        """
        in_turn = sorted(waiting, key=lambda handle: type(handle) is VirtualTimer)
        self._ready.extendleft(reversed(in_turn))
        waiting.clear()

    def timers(self) -> Iterator[VirtualTimer]:
        """Yield the timers of all processes that are to come, in no order that means anything."""
        for _, _, handle in self._timers:
            if isinstance(handle, VirtualTimer) and not handle.cancelled():
                yield handle

    def timer_cancelled(self) -> None:
        """Note that a timer will find nothing to do, and drop such ones when they are many."""
        self._cancelled_timers += 1
        if (
            self._cancelled_timers > _MANY_CANCELLED
            and self._cancelled_timers > len(self._timers) // 2
        ):
            self._timers = [entry for entry in self._timers if not entry[2].cancelled()]
            heapify(self._timers)
            self._cancelled_timers = 0

    # Tasks.

    def create_future(self) -> VirtualFuture:
        """Make a future."""
        future = VirtualFuture(loop=self)
        future.process = running_process()
        return future

    def create_task(
        self,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        *,
        name: str | None = None,
        context: Context | None = None,
        **options: Any,
    ) -> asyncio.Task[T]:
        """Make a task of the process that calls this, or that the context belongs to."""
        if self._task_factory is not None:
            made: asyncio.Task[T] = self._task_factory(self, coro, context=context, **options)
            return made
        task = VirtualTask(coro, loop=self, name=name, context=context, **options)
        process = running_process() if context is None else process_of(context)
        task.process = process
        if self._closed:  # a `finally` block that runs while everything is dropped
            self._buried.append(task)
        elif process is not None:
            process.registered(task)
        return task

    def bury(self, tasks: list[asyncio.Task[Any]]) -> None:
        """Keep the tasks of a process that died, so that nothing of them runs; `close` drops them."""
        self._buried += tasks

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run a function inline, soon; its result comes after what it spends. No executor is used.

        It belongs to the process that calls this. Any number of functions may be on at once.
        """
        del executor
        future: asyncio.Future[T] = self.create_future()
        self.call_soon(self._run_thread, future, func, args)
        return future

    def _run_thread(
        self, future: asyncio.Future[T], func: Callable[..., T], args: tuple[Any, ...]
    ) -> None:
        """Run an executor's function; what it spends delays what comes of it, and blocks nobody."""
        self._in_thread = True
        failure: BaseException | None = None
        result: T | None = None
        try:
            result = func(*args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - it is the future's
            failure = error
        finally:
            self._in_thread = False
            done_at = self.time()
            self._ahead_s = 0.0
        self._call_at(done_at, settle, (future, result, failure), None)

    # Running.

    def run_to(self, time_s: float) -> None:
        """Let everything happen until a time, and stand at it.

        Raises:
            BaseException: what `fail` was told.
        """
        self._run(time_s)
        if time_s > self._now and not self._stopping:
            self._now = time_s
        self._stopping = False
        self._raise_failure()

    def run_for(self, seconds: float) -> None:
        """Let so much time pass."""
        self.run_to(self._now + seconds)

    def run_until_complete(self, future: Generator[Any, None, T] | Awaitable[T]) -> T:
        """Let things happen until a future is done; return its result.

        Raises:
            Stuck: if it never will be, because nothing is left to happen.
        """
        awaited: Any = future
        work: asyncio.Future[T] = asyncio.ensure_future(awaited, loop=self)
        work.add_done_callback(self._stop_for)
        try:
            self._run(_FOREVER)
        finally:
            self._stopping = False
            work.remove_done_callback(self._stop_for)
        self._raise_failure()
        if not work.done():
            raise Stuck(f"nothing is left to happen, and this waits: {work!r}")
        return work.result()

    def run_forever(self) -> None:
        """Let things happen until `stop` is called or nothing is left."""
        self._run(_FOREVER)
        self._stopping = False
        self._raise_failure()

    def stop(self) -> None:
        """Let the run that is going on end after the present call."""
        self._stopping = True

    def _stop_for(self, future: asyncio.Future[Any]) -> None:
        del future
        self._stopping = True

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _run(self, until: float) -> None:
        if self._closed:
            raise RuntimeError("this loop is closed")
        if self._running or asyncio._get_running_loop() is not None:
            raise RuntimeError("a loop is running already; a virtual one runs in no other")
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(finalizer=self._agen_dropped)
        asyncio._set_running_loop(self)
        self._running = True
        collects = gc.isenabled()
        gc.disable()
        try:
            self._run_calls(until)
        finally:
            if collects:
                gc.enable()
            self._running = False
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)

    def _run_calls(self, until: float) -> None:
        ready = self._ready
        take = ready.popleft
        while True:
            if not ready and not self._advance(until):
                return
            while ready:
                handle = take()
                if handle._cancelled:
                    continue
                process = handle.process
                if process.gated:
                    process.defer(handle)
                    continue
                try:
                    handle._context.run(handle._callback, *handle._args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:  # noqa: BLE001 - as asyncio does
                    self._uncaught(handle, error)
                if self._ahead_s or process.turn_s:
                    self._block(process)
                if self._stopping:
                    return

    def _advance(self, until: float) -> bool:
        """Go to the next time at which something is due and make it ready; False if that is too late."""
        self._steps += 1
        if self._steps % _COLLECT_EVERY == 0:
            gc.collect(2 if self._steps % _COLLECT_ALL_EVERY == 0 else 1)
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heappop(timers)[2]._scheduled = False  # type: ignore[union-attr] # only timers are cancelled
            self._cancelled_timers -= 1
        if not timers or timers[0][0] > until:
            return False
        when, _, handle = heappop(timers)
        self._now = when
        if not timers or timers[0][0] > when:
            if type(handle) is VirtualTimer:
                handle._scheduled = False
            self._ready.append(handle)
            return True
        due = [handle]
        while timers and timers[0][0] <= when:
            due.append(heappop(timers)[2])
        for each in due:
            if type(each) is VirtualTimer:
                each._scheduled = False
                self._cancelled_timers -= each._cancelled
        self._ready.extend(self._permuted(due))
        return True

    def _permuted(self, due: list[AnyHandle]) -> list[AnyHandle]:
        """Put calls that are due at once into a drawn order; those of one host keep theirs."""
        by_process: dict[Process, list[AnyHandle]] = {}
        for handle in due:
            by_process.setdefault(handle.process, []).append(handle)
        if len(by_process) == 1:
            return due
        groups = [*by_process.values()]
        self._rng.shuffle(groups)
        return [handle for group in groups for handle in group]

    def _block(self, process: Process) -> None:
        """Let the process that has spent time, or is slow, make no call for so long."""
        spent_s, self._ahead_s = self._ahead_s, 0.0
        spender, self._spender = self._spender, None
        if spent_s and spender is not None and spender is not process:
            spender.block(spent_s)
            spent_s = 0.0
        if process.host is not None and spent_s + process.turn_s:
            process.block(spent_s + process.turn_s)

    def is_running(self) -> bool:
        """Whether it runs now."""
        return self._running

    def is_closed(self) -> bool:
        """Whether it is over."""
        return self._closed

    def close(self) -> None:
        """Drop everything: hosts, calls, and the tasks of processes that died or were not ended.

        The `finally` blocks of those tasks run here at last, when nothing they call does anything.
        """
        if self._closed:
            return
        if self._running:
            raise RuntimeError("a loop that runs cannot be closed; stop it first")
        for host in self.hosts.values():
            if not host.process.dead:
                host.process.kill()
            host.kernel.vanish()
        self.bury(self.world.live_tasks())
        self._closed = True
        self._ready.clear()
        self._timers.clear()
        asyncio._set_running_loop(self)  # what the `finally` blocks call may ask for it
        try:
            while self._buried:
                buried, self._buried = self._buried, []
                for task in buried:
                    dispose(task)
        finally:
            asyncio._set_running_loop(None)
        self._ready.clear()
        self._timers.clear()

    def _agen_dropped(self, agen: AsyncGenerator[Any, Any]) -> None:
        """Close a generator that nobody iterates any more, as asyncio's loops do."""
        if not self._closed:
            self.call_soon(self.create_task, agen.aclose())

    def _uncaught(self, handle: AnyHandle, error: BaseException) -> None:
        context = {
            "message": f"Exception in callback of {handle.process!r}",
            "exception": error,
            "handle": handle,
        }
        handle._context.run(self.call_exception_handler, context)
