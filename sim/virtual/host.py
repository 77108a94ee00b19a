"""Hosts of the virtual world: machines with a name, an address, clocks, and one process at a time.

Which process code belongs to is kept in a context variable, so tasks, callbacks, timers and executor
functions inherit it as they inherit every other one. Code that belongs to no process is the *world*:
tests, players, the network.

A process that crashes runs nothing any more, not even `finally` blocks: its tasks are kept, untouched,
until the loop is closed. A *frozen* one stands still while its kernel goes on; a *busy* one has said,
with `spend`, that what it computes takes time.
"""

from __future__ import annotations

import asyncio
import math
import signal
from collections import deque
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import ref

from meshnode.errors import UsageError
from meshnode.sim.scheduler import WALL_START_S
from meshnode.sim.virtual.kernel import Kernel
from meshnode.sim.virtual.tasks import AnyHandle, VirtualHandle, VirtualTimer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from meshnode.sim.virtual.loop import VirtualLoop

T = TypeVar("T")

TURN_S: Final = 30e-6
"""Seconds that one call of a process takes on a usual machine: a slowed one takes so many more of them.

One turn of a daemon's loop was measured at 20 to 50 microseconds; what does not slow is free."""

_LEAST_TASKS: Final = 64  # registered ones before those that are done are looked for

_running: ContextVar[Process | None] = ContextVar("meshnode_virtual_process", default=None)


class Process:
    """One run of a host's program; what belongs to it ends with it.

    Attributes:
        host: Where it runs; None for the world.
        loop: Its loop.
        number: Counts the processes of its host, from 1; 0 for the world.
        gated: Whether its calls wait at present, or are not made any more.
        dead: Whether it has ended.
        turn_s: Seconds that each of its calls takes besides what it spends itself.
        hindered_at: When it last ran on after standing still, or its speed changed.
    """

    __slots__ = (
        "_busy", "_failed", "_frozen", "_task_limit", "_tasks", "context", "dead", "factor", "gated", "hindered_at",
        "host", "loop", "number", "signal_handlers", "turn_s", "waiting",
    )  # fmt: skip

    def __init__(self, loop: VirtualLoop, host: VirtualHost | None, number: int) -> None:
        """Begin; hosts make their own."""
        self.loop = loop
        self.host = host
        self.number = number
        self.gated = False
        self.dead = False
        self.factor = 1.0
        self.turn_s = 0.0
        self.hindered_at = float("-inf")
        self.waiting: deque[AnyHandle] = deque()
        self.signal_handlers: dict[int, VirtualHandle] = {}
        self.context = copy_context()
        self.context.run(_running.set, self)
        self._frozen = False
        self._busy = 0
        self._tasks: list[asyncio.Task[Any]] = []
        self._failed: list[ref[asyncio.Task[Any]]] = []
        self._task_limit = _LEAST_TASKS

    def __repr__(self) -> str:
        return f"{self.host.name}/{self.number}" if self.host else "world"

    @property
    def frozen(self) -> bool:
        """Whether it stands still."""
        return self._frozen

    def registered(self, task: asyncio.Task[Any]) -> None:
        """Keep a task alive until it is done, as a suspended one must not end by garbage collection."""
        tasks = self._tasks
        tasks.append(task)
        if len(tasks) >= self._task_limit:
            self.drop_done()
            self._task_limit = max(_LEAST_TASKS, 2 * len(self._tasks))

    def drop_done(self) -> None:
        """Drop the tasks that are done; one that failed, and that nobody else has either, is told by that."""
        done = [task for task in self._tasks if task.done()]
        self._failed = [each for each in self._failed if _is_unasked(each())]
        self._failed += [ref(task) for task in done if _is_unasked(task)]
        self._tasks = [task for task in self._tasks if not task.done()]

    def failed_tasks(self) -> list[asyncio.Task[Any]]:
        """Return the tasks that ended with an exception, which somebody keeps, and nobody asked how they ended."""
        self.drop_done()
        tasks = [each() for each in self._failed]
        return [task for task in tasks if task is not None]

    def live_tasks(self) -> list[asyncio.Task[Any]]:
        """Return the tasks that are not done, oldest first."""
        self.drop_done()
        return [*self._tasks, *self._unregistered()]

    def _unregistered(self) -> list[asyncio.Task[Any]]:
        """Return its live tasks that were made without the loop, as aiohttp does from Python 3.12 on."""
        context_of: Callable[[asyncio.Task[Any]], Context] | None
        context_of = getattr(asyncio.Task, "get_context", None)
        if context_of is None:
            return []
        known = {id(task) for task in self._tasks}
        return [
            task
            for task in asyncio.all_tasks(self.loop)
            if id(task) not in known and process_of(context_of(task)) is self
        ]

    def live_timers(self) -> list[VirtualTimer]:
        """Return the timers that are to come."""
        return [timer for timer in self.loop.timers() if timer.process is self]

    def defer(self, handle: AnyHandle) -> None:
        """Keep a call until the process runs on; one that is dead makes it never."""
        if not self.dead:
            self.waiting.append(handle)

    def freeze(self) -> None:
        """Stand still."""
        self._frozen = self.gated = True

    def thaw(self) -> None:
        """Run on."""
        self._frozen = False
        self.hindered_at = self.loop.now()
        self._run_on()

    def block(self, seconds: float) -> None:
        """Make no further call for so long: what it has just done took that time."""
        if self.host is None:
            raise UsageError(
                "only code that runs on a host can spend time; start it with host.run()"
            )
        self._busy += 1
        self.gated = True
        self.loop.after(seconds, self._unblock)

    def kill(self) -> None:
        """End: nothing of it ever runs again."""
        self.loop.bury(self.live_tasks())
        self.dead = self.gated = True
        self.waiting.clear()
        self.signal_handlers.clear()
        self._tasks = []

    def _unblock(self) -> None:
        self._busy -= 1
        self._run_on()

    def _run_on(self) -> None:
        if self.dead or self._frozen or self._busy:
            return
        self.gated = False
        self.loop.resume(self.waiting)


