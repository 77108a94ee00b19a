"""The conversation of a worker process with its node, once it is shut in.

The main thread belongs to the model: it waits on the work socket and calls the adaptor (or runs the event
loop that an asynchronous adaptor lives on), so that a request costs no hand-over. A second thread reads the
side socket. It answers pings, notes interruptions and hands over what the main thread waits for. When the
node is gone it ends the whole process group, and while the node pings, a timer of the interpreter's own
(which needs no Python lock) ends a process that no longer gets to answer, after writing all its stacks.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
import threading
import traceback
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import finalize

from meshnode.errors import (
    InferenceFailed,
    MeshError,
    ModelError,
    TooLarge,
    error_of,
)
from meshnode.limits import (
    WORKER_INLINE_BYTES,
)
from meshnode.models.runtimes.base import Opening
from meshnode.models.workers import protocol as say
from meshnode.models.workers.adaptor import (
    Answer,
    Interruption,
    ModelCall,
    Outcome,
    WorkerRequest,
    WorkerSurroundings,
)
from meshnode.models.workers.answers import counted, failure, parameters_of, text_of
from meshnode.models.workers.credits import Credits
from meshnode.models.workers.memory import SharedMemory
from meshnode.models.workers.placing import array_of, find, inline, needed_bytes, place, tensors_of
from meshnode.models.workers.side import SideChannel, end_all

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from meshnode.models.workers.adaptor import Adaptor
    from meshnode.types import Tensor

_FAILED = InferenceFailed.code


class Session:
    """One process's conversation; made on the main thread."""

    def __init__(
        self,
        work: socket.socket,
        side: socket.socket,
        memory_descriptor: int,
        start: say.Start,
        enforced: tuple[str, ...],
    ) -> None:
        """Take over the sockets; `enforced` is what the process is restricted by."""
        self._work = work
        self._start = start
        self._enforced = enforced
        self._memory: SharedMemory | None = None
        if start.shared_bytes:
            self._memory = SharedMemory.attach(
                memory_descriptor, start.shared_name, start.shared_bytes
            )
        self._work_lock = threading.Lock()
        self._freed: deque[int] = deque()
        self._streams: dict[int, Credits] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._side = SideChannel(side, self, start.silence_s)
        self._interruptions: dict[int, Interruption] = {}
        self._newest_batch = 0

    def __repr__(self) -> str:
        return f"<Session {self._start.opening.model}/{self._start.opening.version}>"

    def run(self) -> None:
        """Open the model and answer until the node says stop or is gone."""
        _log_to_stderr()
        self._side.start()
        try:
            adaptor = self._open()
            described = adaptor.describe()
        except BaseException as error:  # noqa: BLE001 - whatever the model's code raises is its answer
            self._refuse(error)
            return
        if self._start.only_describe:
            self._send(_started(described, adaptor, self._enforced, "cpu"))
            return
        if adaptor.asynchronous:
            asyncio.run(self._run_loop(adaptor, described))
        else:
            self._run_inline(adaptor, described)

    def _open(self) -> Adaptor:
        wire = self._start.opening
        cache = Path(wire.cache_folder) if wire.cache_folder else None
        opening = Opening(
            folder=Path(wire.folder), entry=wire.entry, model=wire.model, version=wire.version,
            threads=wire.threads, device=wire.device, max_batch_size=wire.max_batch_size,
            inputs=wire.inputs, outputs=wire.outputs, execution=wire.execution,
            instance=wire.instance, cache_folder=cache,
        )  # fmt: skip
        surroundings = WorkerSurroundings(opening, Path(self._start.work_folder), cache, self._call)
        module = importlib.import_module(self._start.adaptor)
        adaptor: Adaptor = module.open_adaptor(surroundings)
        return adaptor

    def _refuse(self, error: BaseException) -> None:
        if not isinstance(error, MeshError):
            with suppress(BaseException):  # it asks the model's exception for its text
                traceback.print_exc()
        code = error.code if isinstance(error, MeshError) else ModelError.code
        self._send(say.Refused(code, text_of(error)))

    # Synchronous adaptors

    def _run_inline(self, adaptor: Adaptor, described: Any) -> None:
        try:
            adaptor.initialise()
        except BaseException as error:  # noqa: BLE001
            self._refuse(error)
            return
        self._send(_started(described, adaptor, self._enforced, adaptor.device))
        reader = say.Reader(from_process=False)
        while data := self._work.recv(1 << 18):
            for message in reader.feed(data):
                if isinstance(message, say.Execute):
                    self._execute(adaptor, message)
                elif isinstance(message, say.OpenStream):
                    self._stream(adaptor, message)
                elif isinstance(message, say.Stop):
                    adaptor.finalise()
                    return
        end_all()

    def _execute(self, adaptor: Adaptor, message: say.Execute) -> None:
        try:
            requests = self._requests(message.batch, message.requests)
            outcomes: list[Outcome] = [*counted(adaptor.execute(requests), len(requests))]
        except BaseException as error:  # noqa: BLE001
            outcomes = [failure(error)] * len(message.requests)
        requests = []  # what the model has not kept is free now
        self._answer(message, outcomes)

    def _stream(self, adaptor: Adaptor, message: say.OpenStream) -> None:
        stream = self._streams[message.batch] = Credits(message.credits)
        error: BaseException | None = None
        wanted = message.request.outputs
        try:
            request = self._requests(message.batch, (message.request,)).pop()
            parts: Iterator[Answer] = adaptor.stream(request)  # type: ignore[assignment]
            try:
                for answer in parts:
                    if not stream.take(request.interruption):
                        break
                    self._part(message.batch, answer, wanted)
            finally:
                close = getattr(parts, "close", None)
                if close is not None:
                    close()
                del request, parts
        except BaseException as raised:  # noqa: BLE001
            error = raised
        self._end(message.batch, error)

    # Asynchronous adaptors

    async def _run_loop(self, adaptor: Adaptor, described: Any) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await _awaited(adaptor.initialise())
        except BaseException as error:  # noqa: BLE001
            self._refuse(error)
            return
        self._send(_started(described, adaptor, self._enforced, adaptor.device))
        await self._serve(adaptor)
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await _awaited(adaptor.finalise())

    async def _serve(self, adaptor: Adaptor) -> None:
        stopped = asyncio.Event()
        reader = say.Reader(from_process=False)

        def received(data: bytes) -> None:
            for message in reader.feed(data):
                if isinstance(message, say.Execute):
                    self._spawn(message.batch, self._execute_soon(adaptor, message))
                elif isinstance(message, say.OpenStream):
                    # Known at once, so that credits that follow find it.
                    self._streams[message.batch] = Credits(message.credits, self._loop)
                    self._spawn(message.batch, self._stream_soon(adaptor, message))
                elif isinstance(message, say.Stop):
                    stopped.set()

        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: _WorkReader(received, stopped), sock=self._work.dup()
        )
        # The socket itself stays blocking for answers: `dup` shares the mode, so it is set again.
        self._work.setblocking(True)
        await stopped.wait()
        if transport.is_closing():
            end_all()
        transport.pause_reading()

    def _spawn(self, batch: int, work: Coroutine[Any, Any, None]) -> None:
        assert self._loop is not None
        task = self._loop.create_task(work)
        self._tasks[batch] = task
        task.add_done_callback(lambda _done: self._tasks.pop(batch, None))

    async def _execute_soon(self, adaptor: Adaptor, message: say.Execute) -> None:
        try:
            requests = self._requests(message.batch, message.requests)
            answered = await _awaited(adaptor.execute(requests))
            outcomes: list[Outcome] = [*counted(answered, len(requests))]
            answered = None
        except BaseException as error:  # noqa: BLE001
            outcomes = [failure(error)] * len(message.requests)
        requests = []
        self._answer(message, outcomes)

    async def _stream_soon(self, adaptor: Adaptor, message: say.OpenStream) -> None:
        stream = self._streams[message.batch]
        error: BaseException | None = None
        wanted = message.request.outputs
        try:
            request = self._requests(message.batch, (message.request,)).pop()
            parts: Any = adaptor.stream(request)
            try:
                async for answer in parts:
                    await stream.take_soon()
                    self._part(message.batch, answer, wanted)
            finally:
                close = getattr(parts, "aclose", None)
                if close is not None:
                    await close()
                del request, parts
        except BaseException as raised:  # noqa: BLE001
            error = raised
        self._end(message.batch, error)

    # Requests and answers

    def _requests(self, batch: int, requests: Sequence[say.WireRequest]) -> list[WorkerRequest]:
        interruption = self._interruptions.setdefault(batch, Interruption())
        self._newest_batch = max(self._newest_batch, batch)
        return [self._request(each, interruption) for each in requests]

    def _request(self, wire: say.WireRequest, interruption: Interruption) -> WorkerRequest:
        lease = None
        if wire.region >= 0:
            assert self._memory is not None
            lease = self._memory.array(wire.region, wire.region_bytes)
            # When the model has let go of all its views, the node may have the memory back.
            finalize(lease, self._freed.append, wire.region).atexit = False
        inputs = {}
        for tensor in wire.inputs:
            if tensor.offset < 0:
                inputs[tensor.name] = array_of(tensor, tensor.data)
            else:
                assert lease is not None
                begin = tensor.offset - wire.region
                inputs[tensor.name] = array_of(tensor, lease[begin : begin + tensor.length])
        return WorkerRequest(
            inputs,
            {tensor.name: tensor.datatype for tensor in wire.inputs},
            wire.outputs, wire.request_id, wire.parameters, wire.timeout_s, interruption,
        )  # fmt: skip

    def _answer(self, message: say.Execute, outcomes: list[Outcome]) -> None:
        packed: list[tuple[list[Tensor], say.WireAnswer]] = []
        try:
            packed += [
                self._packed(outcome, request.outputs)
                for outcome, request in zip(outcomes, message.requests, strict=True)
            ]
            answers, room = self._placed(message.batch, packed, message.room, message.room_bytes)
        except BaseException as error:  # noqa: BLE001
            failed = failure(error)
            answers = (say.WireAnswer((), {}, failed.code, text_of(failed)),) * len(
                message.requests
            )
            room = message.room
        outcomes.clear()  # they may be views of inputs, whose memory can go back with this answer
        packed.clear()
        self._interruptions.pop(message.batch, None)
        freed = self.take_freed()
        try:
            data = say.encode(say.Outcomes(message.batch, answers, room, freed))
        except Exception as error:  # noqa: BLE001 - too long, or a text that cannot be sent
            unsent = say.WireAnswer((), {}, _FAILED, text_of(failure(error)))
            data = say.encode(say.Outcomes(message.batch, (unsent,) * len(answers), room, freed))
        self._send_bytes(data)

    def _packed(
        self, outcome: Outcome, wanted: tuple[str, ...]
    ) -> tuple[list[Tensor], say.WireAnswer]:
        if isinstance(outcome, Answer):
            try:
                tensors = tensors_of(outcome.outputs, outcome.datatypes, wanted)
                return tensors, say.WireAnswer((), parameters_of(outcome))
            except Exception as error:  # noqa: BLE001 - this answer alone is bad
                outcome = error
        failed = failure(outcome)
        return [], say.WireAnswer((), {}, failed.code, text_of(failed))

    def _placed(
        self,
        batch: int,
        packed: Sequence[tuple[list[Tensor], say.WireAnswer]],
        room: int,
        room_bytes: int,
    ) -> tuple[tuple[say.WireAnswer, ...], int]:
        length = sum(needed_bytes(tensors) for tensors, _ in packed)
        if length > WORKER_INLINE_BYTES and length > room_bytes:
            room, room_bytes = self._room(batch, length)
        answers = []
        offset = room
        for tensors, answer in packed:
            if length <= WORKER_INLINE_BYTES:
                placed = inline(tensors)
            else:
                assert self._memory is not None
                placed, offset = place(tensors, self._memory.view, offset)
            answers.append(say.WireAnswer(placed, answer.parameters, answer.code, answer.error))
        return tuple(answers), room

    def _room(self, batch: int, length: int) -> tuple[int, int]:
        """Return a region (offset, length).

        Raises:
            TooLarge: if there can be none.
            Saturated: if there is none now.
        """
        shared_bytes = self._start.shared_bytes
        if length > shared_bytes:
            raise TooLarge(
                f"the model's {length} bytes of tensors exceed the {shared_bytes} bytes that its process shares "
                "with its node; let it answer less at once"
            )
        return self._side.need_room(batch, length)

    def _part(self, batch: int, answer: Answer, wanted: tuple[str, ...]) -> None:
        if not isinstance(answer, Answer):
            raise InferenceFailed(f"the model streamed {type(answer).__name__}, which is no answer")
        tensors = tensors_of(answer.outputs, answer.datatypes, wanted)
        wire = say.WireAnswer((), parameters_of(answer))
        (placed,), room = self._placed(batch, [(tensors, wire)], -1, 0)
        self._send(say.Part(batch, placed, room))

    def _end(self, batch: int, error: BaseException | None) -> None:
        self._streams.pop(batch, None)
        self._interruptions.pop(batch, None)
        if error is None:
            self._send(say.Ended(batch, "", "", self.take_freed()))
            return
        failed = failure(error)
        error = None
        self._send(say.Ended(batch, failed.code, text_of(failed), self.take_freed()))

    # Calls to other models

    def _call(self, call: ModelCall) -> list[Answer]:
        if self._loop is not None and threading.current_thread() is threading.main_thread():
            raise InferenceFailed("an asynchronous model asks other models with call_soon")
        tensors = tensors_of(call.inputs, call.datatypes)
        length = needed_bytes(tensors)
        region = region_bytes = -1
        if length > WORKER_INLINE_BYTES:
            region, region_bytes = self._room(-1, length)
            assert self._memory is not None
            placed, _ = place(tensors, self._memory.view, region)
        else:
            placed = inline(tensors)
        request = say.WireRequest(
            placed, call.outputs, "", dict(call.parameters), call.timeout_s, region, region_bytes
        )
        called = self._side.call(call.model, call.version, request)
        answers = []
        whole = None
        if called.region >= 0 and self._memory is not None:
            whole = self._memory.view[called.region : called.region + called.region_bytes]
        for wire in called.answers:
            if wire.code:
                raise error_of(wire.code, wire.error)
            outputs = {
                tensor.name: array_of(tensor, bytes(data))
                for tensor, data in find(wire.outputs, whole, called.region)
            }
            answers.append(Answer(outputs, wire.parameters))
        if called.region >= 0:
            self._freed.append(called.region)
        return answers

    # What the side thread tells

    def interrupt(self, message: say.Interrupt) -> None:
        """Note that nobody waits for a batch any more; it may not have been read yet."""
        batch = message.batch
        if batch in self._interruptions:
            self._interruptions[batch].reason = message.reason
        elif batch > self._newest_batch:
            early = self._interruptions[batch] = Interruption()
            early.reason = message.reason
        stream = self._streams.get(batch)
        if stream is not None:
            stream.wake()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._cancel, batch)

    def _cancel(self, batch: int) -> None:
        task = self._tasks.get(batch)
        if task is not None:
            task.cancel()

    def credit(self, message: say.Credit) -> None:
        """Let further parts of a stream go."""
        stream = self._streams.get(message.batch)
        if stream is not None:
            stream.add(message.parts)

    def take_freed(self) -> tuple[int, ...]:
        """Return the regions of inputs that the model has let go since the last call."""
        freed = []
        with suppress(IndexError):
            while True:
                freed.append(self._freed.popleft())
        return tuple(freed)

    def _send(self, message: say.Message) -> None:
        self._send_bytes(say.encode(message))

    def _send_bytes(self, data: bytes) -> None:
        with self._work_lock:
            self._work.sendall(data)


class _WorkReader(asyncio.Protocol):
    """Hands over what arrives on the work socket."""

    def __init__(self, received: Callable[[bytes], None], stopped: asyncio.Event) -> None:
        self._received = received
        self._stopped = stopped

    def data_received(self, data: bytes) -> None:
        self._received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._stopped.set()


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    for stream in (sys.stdout, sys.stderr):  # pipes are buffered whole otherwise
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(line_buffering=True, errors="backslashreplace")


def _started(
    described: Any, adaptor: Adaptor, enforced: tuple[str, ...], device: str
) -> say.Started:
    return say.Started(
        described.inputs, described.outputs, described.max_batch_size, described.execution,
        device, adaptor.joins_rows, adaptor.concurrency, enforced,
    )  # fmt: skip


async def _awaited(value: Any) -> Any:
    return await value if hasattr(value, "__await__") else value