def _is_unasked(task: asyncio.Task[Any] | None) -> bool:
    """Whether a task ended with an exception for which nobody has asked; asyncio logs it when it is dropped."""
    return task is not None and task._log_traceback


class HostClock:
    """A host's clocks, as `meshnode.clock.Clock`: they may run fast or slow, and the wall clock may jump.

    Timers that were set before the rate changed keep their time.
    """

    def __init__(self, loop: VirtualLoop, wall_start_s: float = WALL_START_S) -> None:
        """Run as the loop does."""
        self._loop = loop
        self._wall_offset_s = wall_start_s
        self._rate = 1.0
        self._was_set = False  # whether it may show another time than the loop's
        self._from_s = 0.0  # the loop's time when the rate was set, and this clock's at that moment
        self._read_s = 0.0

    def now(self) -> float:
        """Return monotonic seconds."""
        return self.read(self._loop.now()) if self._was_set else self._loop.now()

    def wall_s(self) -> float:
        """Return seconds since the Unix epoch."""
        return self.now() + self._wall_offset_s

    @property
    def rate(self) -> float:
        """Its seconds per second of the world."""
        return self._rate

    @property
    def rate_since_s(self) -> float:
        """The world's second in which its rate was last set."""
        return self._from_s

    def set_rate(self, rate: float) -> None:
        """Run at another rate from now on."""
        now = self._loop.now()
        self._read_s, self._from_s = self.read(now), now
        self._loop.clock_skewed()
        self._was_set = True
        self._rate = rate

    def jump(self, by_s: float) -> None:
        """Set the wall clock by so many seconds."""
        self._wall_offset_s += by_s

    def read(self, time_s: float) -> float:
        """Return what it shows at a time of the loop."""
        if self._rate == 1.0:
            return time_s + (self._read_s - self._from_s)
        return self._read_s + (time_s - self._from_s) * self._rate

    def when(self, shown_s: float) -> float:
        """Return the first time of the loop at which it shows this: who is woken then must not find it a hair too early."""
        time_s = self._from_s + (shown_s - self._read_s) / self._rate
        while self.read(time_s) < shown_s:
            time_s = math.nextafter(time_s, math.inf)
        return time_s


class VirtualHost:
    """A machine of the virtual world; `VirtualLoop.add_host` makes one.

    Attributes:
        loop: The loop of its world.
        name: Its name: the key in the network model, and what `getaddrinfo` resolves.
        address: Its IPv4 address.
        region: Where it is.
        number: Counts the hosts, from 1.
        clock: Its clocks.
        kernel: Its sockets.
        process: What runs on it now, or ran last.
        off: Whether it has no power.
        covers_content: Whether the trace covers what it sends, not only how much and when. Not every
            program is so deterministic: aiohttp's server puts the real time into its answers.
    """

    def __init__(
        self, loop: VirtualLoop, name: str, address: str, region: str, number: int
    ) -> None:
        """Switch it on, with an empty process."""
        self.loop = loop
        self.name = name
        self.address = address
        self.region = region
        self.number = number
        self.off = False
        self.covers_content = False
        self.clock = HostClock(loop)
        self.kernel = Kernel(self)
        self._factor = 1.0
        self.process = Process(loop, self, 1)

    def __repr__(self) -> str:
        state = (
            "off"
            if self.off
            else "down"
            if self.process.dead
            else "frozen"
            if self.frozen
            else "up"
        )
        return f"<VirtualHost {self.name} {self.address} in {self.region}, {state}>"

    # Running code.

    def run(self, work: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Start a coroutine on this host; return its task.

        Raises:
            UsageError: if nothing runs here; call `boot` first.
        """
        process = self._live()
        context = process.context.copy()
        return self.loop.create_task(work, name=name, context=context)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call something as this host's code does, now; for what sets up a host from outside."""
        return self._live().context.copy().run(function, *args)

    def spend(self, seconds: float) -> None:
        """Say that what runs now takes so long on a machine that is not slowed down.

        In a coroutine or a callback this stalls the whole process, as computing does; in an executor's
        function it delays its result.

        Raises:
            UsageError: if this is not called by this host's code.
        """
        process = _running.get()
        if process is None or process.host is not self:
            raise UsageError(f"only what runs on {self.name} can spend its time")
        self.loop.spend(process, seconds * process.factor)

    def boot(self) -> Process:
        """Start a new process, after a crash, a stop or a power cut.

        Raises:
            UsageError: if one runs.
        """
        if not self.process.dead:
            raise UsageError(f"a process runs on {self.name}: crash or stop it first")
        self.off = False
        self.process = Process(self.loop, self, self.process.number + 1)
        self.slow(self._factor)
        self.kernel.booted()
        return self.process

    # Faults.

    @property
    def running(self) -> bool:
        """Whether a process runs, frozen or not."""
        return not self.process.dead

    @property
    def frozen(self) -> bool:
        """Whether the process stands still."""
        return not self.process.dead and self.process.frozen

    def crash(self) -> None:
        """Kill the process: nothing of it runs again, and the kernel closes its connections."""
        process = self._live()
        process.kill()
        self.kernel.process_ended()

    def power_off(self) -> None:
        """Cut the power: not even connections are closed; a process that runs dies."""
        if not self.process.dead:
            self.process.kill()
        self.off = True
        self.kernel.vanish()

    def freeze(self) -> None:
        """Let the process stand still as after SIGSTOP; the kernel answers."""
        self._live().freeze()

    def thaw(self) -> None:
        """Let a frozen process run on."""
        self._live().thaw()

    def slow(self, factor: float) -> None:
        """Let all that it computes take `factor` times as long, now and after a reboot; 1 undoes it."""
        self._factor = factor
        self.process.factor = factor
        self.process.hindered_at = self.loop.now()
        self.process.turn_s = max(0.0, factor - 1) * TURN_S

    def signal(self, number: int) -> None:
        """Send the process a signal; SIGKILL, SIGSTOP and SIGCONT do what they do, others what it asked for.

        A signal without a handler kills it.
        """
        process = self._live()
        if number == getattr(signal, "SIGSTOP", None):
            self.freeze()
        elif number == getattr(signal, "SIGCONT", None):
            self.thaw()
        elif (handler := process.signal_handlers.get(number)) is not None:
            self.loop.ready(
                VirtualHandle(handler._callback, handler._args, process, handler._context)
            )
        else:
            self.crash()

    def _live(self) -> Process:
        if self.process.dead:
            raise UsageError(f"nothing runs on {self.name}; call boot() first")
        return self.process


def running_process() -> Process | None:
    """Return the process that the code which calls this belongs to; None in the world."""
    return _running.get()


def running_host() -> VirtualHost | None:
    """Return the host that the code which calls this runs on; None in the world."""
    process = _running.get()
    return process.host if process is not None else None


def process_of(context: Context) -> Process | None:
    """Return the process that a context belongs to; None for the world."""
    return context.get(_running)
